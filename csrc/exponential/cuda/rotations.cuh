// The closed forms of rotations.h and of order 1, with a thread per matrix.
#pragma once
#include "../rotations.h"
#include "batch.cuh"

namespace fastparam::cuda {

constexpr int kRotations = 128;  // threads per block

template <class A>
struct ThreadMath {
  using T = A;
  using V = A;

  // pi / 2 in two parts. A product with the first one is not rounded before it is subtracted, and the
  // difference is exact.
  static constexpr A kFirst = sizeof(A) == 4 ? A(0x1.921fb6p+0) : A(0x1.921fb54442d18p+0);
  static constexpr A kSecond = sizeof(A) == 4 ? A(-0x1.777a5cp-25) : A(0x1.1a62633145c07p-54);
  // Up to angles of 2^(kLargestAngle + 2), the number of quarters is exact.
  static constexpr int kLargestAngle = sizeof(A) == 4 ? 20 : 48;

  static __device__ __forceinline__ A root(A x) { return sqrt(x); }
  static __device__ __forceinline__ A below_one(A t, A a, A b) { return t < A(1) ? a : b; }
  static __device__ __forceinline__ int divide(A r, A& x) {
    const A quarters = rint(r * A(0.63661977236758134308));
    x = fma(-quarters, kSecond, fma(-quarters, kFirst, r));
    return static_cast<int>(static_cast<long long>(quarters) & 3);
  }
  static __device__ __forceinline__ void turn(int k, A even, A odd, A& c, A& s) {
    c = (k & 1) != 0 ? odd : even, s = (k & 1) != 0 ? even : odd;
    if (((k + 1) & 2) != 0) c = -c;
    if ((k & 2) != 0) s = -s;
  }
};

// Matrices of order 1.
template <class T>
__global__ void __launch_bounds__(kRotations) exponential_numbers(const Batch<T> batch) {
  using A = acc_t<T>;
  const long long matrix = static_cast<long long>(blockIdx.x) * kRotations + threadIdx.x;
  if (matrix >= batch.count) return;
  const A x = batch.element(batch.X + matrix, 0, 0);
  A y = exp(x) + (x - x);  // NaN if x is not finite
  if (batch.G != nullptr) y = batch.is_given(0, 0) ? y * static_cast<A>(batch.G[matrix]) : A(0);
  batch.out[matrix] = static_cast<T>(y);
}

template <class T, int N>
__global__ void __launch_bounds__(kRotations) exponential_rotations(const Batch<T> batch) {
  using A = acc_t<T>;
  using Math = ThreadMath<A>;
  using Path = Rotation<N, Math>;
  const long long matrix = static_cast<long long>(blockIdx.x) * kRotations + threadIdx.x;
  if (matrix >= batch.count) return;
  const long long first = matrix * N * N;
  const bool dual = batch.G != nullptr;
  A a[Path::kHalf], largest = A(0);
  bool finite = true;
#pragma unroll
  for (int i = 0; i < N; ++i)
#pragma unroll
    for (int j = i + 1; j < N; ++j) {
      const A x = batch.element(batch.X + first, i, j), size = x < A(0) ? -x : x;
      a[Path::place(i, j)] = dual ? -x : x;  // of A, where `element` is of A^T
      finite = finite && is_finite(x);
      largest = size > largest ? size : largest;
    }
  // Larger angles have no correct digit. They are halved, so that the result is a rotation in any case.
  const int halvings = finite && largest > A(0) ? larger(0, ilogb(largest) - Math::kLargestAngle) : 0;
#pragma unroll
  for (A& x : a) x = finite ? x * half_to<A>(halvings) : A(0);
  T* const out = batch.out + first;
  if (!dual) {
    A Q[N * N];
    Path::of(a, nullptr, Q, nullptr);
#pragma unroll
    for (int e = 0; e < N * N; ++e) out[e] = static_cast<T>(finite ? Q[e] : A(NAN));
    return;
  }
  A G[N * N], g[Path::kHalf];
#pragma unroll
  for (int e = 0; e < N * N; ++e) G[e] = static_cast<A>(batch.G[first + e]);
  Path::of(a, G, nullptr, g);
#pragma unroll
  for (int i = 0; i < N; ++i)
#pragma unroll
    for (int j = 0; j < N; ++j) {
      A y = A(0);
      if (batch.is_given(i, j))
        y = !finite ? A(NAN) : batch.lower ? -g[Path::place(j, i)] : g[Path::place(i, j)];
      out[i * N + j] = static_cast<T>(y);
    }
}

}  // namespace fastparam::cuda
