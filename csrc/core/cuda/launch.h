// Helpers of launches.
#pragma once
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAFunctions.h>
#include <c10/cuda/CUDAStream.h>

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <limits>
#include <type_traits>

#include "common.cuh"

namespace fastparam::cuda {

inline int of_current_device(cudaDeviceAttr attribute) {
  int value = 0;
  C10_CUDA_CHECK(cudaDeviceGetAttribute(&value, attribute, c10::cuda::current_device()));
  return value;
}

inline unsigned grid_of(int64_t items, int64_t per_block) {
  const int64_t blocks = (items + per_block - 1) / per_block;
  TORCH_INTERNAL_ASSERT(blocks <= std::numeric_limits<int32_t>::max());  // memory cannot hold more
  return static_cast<unsigned>(blocks);
}

constexpr int kWarpOrder = 32;  // the largest order for a group of lanes

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

// Permits more than 48 KB of shared memory, which a kernel has to request once per device.
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

// How a cooperative launch is divided: `count` teams of `size` blocks. A team processes one matrix at a time.
struct Teams {
  int64_t count, size;
};
// A team needs `bytes` of memory, and all teams get at most `together`. A team has at most `most` blocks, and
// a processor at most `a_processor`.
template <auto kernel>
Teams share_device(int64_t bytes, int64_t together, int64_t batch, int64_t most, int threads = kBlock,
                   int a_processor = 2, int shared = 0) {
  int found = 0;
  C10_CUDA_CHECK(cudaOccupancyMaxActiveBlocksPerMultiprocessor(&found, kernel, threads, shared));
  const int64_t blocks = static_cast<int64_t>(smaller(found, a_processor)) *
                         of_current_device(cudaDevAttrMultiProcessorCount),
                count = std::clamp<int64_t>(together / bytes, 1, std::min(batch, blocks));
  return {count, std::min(blocks / count, most)};
}

}  // namespace fastparam::cuda
