// Matrices one at a time, rows in vectors: elimination with four pivots at once, and the products of blocks.
#pragma once

#include "cayley.h"

namespace fastparam::cpu {

constexpr int kPivots = 4;

// ---- 4 x 4 pivots ------------------------------------------------------------------------------------------------------------------

// D = (I + S)^-1 and delta = the diagonal of D - I = -D S, of the 4 x 4 block S, by its 2 x 2 blocks.
template <class T>
struct PivotInverse {
  T D[kPivots][kPivots], delta[kPivots];

  FASTPARAM_INLINE void set(const T* S, int64_t stride) {
    const auto s = [&](int r, int c) __attribute__((always_inline)) { return S[r * stride + c]; };
    const auto plus = [&](int r) __attribute__((always_inline)) { return s(r, r) + T(1); };
    // F = the inverse of the first block, then the Schur complement [p q; r t] of the second
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

// ---- elimination -------------------------------------------------------------------------------------------------------------------

// S, `rows` x `rows` (a multiple of 4) with whole vectors of columns, becomes (I + S)^-1 - I.
template <class T, int Bytes>
struct Rows {
  static constexpr int W = Bytes / sizeof(T), kTile = Bytes == 64 ? 4 : 2;  // columns of a tile, in vectors
  using V = Vec<T, W>;
  using Mask = Vec<MaskElement<T>, W>;

  T* S;
  int rows, stride;

  // One step, for the columns j, ..., j + C * W - 1. With `ahead` it has the next pivots inverted as soon as they are there.
  template <int C>
  FASTPARAM_INLINE void tile(const PivotInverse<T>& pivots, int k, int j, PivotInverse<T>* ahead) const {
    V p[kPivots][C];
    Mask keep[C];  // all columns but the pivots', which count as those of I
    for (int c = 0; c < C; ++c) {
      const int at = k - j - c * W;
      keep[c] = all_but_four<T, W>(at);
      V s[kPivots];
      for (int r = 0; r < kPivots; ++r) {
        s[r] = only(load<V>(S + (k + r) * stride + j + c * W), keep[c]) + unit<T, W>(at < 0 ? -1 : at + r);
      }
      for (int r = 0; r < kPivots; ++r)
        p[r][c] = pivots.D[r][0] * s[0] + pivots.D[r][1] * s[1] + pivots.D[r][2] * s[2] + pivots.D[r][3] * s[3];
    }
    for (int r = 0; r < kPivots; ++r)
      for (int c = 0; c < C; ++c) store(S + (k + r) * stride + j + c * W, p[r][c]);
    const auto row = [&](int i) __attribute__((always_inline)) {
      T *s = S + i * stride + j, *factor = S + i * stride + k;
      V a[C];
      for (int c = 0; c < C; ++c) a[c] = only(load<V>(s + c * W), keep[c]);
      for (int r = 0; r < kPivots; ++r) {
        const T f = factor[r];
        for (int c = 0; c < C; ++c) a[c] -= f * p[r][c];
      }
      for (int c = 0; c < C; ++c) store(s + c * W, a[c]);
    };
    int i = k + kPivots;
    if (ahead && i < rows) {
      for (; i < k + 2 * kPivots; ++i) row(i);
      ahead->set(S + (k + kPivots) * stride + k + kPivots, stride);
    }
    for (int above = 0; above < k; ++above) row(above);
    for (; i < rows; ++i) row(i);
  }

  FASTPARAM_INLINE void set_diagonal(const PivotInverse<T>& pivots, int k) const {
    for (int r = 0; r < kPivots; ++r) S[(k + r) * stride + k + r] = pivots.delta[r];
  }

  // All columns in one tile of C vectors.
  template <int C>
  FASTPARAM_INLINE void invert_narrow() const {
    PivotInverse<T> now, next;
    next.set(S, stride);
    for (int k = 0; k < rows; k += kPivots) {
      now = next;
      tile<C>(now, k, 0, &next);
      set_diagonal(now, k);
    }
  }

  // By tiles, the one that holds the pivots' columns last: the others need them.
  FASTPARAM_INLINE void invert_wide(int width) const {
    PivotInverse<T> pivots;
    const int tiles = (width + kTile * W - 1) / (kTile * W);
    for (int k = 0; k < rows; k += kPivots) {
      pivots.set(S + k * stride + k, stride);
      for (int t = 1; t <= tiles; ++t) {
        const int j = (k / (kTile * W) + t) % tiles * (kTile * W);
        switch ((width - j) / W) {
          case 1: tile<1>(pivots, k, j, nullptr); break;
          case 2: tile<2>(pivots, k, j, nullptr); break;
          case 3: tile<kTile == 2 ? 2 : 3>(pivots, k, j, nullptr); break;
          default: tile<kTile>(pivots, k, j, nullptr);
        }
      }
      set_diagonal(pivots, k);
    }
  }

  FASTPARAM_INLINE void invert(int width) const {
    if (width > kTile * W) return invert_wide(width);
    switch (width / W) {
      case 1: return invert_narrow<1>();
      case 2: return invert_narrow<2>();
      case 3: return invert_narrow<kTile == 2 ? 2 : 3>();
      default: return invert_narrow<kTile>();
    }
  }
};

// ---- columns -----------------------------------------------------------------------------------------------------------------------

// Whether the sum of squares of each of the columns j, ..., j + C * W - 1 of S, those below n, is `centre` within the tolerance.
template <class T, int W, int C>
FASTPARAM_INLINE bool columns_near(const T* S, int64_t stride, int64_t n, int64_t j, T centre, T tolerance) {
  using V = Vec<T, W>;
  V sum[2][C] = {};
  int64_t i = 0;
  for (; i + 2 <= n; i += 2)
    for (int half = 0; half < 2; ++half)
      for (int c = 0; c < C; ++c) {
        const V s = load<V>(S + (i + half) * stride + j + c * W);
        sum[half][c] += s * s;
      }
  for (; i < n; ++i)
    for (int c = 0; c < C; ++c) {
      const V s = load<V>(S + i * stride + j + c * W);
      sum[0][c] += s * s;
    }
  auto ok = ~Vec<MaskElement<T>, W>{};
  for (int c = 0; c < C; ++c) {
    const V off = sum[0][c] + sum[1][c] - centre;
    const auto beyond = ~first_lanes<T, W>(n - j - c * W);
    ok &= ((off <= tolerance) & (off >= -tolerance)) | beyond;
  }
  return all(ok);
}

template <class T, int W>
FASTPARAM_INLINE bool columns_near(const T* S, int64_t stride, int64_t n, int64_t j, int64_t last, T centre, T tolerance) {
  bool ok = true;
  for (; j + W < last; j += 2 * W) ok &= columns_near<T, W, 2>(S, stride, n, j, centre, tolerance);
  if (j < last) ok &= columns_near<T, W, 1>(S, stride, n, j, centre, tolerance);
  return ok;
}

// ---- forward -----------------------------------------------------------------------------------------------------------------------

// How a matrix of order n lies in a work space: rows to a multiple of 4, columns of whole vectors.
template <class T, int Bytes>
struct Padded {
  static constexpr int W = Bytes / sizeof(T);
  int rows, width, stride;
  FASTPARAM_INLINE explicit Padded(int64_t n)
      : rows(static_cast<int>(n + kPivots - 1) / kPivots * kPivots),
        width((rows + W - 1) / W * W),
        stride(width > 64 ? width + 16 : width) {}
};

// Q = 2 S, whose diagonal holds D + 1/2.
template <class T, int W, class Out>
FASTPARAM_INLINE void write_doubled(const T* S, int64_t stride, int64_t n, Out* Q) {
  using V = Vec<Out, W>;
  const Out* const end = Q + n * n;
  for (int64_t i = 0; i < n; ++i)
    for (int64_t j = 0; j < n; j += W) {
      Out* q = Q + i * n + j;
      const auto s = load<Vec<T, W>>(S + i * stride + j);
      const V v = __builtin_convertvector(s + s, V);
      if (q + W <= end) store(q, v);  // what reaches into the next row is written again with that row
      else std::memcpy(q, &v, std::min<int64_t>(W, n - j) * sizeof(Out));
    }
}

// In: the type of the parameter and of Q. T: the type of the arithmetic. Returns whether the guard holds; if not, nothing is written.
template <class T, class In, int Bytes>
FASTPARAM_INLINE bool rows_forward(const CayleyMap<In>& map, int64_t m, T* S) {
  constexpr int W = Bytes / sizeof(T);
  const Padded<T, Bytes> padded(map.n);
  const SkewTiles<T, W, In> tiles{Source<In>(map, m), S, padded.rows, padded.width, padded.stride, static_cast<T>(map.alpha)};
  for (int r = 0; r < padded.width; r += W) tiles.tile_row(r);
  // Float32 is redone in float64, for which only the result counts.
  if (std::is_same_v<T, In> && !columns_near<T, W>(S, padded.stride, map.n, 0, map.n, T(0), static_cast<T>(kLargestColumn))) return false;
  Rows<T, Bytes>{S, padded.rows, padded.stride}.invert(padded.width);
  for (int64_t i = 0; i < map.n; ++i) S[i * padded.stride + i] += T(0.5);
  if (!columns_near<T, W>(S, padded.stride, map.n, 0, map.n, T(0.25), static_cast<T>(column_tolerance<In>(map.n)) / 4)) return false;
  write_doubled<T, W>(S, padded.stride, map.n, map.out + m * map.n * map.n);
  return true;
}

template <class T>
struct RowsForward {
  template <int Bytes>
  static FASTPARAM_INLINE void run(const CayleyMap<T>* map, int64_t begin, int64_t end, void* scratch) {
    for (int64_t m = begin; m < end; ++m) map->failed[m] = !rows_forward<T, T, Bytes>(*map, m, static_cast<T*>(scratch));
  }
};

// Again in float64, the matrices that failed.
struct RowsAgain {
  template <int Bytes>
  static FASTPARAM_INLINE void run(const CayleyMap<float>* map, int64_t begin, int64_t end, void* scratch) {
    for (int64_t m = begin; m < end; ++m)
      if (map->failed[m]) map->failed[m] = !rows_forward<double, float, Bytes>(*map, m, static_cast<double*>(scratch));
  }
};

}  // namespace fastparam::cpu
