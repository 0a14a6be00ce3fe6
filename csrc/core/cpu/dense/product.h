// Products of blocks of matrices.
#pragma once

#include <algorithm>

#include "square.h"

namespace fastparam::cpu {

template <class T, int Bytes>
struct Product;
template <class T, bool Transposed>
struct ProductBody {
  template <int Bytes>
  static FASTPARAM_INLINE void run(const Product<T, Bytes>* product, int64_t begin, int64_t end, int64_t j,
                                   int64_t last) {
    product->template run_inline<Transposed>(begin, end, j, last);
  }
};

// O = A B or, with `add`, O += A B; A^T replaces A if Transposed. Columns fill whole vectors.
template <class T, int Bytes>
struct Product {
  static constexpr int W = Bytes / sizeof(T), kTile = Bytes == 64 ? 4 : 2;  // width of a tile, in vectors
  using V = Vec<T, W>;

  const T* A;
  int64_t a_stride;
  const T* B;
  int64_t b_stride;
  T* O;
  int64_t o_stride;
  int64_t depth;
  bool add;

  template <bool Transposed, int R, int C>
  FASTPARAM_INLINE void tile(int64_t i, int64_t j) const {
    V sum[R][C];
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 16
      for (int c = 0; c < C; ++c) sum[r][c] = add ? load<V>(O + (i + r) * o_stride + j + c * W) : V{};
    const T *a = Transposed ? A + i : A + i * a_stride, *b = B + j;
    for (int64_t k = 0; k < depth; ++k) {
      V row[C];
#pragma GCC unroll 16
      for (int c = 0; c < C; ++c) row[c] = load<V>(b + c * W);
#pragma GCC unroll 16
      for (int r = 0; r < R; ++r) {
        const T f = Transposed ? a[r] : a[r * a_stride];
#pragma GCC unroll 16
        for (int c = 0; c < C; ++c) sum[r][c] += f * row[c];
      }
      a += Transposed ? a_stride : 1;
      b += b_stride;
    }
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 16
      for (int c = 0; c < C; ++c) store(O + (i + r) * o_stride + j + c * W, sum[r][c]);
  }

  template <bool Transposed, int R, int C>
  FASTPARAM_INLINE void rows(int64_t begin, int64_t end, int64_t j) const {
    int64_t i = begin;
    for (; i + R <= end; i += R) tile<Transposed, R, C>(i, j);
    for (; i + 4 <= end; i += 4) tile<Transposed, 4, C>(i, j);
    for (; i < end; ++i) tile<Transposed, 1, C>(i, j);
  }

  // Computes the rows [begin, end) and the columns [j, last).
  template <bool Transposed>
  FASTPARAM_INLINE void run(int64_t begin, int64_t end, int64_t j, int64_t last) const {
    run_at<Bytes, ProductBody<T, Transposed>>(this, begin, end, j, last);
  }
  // The accumulators, a row of B and a factor fill the registers.
  template <bool Transposed>
  FASTPARAM_INLINE void run_inline(int64_t begin, int64_t end, int64_t j, int64_t last) const {
    for (; j + kTile * W <= last; j += kTile * W) rows<Transposed, 6, kTile>(begin, end, j);
    switch ((last - j) / W) {
      case 1: return rows<Transposed, kTile == 2 ? 8 : 16, 1>(begin, end, j);
      case 2: return rows<Transposed, kTile == 2 ? 6 : 8, 2>(begin, end, j);
      case 3: return rows<Transposed, kTile == 2 ? 6 : 8, kTile == 2 ? 2 : 3>(begin, end, j);
      default: return;
    }
  }
};

// The same product for any size, by panels of B that fit in the caches. O is rows x columns, and its columns
// fill whole vectors.
template <class T, int Bytes, bool Transposed>
FASTPARAM_INLINE void multiply(const T* A, int64_t a_stride, const T* B, int64_t b_stride, T* O,
                               int64_t o_stride, int64_t rows, int64_t depth, int64_t columns, bool add) {
  constexpr int64_t kPanel = 256, kBlock = 24;
  alignas(64) T panel[kPanel * kStrip];
  for (int64_t j = 0; j < columns; j += kStrip) {
    const int64_t here = std::min<int64_t>(kStrip, columns - j);
    for (int64_t d = 0; d < depth; d += kPanel) {
      const int64_t part = std::min(kPanel, depth - d);
      copy_strip<T, Bytes / sizeof(T)>(B + d * b_stride + j, b_stride, part, here, panel);
      const Product<T, Bytes> product{
          A + (Transposed ? d * a_stride : d), a_stride, panel, kStrip, O + j, o_stride, part, add || d > 0};
      for (int64_t i = 0; i < rows; i += kBlock)
        product.template run<Transposed>(i, std::min(i + kBlock, rows), 0, here);
    }
  }
}

}  // namespace fastparam::cpu
