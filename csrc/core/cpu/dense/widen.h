// Half types as float32, a few matrices at a time. Conversions run outside of FlushDenormals, because small
// half numbers are converted from and to denormal numbers.
#pragma once

#include <algorithm>
#include <cstdint>
#include <type_traits>

#include "../bits.h"

namespace fastparam::cpu {

template <class T>
using compute_t = std::conditional_t<sizeof(T) == 2, float, T>;

constexpr int64_t kChunkBytes = 65536;  // of float32 at a time

// One of the types is float.
template <class From, class To>
struct ConvertBody {
  template <int Bytes>
  static FASTPARAM_INLINE void run(const From* from, int64_t size, To* to) {
    constexpr int N = Bytes / sizeof(float);
    int64_t i = 0;
    for (; i + N <= size; i += N)
      if constexpr (std::is_same_v<To, float>)
        store(to + i, Widened<From>::template from<N>(load<Vec<uint16_t, N>>(from + i)));
      else store(to + i, Widened<To>::template to<N>(load<Vec<float, N>>(from + i)));
    for (; i < size; ++i) to[i] = static_cast<To>(from[i]);
  }
};
template <class T>
void widen(const T* from, int64_t size, float* to) {
  run_simd<ConvertBody<T, float>>(from, size, to);
}
template <class T>
void narrow(const float* from, int64_t size, T* to) {
  run_simd<ConvertBody<float, T>>(from, size, to);
}

// The number of matrices, of `elements` each, that are converted together.
inline int64_t chunk_of(int64_t elements) {
  return std::max<int64_t>(1, kChunkBytes / (elements * static_cast<int64_t>(sizeof(float))) / 16 * 16);
}

inline int64_t aligned(int64_t elements) {
  return (elements + 15) / 16 * 16;
}  // so that the data after it starts on a cache line

}  // namespace fastparam::cpu
