// The launches of the exponential kernels; each is compiled in a file of its own.
#pragma once
#include <ATen/core/Tensor.h>

#include "../../core/cuda/launch.h"
#include "batch.cuh"

namespace fastparam::cuda {

// n <= kWarpOrder. Returns false, having done nothing, where a block of the current device has too little
// shared memory.
template <class T>
bool launch_lanes(const Program<acc_t<T>>& program, const Batch<T>& batch);
// Of any order.
template <class T>
void launch_team(const Program<acc_t<T>>& program, const Batch<T>& batch, const at::TensorOptions& options);

}  // namespace fastparam::cuda
