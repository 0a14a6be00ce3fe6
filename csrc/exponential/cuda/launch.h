// The launches of the exponential kernels. Each is compiled in a separate file.
#pragma once
#include <ATen/core/Tensor.h>

#include "../../core/cuda/launch.h"
#include "batch.cuh"

namespace fastparam::cuda {

// For order 1, and for skew matrices up to order 4.
template <class T>
void launch_closed_form(const Batch<T>& batch);
// For n <= kWarpOrder. Returns false without a launch if a block of the current device has too little shared
// memory.
template <class T>
bool launch_lanes(const Program<acc_t<T>>& program, const Batch<T>& batch);
// For any order.
template <class T>
void launch_team(const Program<acc_t<T>>& program, const Batch<T>& batch, const at::TensorOptions& options);

}  // namespace fastparam::cuda
