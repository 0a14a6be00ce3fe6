// The layout of square matrices in a work space.
#pragma once

#include "../simd.h"

namespace fastparam::cpu {

constexpr int kStrip = 64;       // columns of a strip, the part of a matrix that is processed at a time
constexpr int kRowMultiple = 4;  // the number of rows is padded to a multiple of this

// A matrix of order n is padded to whole vectors of columns. From 64 columns on, the stride is never a whole
// number of kilobytes, because that would use few sets of the L1 cache.
template <class T>
struct Padded {
  int64_t rows, width, stride;
  FASTPARAM_INLINE Padded(int64_t n, int64_t lanes)
      : rows((n + kRowMultiple - 1) / kRowMultiple * kRowMultiple),
        width((rows + lanes - 1) / lanes * lanes),
        stride(width > 64 ? width + 16 : width) {}
};

// At least the stride of a padded matrix of order n, for any number of lanes.
inline int64_t largest_stride(int64_t n) { return (n + 15) / 16 * 16 + 16; }

template <class T>
struct Square {
  T* S;
  int64_t rows, width, stride;

  FASTPARAM_INLINE T* row(int64_t i) const { return S + i * stride; }
};

inline int64_t strips_of(int64_t width) { return (width + kStrip - 1) / kStrip; }

// Copies columns that fill whole vectors; their rows in `to` are kStrip apart. The compiler would call memcpy
// for every row.
template <class T, int W>
FASTPARAM_INLINE void copy_strip(const T* from, int64_t stride, int64_t rows, int64_t columns, T* to) {
  using V = Vec<T, W>;
  constexpr int C = kStrip / W;
  if (columns == kStrip) {
    for (int64_t i = 0; i < rows; ++i)
#pragma GCC unroll 16
      for (int c = 0; c < C; ++c) store(to + i * kStrip + c * W, load<V>(from + i * stride + c * W));
  } else {
    for (int64_t i = 0; i < rows; ++i)
      for (int64_t j = 0; j < columns; j += W) store(to + i * kStrip + j, load<V>(from + i * stride + j));
  }
}

}  // namespace fastparam::cpu
