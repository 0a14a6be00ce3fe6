// Code that the exponential kernels share: access to the matrices, and the number of squarings.
#pragma once
#include "../../core/cuda/common.cuh"
#include "program.h"

namespace fastparam::cuda {

// A batch of exponentials or, with directions G, of derivatives. A is X (general) or one triangle of X,
// mirrored. In the second case the derivative is taken at A^T, and becomes the gradient of the triangle. All
// memory is dense. A general X may be given transposed.
template <class T>
struct Batch {
  using A = acc_t<T>;
  const T *X, *G;
  T* out;
  long long count;
  int n;
  Structure structure;
  bool lower, transposed;

  __device__ __forceinline__ bool known() const { return structure != Structure::general; }
  __device__ __forceinline__ bool is_given(int r, int c) const {
    if (!known()) return true;
    return (lower ? r > c : r < c) || (r == c && structure == Structure::symmetric);
  }
  __device__ __forceinline__ long long place(int r, int c) const { return static_cast<long long>(r) * n + c; }
  // Entry (r, c) of A, or of A^T if the derivative is taken there.
  __device__ __forceinline__ A element(const T* x, int r, int c) const {
    const bool given = is_given(r, c);
    if (!given && r == c) return A(0);
    const A a = static_cast<A>(given != transposed ? x[place(r, c)] : x[place(c, r)]);
    return structure == Structure::skew && given == (G != nullptr) ? -a : a;
  }
  // For a symmetric matrix, only the symmetric part of a direction matters.
  __device__ __forceinline__ A direction(const T* g, int r, int c) const {
    const A here = static_cast<A>(g[place(r, c)]);
    if (structure != Structure::symmetric) return here;
    return A(0.5) * (here + static_cast<A>(g[place(c, r)]));
  }
  // The output at (r, c), from the results of the chain at (r, c) and at (c, r).
  __device__ __forceinline__ T result(int r, int c, A here, A there, bool finite) const {
    const bool skew = structure == Structure::skew;
    A value = here;
    if (G == nullptr) {
      if (skew && r == c) value += A(1);
      if (structure == Structure::symmetric && r > c) value = there;
    } else if (known()) {
      if (!is_given(r, c)) return static_cast<T>(A(0));
      if (r != c) value += skew ? -there : there;
    }
    return static_cast<T>(finite ? value : A(NAN));
  }
};

// The number of halvings after which a norm is at most theta, from the sum of squares of the `power`-th
// power. It is 0 if the sum is not finite.
template <class A>
__device__ __forceinline__ int halvings(A squares, A theta, int power) {
  A limit = A(1), step = A(1);
  for (int p = 0; p < 2 * power; ++p) limit *= theta, step *= A(2);
  int count = 0;
  for (; squares > limit && is_finite(squares); limit *= step) ++count;
  return count;
}

// The number of squarings, from the sums of squares of A, A^2, A^3 and, in float64, A^6.
template <class A>
__device__ __forceinline__ int squarings(const A (&squares)[4], Structure structure, A theta) {
  // The singular values of a skew matrix come in pairs.
  const A share = structure == Structure::skew ? A(0.5) : A(1);
  const int second = halvings(share * squares[1], theta, 2), third = halvings(share * squares[2], theta, 3);
  if (structure == Structure::general) return smaller(halvings(squares[0], theta, 1), larger(second, third));
  int s = smaller(second, third);
  if (sizeof(A) == 8) s = smaller(s, halvings(share * squares[3], theta, 6));
  return s;
}
// The number of halvings of A before its powers, after which its entries are below 2^kLargestExponent.
template <class A>
__device__ __forceinline__ int halvings_before(A largest) {
  return largest > A(0) ? larger(0, ilogb(largest) + 1 - kLargestExponent) : 0;
}
template <class A>
__device__ __forceinline__ A half_to(int count) {
  return ldexp(A(1), -count);
}

}  // namespace fastparam::cuda
