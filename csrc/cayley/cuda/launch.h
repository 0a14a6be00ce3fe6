// The launches of the Cayley kernels with one matrix per group of lanes or per block. Each family of kernels
// is compiled in its own file.
#pragma once
#include "../../core/cuda/launch.h"
#include "gradient.cuh"

namespace fastparam::cuda {

// Requires n <= kWarpOrder.
template <class T>
void launch_warp(const Given<T>& given, T* Q, int64_t batch);
// Requires n <= block_order<acc_t<T>>(). Without flags, for Layout::inside.
template <class T>
void launch_block(const Given<T>& given, T* Q, int64_t batch, unsigned* flags = nullptr, int teams = 0);
// Requires n <= max(kWarpOrder, backward_order<acc_t<T>>()).
template <class T>
void launch_backward(const Given<T>& Q, const Given<T>& G, const Gradient<T>& gradient, int64_t batch);

// The largest order that fits in a block of the current device.
template <class A>
int block_order();
template <class A>
int backward_order();

template <class A, class F>
void with_block_order(int64_t n, const F& f) {
  if constexpr (sizeof(A) == 4) with_order<48, 64, 80, 96, 112, 128>(n, f);
  else with_order<48, 64>(n, f);
}

// The largest of the block orders whose Shape fits in the shared memory of the current device.
template <template <class, int> class Shape, class A>
int largest_order() {
  const auto memory = of_current_device(cudaDevAttrMaxSharedMemoryPerBlockOptin);
  int found = 0;
  for (int n = 48; n <= (sizeof(A) == 4 ? 128 : 64); n += 16)
    with_block_order<A>(n, [&](auto N) {
      if (Shape<A, N>::kSharedBytes <= memory) found = N;
    });
  return found;
}

}  // namespace fastparam::cuda
