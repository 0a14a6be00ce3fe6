// Shared by the Cayley kernels: how A is given, the guard, and wide accesses.
//
// Q = (I + aA)^-1 (I - aA) = 2 M - I with M = (I + aA)^-1. Every kernel stores D = M - I ("delta"), and
// throughout the elimination the diagonal holds its difference from 1, which keeps small A accurate. With D
// = (I + aA) - I stored, every row of a step on pivot k, including the pivot row, follows one formula: f =
// D_ik, v = D_k / (1 + D_kk), D_ij -= f v_j, D_ik = -f / (1 + D_kk). For a skew A no pivot is below 1, so no
// rows are exchanged. The guard detects the loss of accuracy that this can cause.
#pragma once
#include "../../core/cuda/common.cuh"
#include "../guard.h"
#include "../layout.h"

namespace fastparam::cuda {

template <class A>
constexpr A kEpsilon = sizeof(A) == 4 ? A(1.1920929e-07) : A(2.220446049250313e-16);
// Nearly the largest finite value.
template <class A>
constexpr A kLargest = sizeof(A) == 4 ? A(3e38) : A(1.7e308);

// The guard (guard.h): the largest sum of squares of a row of aA, and the tolerance for a column of Q.
template <class A>
struct Limits {
  A row = A(kLargestSquares), column = A(kColumnTolerance) * kEpsilon<A>;

  static Limits of(int n) { return {A(kLargestSquares), column_tolerance<A>(n)}; }
  // For orders above those of a block: the limit of the tolerance, which depends on the rows of aA.
  static Limits of_large() { return {kLargest<A>, A(kLargestRowTolerance) * kEpsilon<A>}; }
  __device__ __forceinline__ Limits for_rows(A mean) const {
    const A tolerance = (A(kRowTolerance) + A(kToleranceOfSize) * mean) * kEpsilon<A>;
    return {row, tolerance < column ? tolerance : column};  // NaN takes the limit
  }
  __device__ __forceinline__ bool row_is_small(A squares) const { return squares <= row; }
  __device__ __forceinline__ bool is_unit(A squares) const {
    return squares - A(1) <= column && A(1) - squares <= column;
  }
};

__device__ __forceinline__ bool is_given(Layout layout, int r, int c) {
  return layout >= Layout::whole || (layout == Layout::lower ? r > c : r < c);
}
// The position of (r, c), r < c, among the entries above the diagonal.
__device__ __forceinline__ long long packed_place(int n, int r, int c) {
  return static_cast<long long>(r) * (2LL * n - r - 3) / 2 - 1 + c;
}

// A batch of matrices X, from which A is computed.
template <class T>
struct Given {
  const T* data;
  long long batch_stride, row_stride;
  int n;
  Layout layout;
  acc_t<T> alpha;
  const acc_t<T>* signs = nullptr;  // D, n per matrix, or null for none

  // Returns whether column c of Q is negated.
  __device__ __forceinline__ bool flips(long long b, int c) const {
    return signs != nullptr && signs[b * n + c] < acc_t<T>(0);
  }
  __device__ __forceinline__ const T* matrix(long long b) const { return data + b * batch_stride; }
  __device__ __forceinline__ bool has(int r, int c) const { return is_given(layout, r, c); }
  __device__ __forceinline__ long long place(int r, int c) const {
    return layout == Layout::packed ? packed_place(n, r, c) : r * row_stride + c;
  }
  // Any element of aA, in double.
  __device__ __forceinline__ double element(const T* x, int r, int c) const {
    const double a = static_cast<double>(alpha);
    if (has(r, c)) return a * static_cast<double>(static_cast<acc_t<T>>(x[place(r, c)]));
    return r == c ? 0 : -a * static_cast<double>(static_cast<acc_t<T>>(x[place(c, r)]));
  }
};

// The bits of a flag: the matrix must be computed again; it has an element that is not finite; it is not
// skew.
constexpr unsigned kFailed = 1, kNotFinite = 2, kNotSkew = 4;

// Reads aA of one matrix, as a whole, into stage[S::at(r, c)], with 0 outside of `order`, which is n, or 0
// for a group of lanes without a matrix. The layout is decided once, outside of the loop, because for small
// matrices the decision costs more than the load.
template <class S, int Lanes, bool Whole, bool Packed, class T, class A>
__device__ __forceinline__ void stage_elements(const Given<T>& given, const T* __restrict__ x, A* stage,
                                               int order, int lane) {
  const bool lower = given.layout == Layout::lower;
#pragma unroll 8
  for (int e = lane; e < S::N * S::N; e += Lanes) {
    const int r = e / S::N, c = e % S::N;
    if (!Whole && r == c) stage[S::at(r, c)] = A(0);
    if (!Whole && (Packed || !lower ? r >= c : r <= c)) continue;
    const long long place = Packed ? r * (2 * given.n - r - 3) / 2 - 1 + c : r * given.row_stride + c;
    const A a = r < order && c < order ? given.alpha * static_cast<A>(x[place]) : A(0);
    stage[S::at(r, c)] = a;
    if (!Whole) stage[S::at(c, r)] = -a;
  }
}
template <class S, int Lanes, class T, class A>
__device__ __forceinline__ void stage_matrix(const Given<T>& given, const T* x, A* stage, int order,
                                             int lane) {
  if (given.layout >= Layout::whole) stage_elements<S, Lanes, true, false>(given, x, stage, order, lane);
  else if (given.layout == Layout::packed)
    stage_elements<S, Lanes, false, true>(given, x, stage, order, lane);
  else stage_elements<S, Lanes, false, false>(given, x, stage, order, lane);
}

// The largest candidate for a pivot; among equals, the first row. A NaN wins, and so propagates.
template <class A>
struct Candidate {
  A size = A(-1);
  int row = 0;

  __device__ __forceinline__ Candidate() {}
  __device__ __forceinline__ Candidate(A value, int row) : row(row) {
    const A positive = value < A(0) ? -value : value;
    size = positive < kLargest<A> ? positive : kLargest<A>;
  }
  __device__ __forceinline__ void take(A other, int other_row) {
    if (other > size || (other == size && other_row < row)) {
      size = other;
      row = other_row;
    }
  }
  __device__ __forceinline__ void take(const Candidate& other) { take(other.size, other.row); }
  __device__ __forceinline__ void among_lanes(int lanes) {
    for (int bits = lanes / 2; bits > 0; bits /= 2) {
      const A other = __shfl_xor_sync(kWholeWarp, size, bits);
      const int other_row = __shfl_xor_sync(kWholeWarp, row, bits);
      take(other, other_row);
    }
  }
};

}  // namespace fastparam::cuda
