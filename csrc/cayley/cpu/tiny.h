// Matrices of order 2 to 4, side by side in the lanes of a vector, in registers: the map in closed form.
//
// For a skew A of order 4, let s be the sum of the squares of its entries above the diagonal, p its
// Pfaffian, and A* its dual (A*_12 = A_34, A*_13 = -A_24, A*_14 = A_23, ...). Then A^3 = -s A + p A*, and
// therefore
//   (I + A)^-1 = ((1 + s) I + A^2 - A - p A*) / (1 + s + p^2).
// For smaller orders p = 0. The denominator is at least 1, so the result of a matrix within the guard needs
// no check.
#pragma once

#include "../../core/cpu/dense/tiny.h"
#include "../guard.h"
#include "call.h"
#include "signs.h"

namespace fastparam::cpu {

template <class T, int N, int Bytes>
struct Tiny : TinyTriangle<T, N, Bytes> {
  using Triangle = TinyTriangle<T, N, Bytes>;
  using Triangle::kHalf, Triangle::L, Triangle::place;
  using typename Triangle::V;
  using Mask = MaskOf<T, L>;

  // Reads aA above the diagonal.
  static FASTPARAM_INLINE void read_skew(const CayleyCall<T>& call, int64_t m, int live, V (&a)[kHalf]) {
    const T *const x = call.in + m * call.entries(), *const end = call.in + call.batch * call.entries();
    const T alpha = static_cast<T>(call.layout == Layout::lower ? -call.alpha : call.alpha);
    if (call.layout == Layout::packed) Columns<T, Bytes, kHalf>::read(x, end, live, a);
    else Triangle::read(x, end, live, call.layout == Layout::lower, a);
#pragma GCC unroll 16
    for (int e = 0; e < kHalf; ++e) a[e] *= alpha;
  }

  // Negates columns. Does nothing if none of the signs of these matrices is negative.
  template <int Count>
  static FASTPARAM_INLINE void put_signs(const T* signs, const T* end, int live,
                                         V* const (&matrices)[Count]) {
    if (!any_negative<T, L>(signs, live * N)) return;
    V s[N];
    Columns<T, Bytes, N>::read(signs, end, live, s);
#pragma GCC unroll 16
    for (int i = 0; i < N; ++i)
#pragma GCC unroll 16
      for (int j = 0; j < N; ++j)
        for (V* matrix : matrices) matrix[i * N + j] = flipped(matrix[i * N + j], flips_of<T, L>(s[j]));
  }

  static FASTPARAM_INLINE void forward(const CayleyCall<T>& call, int64_t begin, int64_t end) {
    for (int64_t m = begin; m < end; m += L) {
      const int live = static_cast<int>(std::min<int64_t>(L, end - m));
      V a[kHalf], q[N * N];
      read_skew(call, m, live, a);
      const auto at = [&](int i, int j) __attribute__((always_inline)) {
        return i == j ? V{} : i < j ? a[place(i, j)] : -a[place(j, i)];
      };
      V squares[N];
      V s{};
      Mask ok = ~Mask{};
#pragma GCC unroll 16
      for (int j = 0; j < N; ++j) {
        squares[j] = V{};
#pragma GCC unroll 16
        for (int i = 0; i < N; ++i)
          if (i != j) squares[j] += at(i, j) * at(i, j);
        s += squares[j];
        ok &= at_most<T, L>(squares[j], static_cast<T>(kLargestSquares) - V{});
      }
      s *= T(0.5);
      V p{};
      if constexpr (N == 4) p = a[0] * a[5] - a[1] * a[4] + a[2] * a[3];
      const V pp = p * p, scale = T(2) / (T(1) + s + pp);
#pragma GCC unroll 16
      for (int i = 0; i < N; ++i) {
        q[i * N + i] = T(1) - scale * (squares[i] + pp);
#pragma GCC unroll 16
        for (int j = i + 1; j < N; ++j) {
          V even{}, odd = at(i, j);
#pragma GCC unroll 16
          for (int k = 0; k < N; ++k)
            if (k != i && k != j) even += at(i, k) * at(k, j);
          if constexpr (N == 4)
            odd += p * (place(i, j) == 1 || place(i, j) == 4 ? -a[5 - place(i, j)] : a[5 - place(i, j)]);
          q[i * N + j] = scale * (even - odd);
          q[j * N + i] = scale * (even + odd);
        }
      }
      for (int l = 0; l < live; ++l) call.failed[m + l] = ok[l] == 0;
      if (call.signs) put_signs(call.signs_of(m), call.signs_of(call.batch), live, {q});
      Columns<T, Bytes, N * N>::write(q, live, call.out + m * N * N);
    }
  }

  // U = P (G^T P), with P = Q D + I and with G D in place of G.
  static FASTPARAM_INLINE void gradient(V (&P)[N * N], V (&G)[N * N], V (&U)[N * N]) {
    V R[N * N];
#pragma GCC unroll 16
    for (int i = 0; i < N; ++i) P[i * N + i] += T(1);
#pragma GCC unroll 16
    for (int i = 0; i < N; ++i)
#pragma GCC unroll 16
      for (int j = 0; j < N; ++j) {
        R[i * N + j] = G[i] * P[j];
#pragma GCC unroll 16
        for (int k = 1; k < N; ++k) R[i * N + j] += G[k * N + i] * P[k * N + j];
      }
#pragma GCC unroll 16
    for (int i = 0; i < N; ++i)
#pragma GCC unroll 16
      for (int j = 0; j < N; ++j) {
        U[i * N + j] = P[i * N] * R[j];
#pragma GCC unroll 16
        for (int k = 1; k < N; ++k) U[i * N + j] += P[i * N + k] * R[k * N + j];
      }
  }

  static FASTPARAM_INLINE void backward(const CayleyGradient<T>& call, int64_t begin, int64_t end) {
    constexpr int kSize = N * N;
    const T scale = static_cast<T>(-call.alpha / 2);
    for (int64_t m = begin; m < end; m += L) {
      const int live = static_cast<int>(std::min<int64_t>(L, end - m));
      V P[kSize], G[kSize], U[kSize], D[kSize], half[kHalf];
      Columns<T, Bytes, kSize>::read(call.Q + m * kSize, call.Q + call.batch * kSize, live, P);
      Columns<T, Bytes, kSize>::read(call.G + m * kSize, call.G + call.batch * kSize, live, G);
      if (call.signs) put_signs(call.signs_of(m), call.signs_of(call.batch), live, {P, G});
      gradient(P, G, U);
      if (call.layout == Layout::whole) {
#pragma GCC unroll 16
        for (int i = 0; i < N; ++i)
#pragma GCC unroll 16
          for (int j = 0; j < N; ++j) D[i * N + j] = U[j * N + i] * scale;
        Columns<T, Bytes, kSize>::write(D, live, call.out + m * kSize);
        continue;
      }
#pragma GCC unroll 16
      for (int i = 0; i < N; ++i)
#pragma GCC unroll 16
        for (int j = i + 1; j < N; ++j) half[place(i, j)] = (U[j * N + i] - U[i * N + j]) * scale;
      if (call.layout == Layout::packed) {
        Columns<T, Bytes, kHalf>::write(half, live, call.out + m * kHalf);
        continue;
      }
      const bool lower = call.layout == Layout::lower;
      if (lower)
#pragma GCC unroll 16
        for (int e = 0; e < kHalf; ++e) half[e] = -half[e];
      Triangle::write(half, live, lower, call.out + m * kSize);
    }
  }
};

// With 64 bytes, orders below 4 would be slower.
template <class T, int N, int Bytes>
using TinyOf = Tiny<T, N, (N < 4 ? std::min(Bytes, 32) : Bytes)>;

template <class T, int N>
struct TinyForward {
  template <int Bytes>
  static FASTPARAM_INLINE void run(const CayleyCall<T>* call, int64_t begin, int64_t end) {
    TinyOf<T, N, Bytes>::forward(*call, begin, end);
  }
};
template <class T, int N>
struct TinyBackward {
  template <int Bytes>
  static FASTPARAM_INLINE void run(const CayleyGradient<T>* call, int64_t begin, int64_t end) {
    TinyOf<T, N, Bytes>::backward(*call, begin, end);
  }
};

// Calls Body<T, n> for n = 2, 3 or 4.
template <template <class, int> class Body, class T, class Call>
void run_tiny(const Call& call, int64_t begin, int64_t end) {
  switch (call.n) {
    case 2: return run_simd<Body<T, 2>>(&call, begin, end);
    case 3: return run_simd<Body<T, 3>>(&call, begin, end);
    default: return run_simd<Body<T, 4>>(&call, begin, end);
  }
}

}  // namespace fastparam::cpu
