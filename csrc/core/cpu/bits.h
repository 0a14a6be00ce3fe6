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
    const auto u = bit_cast<Vec<uint32_t, N>>(x), nan = bit_cast<Vec<uint32_t, N>>(x != x);
    const Vec<uint32_t, N> rounded = (u + 0x7FFF + (u >> 16 & 1)) >> 16;
    return __builtin_convertvector((rounded & ~nan) | (0x7FC0 & nan), Vec<uint16_t, N>);
  }
};

template <>
struct Widened<c10::Half> {
  // A multiplication adjusts the exponent, exactly also for subnormal numbers: 2^112 = 2^(127 - 15).
  template <int N>
  static FASTPARAM_INLINE Vec<float, N> from(const Vec<uint16_t, N>& x) {
    using U = Vec<uint32_t, N>;
    const U h = __builtin_convertvector(x, U), sign = (h & 0x8000) << 16, rest = (h & 0x7FFF) << 13;
    const U finite = bit_cast<U>(bit_cast<Vec<float, N>>(rest) * 0x1p112f);
    const U special = bit_cast<U>((h & 0x7C00) == 0x7C00);  // inf and NaN
    return bit_cast<Vec<float, N>>(sign | (finite & ~special) | ((rest | 0x7F800000) & special));
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
    const U is_tiny = bit_cast<U>(a < (113u << 23)), is_large = bit_cast<U>(normal > 0x7C00 - 1),
            is_nan = bit_cast<U>(a > 0x7F800000u);
    const U finite = (tiny & is_tiny) | (normal & ~is_tiny);
    const U large = 0x7C00 | (is_nan & 0x200);
    const U overflow = is_large & ~is_tiny;
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
