// The Cayley map and its gradient for matrices too large for a block.
#pragma once
#include <ATen/ATen.h>

#include "cayley_backward.cuh"

namespace fastparam::cuda {

using at::Tensor;

template <class T>
void forward_large(const Given<T>& given, Tensor& Q, int64_t batch);
template <class T>
void backward_large(const Given<T>& Q, const Tensor& G, const Gradient<T>& gradient, int64_t batch);

}  // namespace fastparam::cuda
