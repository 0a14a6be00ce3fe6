// Tiny matrices, side by side: as many as a vector has lanes, with element (i, j) of all of them in one
// vector.
#pragma once

#include <algorithm>
#include <cstring>

#include "prefetch.h"

namespace fastparam::cpu {

constexpr int kLargestLanes = 32;  // the largest order

// The order of the matrices, which the compiler knows unless N is 0.
template <int N>
struct LaneOrder {
  // odd, because rows of whole kilobytes would use few sets of the L1 cache
  static constexpr int stride_of(int n) { return n > 8 ? n | 1 : n; }
  static constexpr int n = N, stride = stride_of(N);
  FASTPARAM_INLINE explicit LaneOrder(int64_t) {}
};
template <>
struct LaneOrder<0> {
  const int n, stride;
  FASTPARAM_INLINE explicit LaneOrder(int64_t n)
      : n(static_cast<int>(n)),
        stride(LaneOrder<1>::stride_of(this->n)) {}
};

// Runs Body<T, N> for matrices of order n. Loops of a known length are 1.1 to 1.2 times as fast for order 8.
template <template <class, int> class Body, class T, class... A>
void run_lanes_of(int64_t n, A... a) {
  if constexpr (std::is_same_v<T, float>)
    if (n == 8) return run_simd<Body<T, 8>>(a...);
  run_simd<Body<T, 0>>(a...);
}

template <class T, int Bytes, int N>
struct SideBySide : LaneOrder<N> {
  using LaneOrder<N>::n, LaneOrder<N>::stride;
  static constexpr int L = Bytes / sizeof(T);
  static constexpr int kColumns = Bytes == 64 ? 4 : 2;  // of a tile, which has at most 4 x 4 registers
  using V = Vec<T, L>;

  // The vectors of the entries, in memory order: of all entries, of those above the diagonal, and of one per
  // column.
  int32_t place[kLargestLanes * kLargestLanes], packed_place[kLargestLanes * kLargestLanes / 2];
  int32_t column_place[kLargestLanes];

  FASTPARAM_INLINE explicit SideBySide(int64_t order) : LaneOrder<N>(order) {
    int e = 0, packed = 0;
    for (int i = 0; i < n; ++i) {
      column_place[i] = i;
      for (int j = 0; j < n; ++j) {
        place[e++] = i * stride + j;
        if (j > i) packed_place[packed++] = i * stride + j;
      }
    }
  }

  // ---- in and out: tiles of L entries of L matrices, transposed. The last tile overlaps the previous one.

  // x: `live` matrices of `size` entries, one after the other; the last one is repeated to fill L lanes. F:
  // factors of the columns, for whole matrices, or null.
  FASTPARAM_INLINE void gather(const T* x, int size, int live, const int32_t* place, V* S,
                               const V* F = nullptr) const {
    T few[L * L + L];
    if (size < L) {  // vectors would read beyond the end of a matrix
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

  // F: factors of the columns, for whole matrices; otherwise all factors are equal.
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
          store(p + l * size, t[l]);  // values beyond the end of a matrix are overwritten by the next one
    }
    if (size < L) std::memcpy(y, few, live * size * sizeof(T));
  }

  // ---- products

  // I x J elements of O = A B, or A^T B if Transposed. With Add, the product is added to O.
  template <bool Transposed, bool Add, int I, int J>
  FASTPARAM_INLINE void product_tile(const V* A, const V* B, V* O, int i, int j) const {
    V sum[I][J] = {};
    if constexpr (Add)
#pragma GCC unroll 16
      for (int r = 0; r < I; ++r)
#pragma GCC unroll 16
        for (int c = 0; c < J; ++c) sum[r][c] = O[(i + r) * stride + j + c];
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

  template <bool Transposed, bool Add = false>
  FASTPARAM_INLINE void product(const V* A, const V* B, V* O, Prefetch& next) const {
    constexpr int I = kColumns, J = 4;
    int i = 0;
    for (; i + I <= n; i += I) {
      next.tick();
      int j = 0;
      for (; j + J <= n; j += J) product_tile<Transposed, Add, I, J>(A, B, O, i, j);
      for (; j < n; ++j) product_tile<Transposed, Add, I, 1>(A, B, O, i, j);
    }
    for (; i < n; ++i) {
      int j = 0;
      for (; j + J <= n; j += J) product_tile<Transposed, Add, 1, J>(A, B, O, i, j);
      for (; j < n; ++j) product_tile<Transposed, Add, 1, 1>(A, B, O, i, j);
    }
  }
};

}  // namespace fastparam::cpu
