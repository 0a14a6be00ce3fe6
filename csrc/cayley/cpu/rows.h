// Matrices one at a time, with rows in vectors: elimination with four pivots at once.
#pragma once

#include "../../core/cpu/dense/lane_masks.h"
#include "../../core/cpu/dense/prefetch.h"
#include "../../core/cpu/dense/square.h"

namespace fastparam::cpu {

constexpr int kPivots = kRowMultiple;

// ---- 4 x 4 pivots -----------------------------------------------------------------------------------------

// D = (I + S)^-1, and delta = the diagonal of D - I = -D S, of the 4 x 4 block S, from its 2 x 2 blocks. With
// signs, D = (diag(signs) + S)^-1.
template <class T>
struct PivotInverse {
  T D[kPivots][kPivots], delta[kPivots];

  FASTPARAM_INLINE void set(const T* S, int64_t stride) {
    set_with(S, stride, [&](int r) __attribute__((always_inline)) { return S[r * stride + r] + T(1); });
  }
  // A sign that is 0 becomes that of the pivot to which it is added.
  FASTPARAM_INLINE void set(const T* S, int64_t stride, T* signs) {
    T pivots[kPivots][kPivots];
    for (int r = 0; r < kPivots; ++r) std::memcpy(pivots[r], S + r * stride, sizeof(pivots[r]));
    for (int r = 0; r < kPivots; ++r) {
      if (signs[r] == 0) signs[r] = pivots[r][r] < 0 ? T(-1) : T(1);
      for (int i = r + 1; i < kPivots; ++i) {
        const T factor = pivots[i][r] / (pivots[r][r] + signs[r]);
        for (int j = r + 1; j < kPivots; ++j) pivots[i][j] -= factor * pivots[r][j];
      }
    }
    set_with(S, stride, [&](int r) __attribute__((always_inline)) { return S[r * stride + r] + signs[r]; });
  }

 private:
  // plus(r) is the diagonal entry r of the matrix whose inverse is D.
  template <class Plus>
  FASTPARAM_INLINE void set_with(const T* S, int64_t stride, const Plus& plus) {
    const auto s = [&](int r, int c) __attribute__((always_inline)) { return S[r * stride + c]; };
    // F is the inverse of the first block, and [p q; r t] is the Schur complement of the second
    const T first = 1 / (plus(0) * plus(1) - s(0, 1) * s(1, 0));
    const T f00 = plus(1) * first, f01 = -s(0, 1) * first, f10 = -s(1, 0) * first, f11 = plus(0) * first;
    const T y00 = s(2, 0) * f00 + s(2, 1) * f10, y01 = s(2, 0) * f01 + s(2, 1) * f11;
    const T y10 = s(3, 0) * f00 + s(3, 1) * f10, y11 = s(3, 0) * f01 + s(3, 1) * f11;
    const T z00 = f00 * s(0, 2) + f01 * s(1, 2), z01 = f00 * s(0, 3) + f01 * s(1, 3);
    const T z10 = f10 * s(0, 2) + f11 * s(1, 2), z11 = f10 * s(0, 3) + f11 * s(1, 3);
    const T p = plus(2) - (y00 * s(0, 2) + y01 * s(1, 2)), q = s(2, 3) - (y00 * s(0, 3) + y01 * s(1, 3));
    const T r = s(3, 2) - (y10 * s(0, 2) + y11 * s(1, 2)), t = plus(3) - (y10 * s(0, 3) + y11 * s(1, 3));
    const T second = 1 / (p * t - q * r);
    const T g00 = t * second, g01 = -q * second, g10 = -r * second, g11 = p * second;
    D[2][0] = -(g00 * y00 + g01 * y10), D[2][1] = -(g00 * y01 + g01 * y11), D[2][2] = g00, D[2][3] = g01;
    D[3][0] = -(g10 * y00 + g11 * y10), D[3][1] = -(g10 * y01 + g11 * y11), D[3][2] = g10, D[3][3] = g11;
    D[0][0] = f00 - (z00 * D[2][0] + z01 * D[3][0]), D[0][1] = f01 - (z00 * D[2][1] + z01 * D[3][1]);
    D[1][0] = f10 - (z10 * D[2][0] + z11 * D[3][0]), D[1][1] = f11 - (z10 * D[2][1] + z11 * D[3][1]);
    D[0][2] = -(z00 * g00 + z01 * g10), D[0][3] = -(z00 * g01 + z01 * g11);
    D[1][2] = -(z10 * g00 + z11 * g10), D[1][3] = -(z10 * g01 + z11 * g11);
    for (int i = 0; i < kPivots; ++i)
      delta[i] = -(D[i][0] * s(0, i) + D[i][1] * s(1, i) + D[i][2] * s(2, i) + D[i][3] * s(3, i));
  }
};

// ---- elimination ------------------------------------------------------------------------------------------

// Replaces S by (I + S)^-1 - I. S is `rows` x `rows` (a multiple of 4), and its columns fill whole vectors.
template <class T, int Bytes>
struct Rows {
  static constexpr int W = Bytes / sizeof(T), kTile = Bytes == 64 ? 4 : 2;  // width of a tile, in vectors
  using V = Vec<T, W>;
  using Mask = MaskOf<T, W>;

  T* S;
  int rows, stride;
  Prefetch next;

  // One step on the columns j, ..., j + C * W - 1. With `ahead`, the next pivots, of these signs, are
  // inverted as soon as they are ready.
  template <int C, class... Signs>
  FASTPARAM_INLINE void tile(const PivotInverse<T>& pivots, int k, int j, PivotInverse<T>* ahead,
                             Signs... signs) const {
    V p[kPivots][C];
    Mask keep[C];  // all columns except those of the pivots, which count as columns of I
#pragma GCC unroll 16
    for (int c = 0; c < C; ++c) {
      const int at = k - j - c * W;
      keep[c] = all_but_four<T, W>(at);
      V s[kPivots];
#pragma GCC unroll 16
      for (int r = 0; r < kPivots; ++r)
        s[r] = only(load<V>(S + (k + r) * stride + j + c * W), keep[c]) + unit<T, W>(at + r);
#pragma GCC unroll 16
      for (int r = 0; r < kPivots; ++r)
        p[r][c] =
            pivots.D[r][0] * s[0] + pivots.D[r][1] * s[1] + pivots.D[r][2] * s[2] + pivots.D[r][3] * s[3];
    }
#pragma GCC unroll 16
    for (int r = 0; r < kPivots; ++r)
#pragma GCC unroll 16
      for (int c = 0; c < C; ++c) store(S + (k + r) * stride + j + c * W, p[r][c]);
    const auto row = [&](int i) __attribute__((always_inline)) {
      T *s = S + i * stride + j, *factor = S + i * stride + k;
      V a[C];
#pragma GCC unroll 16
      for (int c = 0; c < C; ++c) a[c] = only(load<V>(s + c * W), keep[c]);
#pragma GCC unroll 16
      for (int r = 0; r < kPivots; ++r) {
        const T f = factor[r];
#pragma GCC unroll 16
        for (int c = 0; c < C; ++c) a[c] -= f * p[r][c];
      }
#pragma GCC unroll 16
      for (int c = 0; c < C; ++c) store(s + c * W, a[c]);
    };
    int i = k + kPivots;
    if (ahead && i < rows) {
      for (; i < k + 2 * kPivots; ++i) row(i);
      ahead->set(S + (k + kPivots) * stride + k + kPivots, stride, signs...);
    }
    for (; i < rows; ++i) row(i);
    for (i = 0; i < k; ++i) row(i);
  }

  FASTPARAM_INLINE void set_diagonal(const PivotInverse<T>& pivots, int k) const {
#pragma GCC unroll 16
    for (int r = 0; r < kPivots; ++r) S[(k + r) * stride + k + r] = pivots.delta[r];
  }

  // All columns form one tile of C vectors.
  template <int C, class... Signs>
  FASTPARAM_INLINE void invert_narrow(Signs... signs) {
    PivotInverse<T> now, ahead;
    ahead.set(S, stride, signs...);
    for (int k = 0; k < rows; k += kPivots) {
      now = ahead;
      next.tick();
      tile<C>(now, k, 0, &ahead, signs + (k + kPivots)...);
      if (sizeof...(signs) == 0) set_diagonal(now, k);
    }
  }

  // Goes by tiles. The tile that contains the columns of the pivots is last, because the others need them.
  template <class... Signs>
  FASTPARAM_INLINE void invert_wide(int width, Signs... signs) {
    PivotInverse<T> pivots;
    const int tiles = (width + kTile * W - 1) / (kTile * W);
    for (int k = 0; k < rows; k += kPivots) {
      next.tick();
      pivots.set(S + k * stride + k, stride, signs + k...);
      for (int t = 1; t <= tiles; ++t) {
        const int j = (k / (kTile * W) + t) % tiles * (kTile * W);
        switch ((width - j) / W) {
          case 1: tile<1>(pivots, k, j, nullptr); break;
          case 2: tile<2>(pivots, k, j, nullptr); break;
          case 3: tile<kTile == 2 ? 2 : 3>(pivots, k, j, nullptr); break;
          default: tile<kTile>(pivots, k, j, nullptr);
        }
      }
      if (sizeof...(signs) == 0) set_diagonal(pivots, k);
    }
  }

  // With signs, S becomes (diag(signs) + S)^-1.
  template <class... Signs>
  FASTPARAM_INLINE void invert(int width, Signs... signs) {
    if (width > kTile * W) return invert_wide(width, signs...);
    switch (width / W) {
      case 1: return invert_narrow<1>(signs...);
      case 2: return invert_narrow<2>(signs...);
      case 3: return invert_narrow<kTile == 2 ? 2 : 3>(signs...);
      default: return invert_narrow<kTile>(signs...);
    }
  }
};

}  // namespace fastparam::cpu
