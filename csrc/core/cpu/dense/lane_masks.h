// Masks of the N lanes of a vector. Those of positions are loaded from tables, because g++ 12 fails on
// comparisons of integer vectors at the wider levels. Those of numbers are computed from their bits, because
// g++ 12 takes most comparisons of 64 bytes, and of vectors that are wider than its registers, apart, lane by
// lane.
#pragma once

#include <algorithm>
#include <type_traits>

#include "../simd.h"

namespace fastparam::cpu {

template <class T>
using MaskElement = std::make_signed_t<typename UIntOf<sizeof(T)>::type>;
template <class T, int N>
using MaskOf = Vec<MaskElement<T>, N>;

template <class T, int N>
struct LaneMasks {
  using M = MaskElement<T>;
  M first_[2 * N] = {}, but_[2 * N + 4] = {};
  T unit_[2 * N] = {};
  constexpr LaneMasks() {
    for (int i = 0; i < N; ++i) first_[i] = but_[i] = but_[N + 4 + i] = -1;
    unit_[N - 1] = 1;
  }
};
template <class T, int N>
constexpr LaneMasks<T, N> kLaneMasks;

// The first `count` of N lanes.
template <class T, int N>
FASTPARAM_INLINE MaskOf<T, N> first_lanes(int64_t count) {
  return load<MaskOf<T, N>>(kLaneMasks<T, N>.first_ + N - std::max<int64_t>(0, std::min<int64_t>(N, count)));
}
// All lanes except the four from `at` on, which may lie outside of the vector.
template <class T, int N>
FASTPARAM_INLINE MaskOf<T, N> all_but_four(int64_t at) {
  return load<MaskOf<T, N>>(kLaneMasks<T, N>.but_ + N - std::max<int64_t>(-4, std::min<int64_t>(N, at)));
}

// 1 in lane `at`, 0 elsewhere.
template <class T, int N>
FASTPARAM_INLINE Vec<T, N> unit(int64_t at) {
  return load<Vec<T, N>>(kLaneMasks<T, N>.unit_ + (at >= 0 && at < N ? N - 1 - at : N));
}

// The elements of x where the mask is set, 0 elsewhere.
template <class V, class M>
FASTPARAM_INLINE V only(const V& x, const M& mask) {
  return bit_cast<V>(bit_cast<M>(x) & mask);
}

// The elements of a where the mask is set, and those of b elsewhere.
template <class V, class M>
FASTPARAM_INLINE V either(const M& mask, const V& a, const V& b) {
  return bit_cast<V>((bit_cast<M>(a) & mask) | (bit_cast<M>(b) & ~mask));
}

// x without its sign.
template <class T, int N>
FASTPARAM_INLINE Vec<T, N> magnitude(const Vec<T, N>& x) {
  using M = MaskOf<T, N>;
  return bit_cast<Vec<T, N>>(bit_cast<M>(x) & ~bit_cast<M>(T(-0.0) - Vec<T, N>{}));
}

// The lanes in which |x| <= bound, for a bound without a sign: such floats are in the order of their bits.
// False where x is NaN.
template <class T, int N>
FASTPARAM_INLINE MaskOf<T, N> at_most(const Vec<T, N>& x, const Vec<T, N>& bound) {
  using M = MaskOf<T, N>;
  return (bit_cast<M>(magnitude<T, N>(x)) - bit_cast<M>(bound) - 1) >> (8 * sizeof(T) - 1);
}

template <class M>
FASTPARAM_INLINE bool any(const M& mask) {
  auto result = mask[0];
  for (size_t l = 1; l < sizeof(M) / sizeof(mask[0]); ++l) result |= mask[l];
  return result != 0;
}
template <class M>
FASTPARAM_INLINE bool all(const M& mask) {
  auto result = mask[0];
  for (size_t l = 1; l < sizeof(M) / sizeof(mask[0]); ++l) result &= mask[l];
  return result != 0;
}

}  // namespace fastparam::cpu
