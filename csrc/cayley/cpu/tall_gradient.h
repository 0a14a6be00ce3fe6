// The gradient of tall.h. With P = 2 W = Q1 D + I, and with G D in place of G,
//   L = P^T (G1 - B^T G2),  N = L P^T,   dA1 = -(a/2) (N - N^T),   dB = -a G2 P^T - (a/2) B (N + N^T).
// W is read from the output if the columns of X are small. Otherwise it is recomputed from X, because it
// is lost in the rounding of Q1.
#pragma once

#include "tall.h"

namespace fastparam::cpu {

template <class T, class In>
struct TallBackward {
  Tall<T, In> t;   // O: G2 D; S: W - I, then -a P^T
  Square<T> P, N;  // P, then -(a/2) (N + N^T)
  T* D;            // dB

  static int64_t scratch_bytes(const TallCall<In>& call) {
    const int64_t lines = 2 * (call.k + 4) + Tall<T, In>::rows_of(call);
    return Tall<T, In>::scratch_bytes(call) + lines * largest_stride(call.k + 4) * sizeof(T);
  }
  TallBackward(const TallCall<In>& call, int64_t m, void* scratch) : t(call, m, scratch), P(t.S), N(t.S) {
    P.S = t.rest + block_scratch(call.k + 4);
    N.S = P.row(P.rows);
    D = N.row(N.rows);
  }
};

// Reads P from the output.
template <class T, class In>
struct TallOutputBody {
  template <int Bytes>
  static FASTPARAM_INLINE void run(const TallBackward<T, In>* b) {
    const auto& call = b->t.call;
    read_rows<T, Bytes / sizeof(T)>(call, call.Q, b->t.m, 0, call.k, T(1), call.signs_of(b->t.m), b->P.S,
                                    b->P.stride);
    for (int64_t i = 0; i < call.k; ++i) b->P.row(i)[i] += 1;
  }
};
// Computes P from W - I.
template <class T, class In>
struct TallInverseBody {
  template <int Bytes>
  static FASTPARAM_INLINE void run(const TallBackward<T, In>* b) {
    constexpr int W = Bytes / sizeof(T);
    for (int64_t i = 0; i < b->t.call.k; ++i) {
      for (int64_t j = 0; j < b->P.width; j += W)
        store(b->P.row(i) + j, load<Vec<T, W>>(b->t.S.row(i) + j) * T(2));
      b->P.row(i)[i] += 2;
    }
  }
};

// Computes G2 D.
template <class T, class In>
struct TallGradientLoadBody {
  template <int Bytes>
  static FASTPARAM_INLINE void run(const TallBackward<T, In>* b, int64_t begin, int64_t end) {
    const auto& t = b->t;
    for (int64_t task = begin; task < end; ++task) {
      const int64_t first = task * kTallRows, last = std::min(first + kTallRows, t.rows());
      read_rows<T, Bytes / sizeof(T)>(t.call, t.call.G, t.m, t.call.k + first, t.call.k + last, T(1),
                                      t.call.signs_of(t.m), t.O + first * t.S.stride, t.S.stride);
    }
  }
};

// Computes B^T G2 in `gram`, by groups of rows and strips of columns.
template <class T, class In>
struct TallCrossBody {
  template <int Bytes>
  static FASTPARAM_INLINE void run(const TallBackward<T, In>* b, int64_t begin, int64_t end) {
    const auto& t = b->t;
    const int64_t stride = t.S.stride, strips = strips_of(t.S.width);
    for (int64_t task = begin; task < end; ++task) {
      const int64_t group = task / strips, j = task % strips * kStrip;
      const int64_t first = group * kGramRows, depth = std::min(kGramRows, t.rows() - first);
      multiply<T, Bytes, true>(t.B + first * stride, stride, t.O + first * stride + j, stride,
                               t.gram + group * t.S.rows * stride + j, stride, t.call.k, depth,
                               std::min<int64_t>(kStrip, t.S.width - j), false);
    }
  }
};

// The part of order k: computes N, then -a P^T in S and -(a/2) (N + N^T) in P, and writes dA1.
template <class T, class In>
struct TallSmallBody {
  template <int Bytes>
  static FASTPARAM_INLINE void run(const TallBackward<T, In>* b) {
    constexpr int W = Bytes / sizeof(T);
    const auto& t = b->t;
    const auto &P = b->P, &N = b->N;
    const auto& call = t.call;
    const int64_t k = call.k, stride = P.stride, groups = Tall<T, In>::groups_of(call);
    T* const R = t.gram;  // G1 - B^T G2
    read_rows<T, W>(call, call.G, t.m, 0, k, T(1), call.signs_of(t.m), N.S, stride);
    for (int64_t i = 0; i < k; ++i)
      for (int64_t j = 0; j < P.width; j += W) {
        auto r = load<Vec<T, W>>(N.row(i) + j);
        for (int64_t group = 0; group < groups; ++group)
          r -= load<Vec<T, W>>(t.gram + (group * t.S.rows + i) * stride + j);
        store(R + i * stride + j, r);
      }
    for (int64_t i = 0; i < k; ++i)
      for (int64_t j = 0; j < k; ++j) t.S.row(i)[j] = P.row(j)[i];
    multiply<T, Bytes, true>(P.S, stride, R, stride, N.S, stride, k, k, P.width, false);  // L
    std::memcpy(R, N.S, k * stride * sizeof(T));
    multiply<T, Bytes, false>(R, stride, t.S.S, stride, N.S, stride, k, k, P.width, false);  // N
    const T a = static_cast<T>(call.alpha);
    for (int64_t i = 0; i < k; ++i)
      for (int64_t j = 0; j < k; ++j) {
        t.S.row(i)[j] *= -a;
        P.row(i)[j] = (N.row(i)[j] + N.row(j)[i]) * (-a / 2);
      }
    for (int64_t i = 0; i < k; ++i)  // dA1 = U^T - U with U = N, in the given triangle
      for (int64_t j = 0; j < k; ++j) {
        const bool given = call.lower ? i > j : i < j;
        R[i * stride + j] = given ? (N.row(j)[i] - N.row(i)[j]) * (a / 2) : T(0);
      }
    write_rows<T, W>(call, t.m, 0, k, static_cast<const In*>(nullptr), R, stride);
  }
};

// Computes dB.
template <class T, class In>
struct TallGradientBody {
  template <int Bytes>
  static FASTPARAM_INLINE void run(const TallBackward<T, In>* b, int64_t begin, int64_t end) {
    const auto& t = b->t;
    const int64_t stride = t.S.stride, width = t.S.width, k = t.call.k;
    for (int64_t task = begin; task < end; ++task) {
      const int64_t first = task * kTallRows, rows = std::min(first + kTallRows, t.rows()) - first;
      T* const D = b->D + first * stride;
      multiply<T, Bytes, false>(t.O + first * stride, stride, t.S.S, stride, D, stride, rows, k, width,
                                false);
      multiply<T, Bytes, false>(t.B + first * stride, stride, b->P.S, stride, D, stride, rows, k, width,
                                true);
      write_rows<T, Bytes / sizeof(T)>(t.call, t.m, k + first, k + first + rows,
                                       static_cast<const In*>(nullptr), D, stride);
    }
  }
};

// Returns whether the guard holds for X, as in tall_forward.
template <class T, class In>
bool tall_backward(const TallCall<In>& call, int64_t m, void* scratch) {
  const TallBackward<T, In> b(call, m, scratch);
  const auto& t = b.t;
  load_tall(t);
  if (std::is_same_v<T, In>) {
    if (!is_small(t)) return false;
    run_simd<TallOutputBody<T, In>>(&b);
  } else {
    if (!(invert_gram(t) <= kLargestGradientGram)) return false;
    run_simd<TallInverseBody<T, In>>(&b);
  }
  run_tasks<TallGradientLoadBody<T, In>>(call.shared(), t.tasks(), &b);
  run_tasks<TallCrossBody<T, In>>(call.shared(), Tall<T, In>::groups_of(call) * strips_of(t.S.width), &b);
  run_simd<TallSmallBody<T, In>>(&b);
  run_tasks<TallGradientBody<T, In>>(call.shared(), t.tasks(), &b);
  return true;
}

}  // namespace fastparam::cpu
