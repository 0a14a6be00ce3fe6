// The Cayley map for matrices too large for a warp, and the gradient for matrices too large for a block.
#pragma once
#include <ATen/ATen.h>

#include "gradient.cuh"

namespace fastparam::cuda {

using at::Tensor;

template <class T>
void forward_by_blocks(const Given<T>& given, T* Q, int64_t batch, const at::TensorOptions& options);
template <class T>
void forward_large(const Given<T>& given, Tensor& Q, int64_t batch);
template <class T>
void backward_large(const Given<T>& Q, const Tensor& G, const Tensor& signs, const Gradient<T>& gradient,
                    int64_t batch);

}  // namespace fastparam::cuda
