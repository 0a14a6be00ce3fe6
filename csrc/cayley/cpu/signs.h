// Signs as bits for xor.
#pragma once

#include "../../core/cpu/dense/lane_masks.h"

namespace fastparam::cpu {

// The sign bit in the lanes where s is negative, 0 elsewhere.
template <class T, int N>
FASTPARAM_INLINE MaskOf<T, N> flips_of(const Vec<T, N>& s) {
  return bit_cast<MaskOf<T, N>>(s < T(0)) & bit_cast<MaskOf<T, N>>(T(-0.0) - Vec<T, N>{});
}
// For the columns j, j + 1, ...; 0 from column n on.
template <class T, int N>
FASTPARAM_INLINE MaskOf<T, N> flips_at(const T* signs, int64_t j, int64_t n) {
  Vec<T, N> s{};
  if (j + N <= n) s = load<Vec<T, N>>(signs + j);
  else if (j < n) std::memcpy(&s, signs + j, (n - j) * sizeof(T));
  return flips_of<T, N>(s);
}

// Returns whether any of `count` signs is negative. Most matrices have none, which avoids a transposition.
template <class T, int N>
FASTPARAM_INLINE bool any_negative(const T* signs, int64_t count) {
  MaskOf<T, N> negative{};
  for (int64_t j = 0; j < count; j += N) negative |= flips_at<T, N>(signs, j, count);
  return any(negative);
}

template <class V, class M>
FASTPARAM_INLINE V flipped(const V& x, const M& flips) {
  return bit_cast<V>(bit_cast<M>(x) ^ flips);
}

}  // namespace fastparam::cpu
