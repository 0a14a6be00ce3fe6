// The launches of the Cayley kernels with one matrix per group of lanes or per block. Each family of kernels
// is compiled in its own file.
#pragma once
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAFunctions.h>
#include <c10/cuda/CUDAStream.h>

#include <atomic>
#include <cstdint>
#include <limits>

#include "gradient.cuh"

namespace fastparam::cuda {

constexpr int kWarpOrder = 32;

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

inline int of_current_device(cudaDeviceAttr attribute) {
  int value = 0;
  C10_CUDA_CHECK(cudaDeviceGetAttribute(&value, attribute, c10::cuda::current_device()));
  return value;
}

inline unsigned grid_of(int64_t items, int64_t per_block) {
  const int64_t blocks = (items + per_block - 1) / per_block;
  TORCH_INTERNAL_ASSERT(blocks <= std::numeric_limits<int32_t>::max());  // more than fit in memory
  return static_cast<unsigned>(blocks);
}

// Calls f with the first of the orders that is at least n.
template <int First, int... Rest, class F>
void with_order(int64_t n, const F& f) {
  if constexpr (sizeof...(Rest) == 0) f(std::integral_constant<int, First>{});
  else n <= First ? f(std::integral_constant<int, First>{}) : with_order<Rest...>(n, f);
}
template <class F>
void with_warp_order(int64_t n, const F& f) {
  with_order<4, 8, 16, 24, kWarpOrder>(n, f);
}
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

// More than 48 KB of shared memory must be requested, once per device.
template <auto kernel>
void allow_shared(int bytes) {
  static std::atomic<uint64_t> allowed{0};
  if (bytes <= 48 << 10) return;
  const int device = c10::cuda::current_device();
  const uint64_t bit = device < 64 ? uint64_t(1) << device : 0;
  if ((allowed.load(std::memory_order_relaxed) & bit) != 0) return;
  C10_CUDA_CHECK(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes));
  allowed.fetch_or(bit, std::memory_order_relaxed);
}

}  // namespace fastparam::cuda
