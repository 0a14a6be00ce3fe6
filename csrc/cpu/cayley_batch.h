// A batch of matrices: which path serves them, what becomes of those that fail the guard, threads, half types.
#pragma once

#include <c10/core/CPUAllocator.h>

#include <cstdlib>

#include "cayley_backward.h"
#include "cayley_blocks.h"
#include "cayley_lanes.h"
#include "cayley_pivoted.h"

namespace fastparam::cpu {

constexpr int64_t kGrain = 32768;       // multiplications below which no second thread is woken
constexpr int64_t kChunkBytes = 65536;  // of float32 at a time, where half types are converted

// The largest order served by lanes, of 16, 8, 4 or 2 matrices. Measured in full batches: up to here both directions are faster than by
// rows (1.2 times at these orders, 2 to 4 times at half of them). It depends on nothing but n and the level, so that a matrix has the same
// bits in every batch; a single matrix of order 28 pays for 16. FASTPARAM_CAYLEY_LANES sets another one, for measurements.
template <class T>
int64_t largest_by_lanes() {
  static const int64_t order = [] {
    const char* const given = std::getenv("FASTPARAM_CAYLEY_LANES");
    if (given) return std::min(std::atoi(given), kLargestLanes);
    const int lanes = vector_bytes() / static_cast<int>(sizeof(T));
    return lanes == 16 ? 28 : lanes == 8 ? 20 : lanes == 4 ? 16 : 12;
  }();
  return order;
}

// The work space of a thread.
class Scratch {
  c10::DataPtr data_;

 public:
  explicit Scratch(int64_t bytes) : data_(c10::GetCPUAllocator()->allocate(bytes)) {}
  void* get() const { return data_.get(); }
};

// ---- forward -----------------------------------------------------------------------------------------------------------------------

template <class T>
int64_t forward_scratch(int64_t n) {
  return std::max(n <= kLargestLanes ? n * (n | 1) * 64 : 0, forward_scratch_bytes<T>(n));
}

// A float32 matrix that fails the guard is computed again in float64; what fails there, with row exchanges.
template <class T>
void forward_failed(const CayleyMap<T>& map, int64_t begin, int64_t end) {
  const Scratch scratch(std::max(forward_scratch_bytes<double>(map.n), pivoted_scratch_bytes(map.n)));
  for (int64_t m = begin; m < end; ++m) {
    if constexpr (std::is_same_v<T, float>)
      if (map.failed[m]) map.failed[m] = !matrix_forward<double, float>(map, m, scratch.get());
    if (map.failed[m] && map.n <= kLargestPivoted) pivoted_forward(map, m, scratch.get()), map.failed[m] = 0;
  }
}

template <class T>
void forward_share(const CayleyMap<T>& map, int64_t begin, int64_t end, void* scratch) {
  const FlushDenormals flush;
  if (map.n <= largest_by_lanes<T>()) run_simd<LanesForward<T>>(&map, begin, end, scratch);
  else
    for (int64_t m = begin; m < end; ++m) map.failed[m] = !matrix_forward<T, T>(map, m, scratch);
  if (std::any_of(map.failed + begin, map.failed + end, [](uint8_t f) { return f != 0; })) forward_failed(map, begin, end);
}

// ---- backward ----------------------------------------------------------------------------------------------------------------------

template <class T>
int64_t backward_scratch(int64_t n) {
  const int64_t lanes = 3 * n * (n | 1) * 64, strips = n < kParallelOrder ? 2 * n * kStrip : 0;
  return std::max<int64_t>(n <= kLargestLanes ? lanes : 0, (n * block_stride(n) + strips) * sizeof(T));
}

template <class T>
void backward_share(const CayleyGradient<T>& map, int64_t begin, int64_t end, void* scratch) {
  const FlushDenormals flush;
  if (map.n <= largest_by_lanes<T>()) return run_simd<LanesBackward<T>>(&map, begin, end, scratch);
  const int64_t n = map.n, tasks = (n + kStrip - 1) / kStrip;
  T *const U = static_cast<T*>(scratch), *const strips = U + n * block_stride(n);
  for (int64_t m = begin; m < end; ++m) {
    if (n < kParallelOrder) run_simd<BackwardColumns<T>>(&map, m, U, strips, int64_t(0), tasks);
    else
      at::parallel_for(0, tasks, 1, [&](int64_t first, int64_t last) {
        const FlushDenormals flush_here;
        const Scratch own(2 * n * kStrip * sizeof(T));
        run_simd<BackwardColumns<T>>(&map, m, U, static_cast<T*>(own.get()), first, last);
      });
    parallel_strips<BackwardCollapse<T>>(n, tasks, &map, m, U);
  }
}

// ---- batches -----------------------------------------------------------------------------------------------------------------------

// Runs share(begin, end, scratch) over the batch: matrices among threads, or, of few large ones, the work of each.
template <class Share>
void over_batch(int64_t batch, int64_t n, int64_t scratch_bytes, const Share& share) {
  if (n >= kParallelOrder && batch < 2 * at::get_num_threads()) {
    // Threads inherit the mode for denormal numbers of the one that starts them, and keep it: start them before FlushDenormals.
    at::parallel_for(0, at::get_num_threads(), 1, [](int64_t, int64_t) {});
    const Scratch scratch(scratch_bytes);
    return share(0, batch, scratch.get());
  }
  at::parallel_for(0, batch, std::max<int64_t>(1, kGrain / (n * n * n)), [&](int64_t begin, int64_t end) {
    const Scratch scratch(scratch_bytes);
    share(begin, end, scratch.get());
  });
}

inline int64_t chunk_of(int64_t n) { return std::max<int64_t>(1, kChunkBytes / (n * n * static_cast<int64_t>(sizeof(float))) / 16 * 16); }

inline int64_t buffer_of(int64_t elements) { return (elements + 15) / 16 * 16; }  // what follows it is aligned

// Half types, by chunks; outside of FlushDenormals, as their small numbers are converted from and to denormal ones.
template <class T>
void widen(const T* from, int64_t size, float* to) {
  for (int64_t i = 0; i < size; ++i) to[i] = static_cast<float>(from[i]);
}
template <class T>
void narrow(const float* from, int64_t size, T* to) {
  for (int64_t i = 0; i < size; ++i) to[i] = static_cast<T>(from[i]);
}

template <class T>
void forward(const CayleyMap<T>& map) {
  if constexpr (sizeof(T) >= 4) {
    over_batch(map.batch, map.n, forward_scratch<T>(map.n),
               [&](int64_t begin, int64_t end, void* scratch) { forward_share(map, begin, end, scratch); });
  } else {
    const int64_t chunk = std::min(chunk_of(map.n), map.batch), size = map.n * map.n, buffer = buffer_of(chunk * size);
    over_batch(map.batch, map.n, 2 * buffer * sizeof(float) + forward_scratch<float>(map.n),
               [&](int64_t begin, int64_t end, void* scratch) {
                 float *in = static_cast<float*>(scratch), *out = in + buffer, *rest = out + buffer;
                 for (int64_t m = begin; m < end; m += chunk) {
                   const int64_t count = std::min(chunk, end - m);
                   widen(map.in + m * map.entries(), count * map.entries(), in);
                   forward_share(CayleyMap<float>{in, out, map.n, count, map.alpha, map.layout, map.failed + m}, 0, count, rest);
                   narrow(out, count * size, map.out + m * size);
                 }
               });
  }
}

template <class T>
void backward(const CayleyGradient<T>& map) {
  if constexpr (sizeof(T) >= 4) {
    over_batch(map.batch, map.n, backward_scratch<T>(map.n),
               [&](int64_t begin, int64_t end, void* scratch) { backward_share(map, begin, end, scratch); });
  } else {
    const int64_t chunk = std::min(chunk_of(map.n), map.batch), size = map.n * map.n, buffer = buffer_of(chunk * size);
    over_batch(map.batch, map.n, 3 * buffer * sizeof(float) + backward_scratch<float>(map.n),
               [&](int64_t begin, int64_t end, void* scratch) {
                 float *G = static_cast<float*>(scratch), *Q = G + buffer, *out = Q + buffer, *rest = out + buffer;
                 for (int64_t m = begin; m < end; m += chunk) {
                   const int64_t count = std::min(chunk, end - m);
                   widen(map.G + m * size, count * size, G);
                   widen(map.Q + m * size, count * size, Q);
                   backward_share(CayleyGradient<float>{G, Q, out, map.n, count, map.alpha, map.kind}, 0, count, rest);
                   narrow(out, count * map.entries(), map.out + m * map.entries());
                 }
               });
  }
}

}  // namespace fastparam::cpu
