// Floating-point numbers as unsigned integers: moved numbers are copied bit for bit, the sign is flipped by
// xor, and only sums are computed. Vectors of 16-bit types are converted by integer operations, so that
// every level processes N of them at a time.
#pragma once

#include <c10/util/BFloat16.h>
#include <c10/util/Half.h>

#include "simd.h"

namespace fastparam::cpu {

template <class T>
using BitsOf = typename UIntOf<sizeof(T)>::type;

// All bits of the lanes in which a > b, for numbers below 2^31. It is no comparison of vectors for the reason
// given in lane_masks.h.
template <int N>
FASTPARAM_INLINE Vec<uint32_t, N> above(const Vec<uint32_t, N>& a, uint32_t b) {
  return bit_cast<Vec<uint32_t, N>>(bit_cast<Vec<int32_t, N>>(b - a) >> 31);
}

// Converts the bits of N numbers of type T to float32 and back. Converting back rounds to nearest even, and
// NaN stays NaN.
template <class T>
struct Widened;

template <>
struct Widened<c10::BFloat16> {
  template <int N>
  static FASTPARAM_INLINE Vec<float, N> from(const Vec<uint16_t, N>& x) {
    return bit_cast<Vec<float, N>>(__builtin_convertvector(x, Vec<uint32_t, N>) << 16);
  }
  template <int N>
  static FASTPARAM_INLINE Vec<uint16_t, N> to(const Vec<float, N>& x) {
    const auto u = bit_cast<Vec<uint32_t, N>>(x), nan = above<N>(u & 0x7FFFFFFF, 0x7F800000);
    const Vec<uint32_t, N> rounded = (u + 0x7FFF + (u >> 16 & 1)) >> 16;
    return __builtin_convertvector((rounded & ~nan) | (0x7FC0 & nan), Vec<uint16_t, N>);
  }
};

template <>
struct Widened<c10::Half> {
  // The exponent of normal numbers is adjusted. The others are added to the last places of 0.5, which are
  // theirs, so that no float is subnormal, which torch.set_flush_denormal would replace by 0.
  template <int N>
  static FASTPARAM_INLINE Vec<float, N> from(const Vec<uint16_t, N>& x) {
    using U = Vec<uint32_t, N>;
    const U h = __builtin_convertvector(x, U), sign = (h & 0x8000) << 16, a = h & 0x7FFF;
    const U tiny = bit_cast<U>(bit_cast<Vec<float, N>>(a | 0x3F000000) - 0.5f);
    const U is_normal = above<N>(a, 0x3FF), is_special = above<N>(a, 0x7BFF);  // special: inf and NaN
    const U normal = ((a << 13) + ((127 - 15) << 23)) | (is_special & 0x7F800000);
    return bit_cast<Vec<float, N>>(sign | (tiny & ~is_normal) | (normal & is_normal));
  }
  // For normal numbers, the bits that do not fit are rounded. Below 2^-14 the last place is fixed at 2^-24:
  // adding a power of two with the same last place rounds there.
  template <int N>
  static FASTPARAM_INLINE Vec<uint16_t, N> to(const Vec<float, N>& x) {
    using U = Vec<uint32_t, N>;
    const U u = bit_cast<U>(x), sign = u >> 16 & 0x8000, a = u & 0x7FFFFFFF;
    // normal numbers: round off the bits that do not fit
    const U rounded = (a + 0xFFF + (a >> 13 & 1)) >> 13;
    const U normal = rounded - ((127 - 15) << 10);  // and adjust the exponent
    const U tiny = bit_cast<U>(bit_cast<Vec<float, N>>(a) + 0.5f) - 0x3F000000;
    const U not_tiny = above<N>(a, (113u << 23) - 1), overflow = above<N>(rounded, (143u << 10) - 1);
    const U finite = (tiny & ~not_tiny) | (normal & not_tiny);
    const U large = 0x7C00 | (above<N>(a, 0x7F800000) & 0x200);
    return __builtin_convertvector(sign | (finite & ~overflow) | (large & overflow), Vec<uint16_t, N>);
  }
};

// x + y, for the bits of N numbers of type T.
template <class T, int N>
FASTPARAM_INLINE Vec<BitsOf<T>, N> add(const Vec<BitsOf<T>, N>& x, const Vec<BitsOf<T>, N>& y) {
  if constexpr (sizeof(T) == 2) {
    return Widened<T>::template to<N>(Widened<T>::template from<N>(x) + Widened<T>::template from<N>(y));
  } else {
    return bit_cast<Vec<BitsOf<T>, N>>(bit_cast<Vec<T, N>>(x) + bit_cast<Vec<T, N>>(y));
  }
}

}  // namespace fastparam::cpu
