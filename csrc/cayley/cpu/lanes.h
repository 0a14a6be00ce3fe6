// Tiny matrices: as many side by side as a vector has lanes, element (i, j) of all in one vector.
#pragma once

#include "../../core/cpu/dense/prefetch.h"
#include "../guard.h"
#include "call.h"
#include "signs.h"

namespace fastparam::cpu {

constexpr int kLargestLanes = 32;  // orders up to this can be served

// Factors of the columns of order n, repeated to the width of the widest vector.
template <class T>
constexpr int64_t factors_of(int64_t n) {
  return n + 64 / static_cast<int64_t>(sizeof(T));
}

template <class T, int Bytes>
struct Lanes {
  static constexpr int L = Bytes / sizeof(T);
  // A step eliminates 4 pivots in 4 (2) columns at once: 4 x 4 registers.
  static constexpr int kPivots = 4, kColumns = Bytes == 64 ? 4 : 2;
  using V = Vec<T, L>;
  using Mask = MaskOf<T, L>;

  const int n;
  const int stride = n > 8 ? n | 1 : n;  // odd: one of whole kilobytes would use few sets of the first cache
  // Of the entries, in memory's order; of what columns have one of.
  int32_t place[kLargestLanes * kLargestLanes], packed_place[kLargestLanes * kLargestLanes / 2];
  int32_t column_place[kLargestLanes];

  FASTPARAM_INLINE explicit Lanes(int64_t n) : n(static_cast<int>(n)) {
    int e = 0, packed = 0;
    for (int i = 0; i < this->n; ++i) {
      column_place[i] = i;
      for (int j = 0; j < this->n; ++j) {
        place[e++] = i * stride + j;
        if (j > i) packed_place[packed++] = i * stride + j;
      }
    }
  }

  // ---- in and out: tiles of L entries of L matrices, transposed. The last tile overlaps the one before.

  // x: `live` matrices of `size` entries, one after the other. What they lack to L repeats the last. F: of
  // whole matrices, factors of the columns, or null.
  FASTPARAM_INLINE void gather(const T* x, int size, int live, const int32_t* place, V* S,
                               const V* F = nullptr) const {
    T few[L * L + L];
    if (size < L) {  // vectors reach over the end of a matrix
      std::memcpy(few, x, live * size * sizeof(T));
      x = few;
    }
    for (int e = 0; e < size; e += L) {
      const int first = std::max(0, std::min(e, size - L));
      const T* p = x + first;
      V t[L];
      if (live == L) {
#pragma GCC unroll 16
        for (int l = 0; l < L; ++l) t[l] = load<V>(p + l * size);
      } else {
#pragma GCC unroll 16
        for (int l = 0; l < L; ++l) t[l] = load<V>(p + std::min(l, live - 1) * size);
      }
      transpose<T, L>(t);
      const V* const factors = F ? F + first % n : nullptr;
      if (first + L <= size) {
#pragma GCC unroll 16
        for (int l = 0; l < L; ++l) S[place[first + l]] = F ? t[l] * factors[l] : t[l];
      } else {
#pragma GCC unroll 16
        for (int l = 0; l < L; ++l)
          if (l < size) S[place[l]] = F ? t[l] * factors[l] : t[l];
      }
    }
  }

  // F: of whole matrices, factors of the columns; otherwise all are the first.
  FASTPARAM_INLINE void scatter(const V* S, const V* F, int size, int live, const int32_t* place,
                                T* y) const {
    T few[L * L + L];
    T* const to = size < L ? few : y;
    for (int e = 0; e < size; e += L) {
      const int first = std::max(0, std::min(e, size - L));
      const V* const factors = F + first % n;
      V t[L];
#pragma GCC unroll 16
      for (int l = 0; l < L; ++l) t[l] = S[place[std::min(first + l, size - 1)]] * factors[l];
      transpose<T, L>(t);
      T* p = to + first;
#pragma GCC unroll 16
      for (int l = 0; l < L; ++l)
        if (l < live)
          store(p + l * size, t[l]);  // what reaches over the end of a matrix is written again with the next
    }
    if (size < L) std::memcpy(y, few, live * size * sizeof(T));
  }

  // ---- elimination

  template <int R>
  static FASTPARAM_INLINE void invert(V (&d)[R][R]) {
#pragma GCC unroll 16
    for (int p = 0; p < R; ++p) {
      const V inverse = T(1) / d[p][p];
      d[p][p] = T(1) - V{};
#pragma GCC unroll 16
      for (int j = 0; j < R; ++j) d[p][j] *= inverse;
#pragma GCC unroll 16
      for (int i = 0; i < R; ++i) {
        if (i == p) continue;
        const V c = d[i][p];
        d[i][p] = V{};
#pragma GCC unroll 16
        for (int j = 0; j < R; ++j) d[i][j] -= c * d[p][j];
      }
    }
  }

  template <class F>
  FASTPARAM_INLINE void other_rows(int k, int pivots, const F& f) const {
    for (int i = 0; i < k; ++i) f(i);
    for (int i = k + pivots; i < n; ++i) f(i);
  }

  // Columns j, ..., j + C - 1, away from the pivots k, ..., k + R - 1: the pivot rows times D, and all others
  // less their share of them.
  template <int R, int C>
  FASTPARAM_INLINE void eliminate(V* S, const V (&D)[R][R], int k, int j) const {
    V p[R][C];
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 16
      for (int c = 0; c < C; ++c) {
        p[r][c] = D[r][0] * S[k * stride + j + c];
#pragma GCC unroll 16
        for (int q = 1; q < R; ++q) p[r][c] += D[r][q] * S[(k + q) * stride + j + c];
      }
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 16
      for (int c = 0; c < C; ++c) S[(k + r) * stride + j + c] = p[r][c];
    other_rows(k, R, [&](int i) __attribute__((always_inline)) {
      V *s = S + i * stride + j, *factor = S + i * stride + k;
      V a[C];
#pragma GCC unroll 16
      for (int c = 0; c < C; ++c) a[c] = s[c];
#pragma GCC unroll 16
      for (int r = 0; r < R; ++r)
#pragma GCC unroll 16
        for (int c = 0; c < C; ++c) a[c] -= factor[r] * p[r][c];
#pragma GCC unroll 16
      for (int c = 0; c < C; ++c) s[c] = a[c];
    });
  }

  // The pivot columns themselves: -S D, and D - I = -D S on the diagonal.
  template <int R>
  FASTPARAM_INLINE void finish(V* S, const V (&D)[R][R], int k) const {
    other_rows(k, R, [&](int i) __attribute__((always_inline)) {
      V* s = S + i * stride + k;
      V a[R];
#pragma GCC unroll 16
      for (int c = 0; c < R; ++c) {
        a[c] = -s[0] * D[0][c];
#pragma GCC unroll 16
        for (int r = 1; r < R; ++r) a[c] -= s[r] * D[r][c];
      }
#pragma GCC unroll 16
      for (int c = 0; c < R; ++c) s[c] = a[c];
    });
    V delta[R];
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) {
      delta[r] = -D[r][0] * S[k * stride + k + r];
#pragma GCC unroll 16
      for (int q = 1; q < R; ++q) delta[r] -= D[r][q] * S[(k + q) * stride + k + r];
    }
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 16
      for (int q = 0; q < R; ++q) S[(k + r) * stride + k + q] = r == q ? delta[r] : D[r][q];
  }

  template <int R>
  FASTPARAM_INLINE void step(V* S, int k) const {
    V D[R][R];
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 16
      for (int q = 0; q < R; ++q)
        D[r][q] = r == q ? S[(k + r) * stride + k + q] + T(1) : S[(k + r) * stride + k + q];
    invert<R>(D);
    for (int side = 0; side < 2; ++side) {
      int j = side == 0 ? 0 : k + R;
      const int end = side == 0 ? k : n;
      for (; j + kColumns <= end; j += kColumns) eliminate<R, kColumns>(S, D, k, j);
      for (; j < end; ++j) eliminate<R, 1>(S, D, k, j);
    }
    finish<R>(S, D, k);
  }

  // ---- forward

  FASTPARAM_INLINE void mirror(V* S, T alpha, bool lower) const {
    for (int i = 0; i < n; ++i) {
      S[i * stride + i] = V{};
      for (int j = i + 1; j < n; ++j) {
        V &upper = S[i * stride + j], &below = S[j * stride + i];
        const V x = (lower ? below : upper) * alpha;
        upper = lower ? -x : x;
        below = lower ? x : -x;
      }
    }
  }

  // Lanes in which the sum of squares of each column is `centre` within the tolerance.
  FASTPARAM_INLINE Mask columns_near(const V* S, T centre, T tolerance) const {
    Mask ok = ~Mask{};
    int j = 0;
    const auto check = [&](const V& sum) __attribute__((always_inline)) {
      const V off = sum - centre;
      ok &= (off <= tolerance) & (off >= -tolerance);
    };
    for (; j + 4 <= n; j += 4) {
      V sum[4] = {};
      for (int i = 0; i < n; ++i)
#pragma GCC unroll 16
        for (int c = 0; c < 4; ++c) sum[c] += S[i * stride + j + c] * S[i * stride + j + c];
#pragma GCC unroll 16
      for (int c = 0; c < 4; ++c) check(sum[c]);
    }
    for (; j < n; ++j) {
      V sum{};
      for (int i = 0; i < n; ++i) sum += S[i * stride + j] * S[i * stride + j];
      check(sum);
    }
    return ok;
  }

  // As many factors as any tile of entries takes: +-scale by the signs of `live` matrices.
  FASTPARAM_INLINE void fill_factors(T scale, const T* signs, int live, V* F) const {
    if (signs) gather(signs, n, live, column_place, F);
    for (int j = 0; j < n; ++j) F[j] = signs ? flipped(V{} + scale, flips_of<T, L>(F[j])) : V{} + scale;
    for (int j = n; j < n + L; ++j) F[j] = F[j - n];
  }

  // scratch: S, and twice n + L vectors.
  FASTPARAM_INLINE void forward(const CayleyCall<T>& call, int64_t begin, int64_t end, V* S) {
    const int size = static_cast<int>(call.entries());
    const int32_t* const taken = call.layout == Layout::packed ? packed_place : place;
    V *const twos = S + n * stride, *const factors = twos + n + L;
    fill_factors(T(2), nullptr, L, twos);
    for (int64_t m = begin; m < end; m += L) {
      const int live = static_cast<int>(std::min<int64_t>(L, end - m));
      gather(call.in + m * size, size, live, taken, S);
      mirror(S, static_cast<T>(call.alpha), call.layout == Layout::lower);
      Mask ok = columns_near(S, T(0), static_cast<T>(kLargestSquares));
      const T* const following = call.in + (m + live) * size;
      Prefetch next(following, following, call.out + m * n * n, live * n * n * sizeof(T),
                    (n + kPivots - 1) / kPivots);
      int k = 0;
      for (; k + kPivots <= n; k += kPivots) {
        next.tick();
        step<kPivots>(S, k);
      }
      for (; k < n; ++k) step<1>(S, k);
      for (int i = 0; i < n; ++i) S[i * stride + i] += T(0.5);
      ok &= columns_near(S, T(0.25), column_tolerance<T>(n) / 4);
      for (int l = 0; l < live; ++l) call.failed[m + l] = ok[l] == 0;
      const bool negative = call.signs && any_negative<T, L>(call.signs_of(m), live * n);
      if (negative) fill_factors(T(2), call.signs_of(m), live, factors);
      scatter(S, negative ? factors : twos, n * n, live, place, call.out + m * n * n);
    }
  }

  // ---- products

  // I x J elements of O = A B, or A^T B.
  template <bool Transposed, int I, int J>
  FASTPARAM_INLINE void product_tile(const V* A, const V* B, V* O, int i, int j) const {
    V sum[I][J] = {};
    for (int k = 0; k < n; ++k) {
      V b[J];
#pragma GCC unroll 16
      for (int c = 0; c < J; ++c) b[c] = B[k * stride + j + c];
#pragma GCC unroll 16
      for (int r = 0; r < I; ++r) {
        const V a = Transposed ? A[k * stride + i + r] : A[(i + r) * stride + k];
#pragma GCC unroll 16
        for (int c = 0; c < J; ++c) sum[r][c] += a * b[c];
      }
    }
#pragma GCC unroll 16
    for (int r = 0; r < I; ++r)
#pragma GCC unroll 16
      for (int c = 0; c < J; ++c) O[(i + r) * stride + j + c] = sum[r][c];
  }

  template <bool Transposed>
  FASTPARAM_INLINE void product(const V* A, const V* B, V* O, Prefetch& next) const {
    constexpr int I = kColumns, J = 4;
    int i = 0;
    for (; i + I <= n; i += I) {
      next.tick();
      int j = 0;
      for (; j + J <= n; j += J) product_tile<Transposed, I, J>(A, B, O, i, j);
      for (; j < n; ++j) product_tile<Transposed, I, 1>(A, B, O, i, j);
    }
    for (; i < n; ++i) {
      int j = 0;
      for (; j + J <= n; j += J) product_tile<Transposed, 1, J>(A, B, O, i, j);
      for (; j < n; ++j) product_tile<Transposed, 1, 1>(A, B, O, i, j);
    }
  }
};

template <class T>
struct LanesForward {
  template <int Bytes>
  static FASTPARAM_INLINE void run(const CayleyCall<T>* call, int64_t begin, int64_t end, void* scratch) {
    using L = Lanes<T, Bytes>;
    L(call->n).forward(*call, begin, end, static_cast<typename L::V*>(scratch));
  }
};

}  // namespace fastparam::cpu
