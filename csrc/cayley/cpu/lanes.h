// Elimination of matrices side by side.
#pragma once

#include "../../core/cpu/dense/lanes.h"
#include "../guard.h"
#include "call.h"
#include "signs.h"

namespace fastparam::cpu {

// The number of factors of the columns of order n, repeated up to the width of the widest vector.
template <class T>
constexpr int64_t factors_of(int64_t n) {
  return n + 64 / static_cast<int64_t>(sizeof(T));
}

template <class T, int Bytes, int N>
struct Lanes : SideBySide<T, Bytes, N> {
  using Base = SideBySide<T, Bytes, N>;
  using Base::column_place, Base::gather, Base::kColumns, Base::L, Base::n, Base::packed_place, Base::place,
      Base::scatter, Base::stride;
  using typename Base::V;
  using Mask = MaskOf<T, L>;
  static constexpr int kPivots = 4;  // a step eliminates this many pivots in kColumns columns at once

  FASTPARAM_INLINE explicit Lanes(int64_t order) : Base(order) {}

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

  // Updates the columns j, ..., j + C - 1, which do not contain the pivots k, ..., k + R - 1: the pivot rows
  // are multiplied by D, and their share is subtracted from all other rows.
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

  // Updates the pivot columns: -S D, and D - I = -D S in the diagonal block.
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

  // The lanes in which every column has a sum of squares equal to `centre` within the tolerance.
  FASTPARAM_INLINE Mask columns_near(const V* S, T centre, T tolerance) const {
    Mask ok = ~Mask{};
    int j = 0;
    const auto check = [&](const V& sum) __attribute__((always_inline)) {
      ok &= at_most<T, L>(sum - centre, tolerance - V{});
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

  // Fills F with +-scale by the signs of `live` matrices, repeated so that every tile of entries finds its
  // factors.
  FASTPARAM_INLINE void fill_factors(T scale, const T* signs, int live, V* F) const {
    if (signs) gather(signs, n, live, column_place, F);
    for (int j = 0; j < n; ++j) F[j] = signs ? flipped(V{} + scale, flips_of<T, L>(F[j])) : V{} + scale;
    for (int j = n; j < n + L; ++j) F[j] = F[j - n];
  }

  // `S` is the work space: the matrices, and 2 (n + L) vectors.
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
};

template <class T, int N>
struct LanesForward {
  template <int Bytes>
  static FASTPARAM_INLINE void run(const CayleyCall<T>* call, int64_t begin, int64_t end, void* scratch) {
    using L = Lanes<T, Bytes, N>;
    L(call->n).forward(*call, begin, end, static_cast<typename L::V*>(scratch));
  }
};

}  // namespace fastparam::cpu
