// The Cayley map of matrices too large for one block: the O(n^2) steps around the matrix products of the
// library (cayley_large_cuda.cu). For rows and columns K of D, about 128 at a time:
//   W = (I + D_KK)^-1 - I                                              (cayley_block)
//   C = D_:K, and R = D_K: without D_KK; then D_:K = -C and D_KK = W   (split_panels)
//   D_K: += W R, and D -= C D_K: in all other rows                     (products)
// This is the step of gauss_jordan, which replaces D by M - I.
//
// The guard is that of guard.h for large orders: it checks the rows of Q, because rows are read in order. A
// matrix that fails is first improved by refine, and if that does not succeed, computed again by
// repeat_pivoted.
#pragma once
#include "../../core/cuda/tiles.cuh"
#include "gradient.cuh"

namespace fastparam::cuda {

// D = aA, contiguous. Flags a whole matrix that is not exactly skew.
template <class T>
__global__ void __launch_bounds__(kBlock)
    spread(const Given<T> given, acc_t<T>* __restrict__ D, unsigned* flags) {
  using A = acc_t<T>;
  __shared__ A tile[kSquare][kSquare + 1];
  const TilePair pair(given.n, given.layout == Layout::lower);
  const int n = given.n;
  const bool whole = given.layout == Layout::whole;
  const T* const x = given.matrix(pair.matrix);
  A* const d = D + static_cast<long long>(pair.matrix) * n * n;
#pragma unroll
  for (int i = pair.y; i < kSquare; i += kSquareRows) {
    const int r = pair.row + i, c = pair.column + pair.x;
    if (r >= n || c >= n || !given.has(r, c)) continue;
    tile[i][pair.x] = given.alpha * static_cast<A>(x[given.place(r, c)]);
    d[static_cast<long long>(r) * n + c] = tile[i][pair.x];
  }
  __syncthreads();
  bool skew = true;
#pragma unroll
  for (int i = pair.y; i < kSquare; i += kSquareRows) {
    const int r = pair.column + i, c = pair.row + pair.x;
    if (r >= n || c >= n || (!whole && given.has(r, c))) continue;
    A value = r == c ? A(0) : -tile[pair.x][i];
    if (whole) {
      const A here = given.alpha * static_cast<A>(x[given.place(r, c)]);
      skew = skew && here == -tile[pair.x][i];
      value = here;
    }
    d[static_cast<long long>(r) * n + c] = value;
  }
  if (!skew) atomicOr(flags + pair.matrix, kFailed | kNotSkew);
}

// Returns the sum over a warp, in every lane.
template <class A>
__device__ __forceinline__ A warp_sum(A x) {
  for (int bits = 16; bits > 0; bits /= 2) x += __shfl_xor_sync(kWholeWarp, x, bits);
  return x;
}

// The sum of squares of each row. One warp per row.
template <class A>
__global__ void __launch_bounds__(kBlock)
    measure_rows(const A* __restrict__ D, A* __restrict__ sizes, long long rows, int n) {
  const long long row = static_cast<long long>(blockIdx.x) * (kBlock / 32) + threadIdx.x / 32;
  if (row >= rows) return;
  A squares = A(0);
#pragma unroll 4
  for (int j = threadIdx.x % 32; j < n; j += 32) squares += D[row * n + j] * D[row * n + j];
  squares = warp_sum(squares);
  if (threadIdx.x % 32 == 0) sizes[row] = squares;
}

// Q = 2 D + I with the signs of `given`; Q may be D, or null if only the check is wanted. Flags the matrices
// with a row whose norm is not 1. `sizes` are those of the rows of aA. One warp per row.
template <class T>
__global__ void __launch_bounds__(kBlock)
    finish(const Given<T> given, const acc_t<T>* D, T* Q, const acc_t<T>* __restrict__ sizes, unsigned* flags,
           long long rows, Limits<acc_t<T>> limits) {
  using A = acc_t<T>;
  const int n = given.n;
  const long long row = static_cast<long long>(blockIdx.x) * (kBlock / 32) + threadIdx.x / 32;
  if (row >= rows) return;
  const int i = static_cast<int>(row % n);
  A squares = A(0), of_all = A(0);
#pragma unroll 4
  for (int j = threadIdx.x % 32; j < n; j += 32) {
    const A q = A(2) * D[row * n + j] + (i == j ? A(1) : A(0));
    squares += q * q;
    of_all += sizes[row - i + j];
    if (Q != nullptr) Q[row * n + j] = static_cast<T>(given.flips(row / n, j) ? -q : q);
  }
  const A mean = sqrt(warp_sum(of_all) / static_cast<A>(n));
  if (!limits.for_rows(mean).is_unit(warp_sum(squares))) atomicOr(flags + row / n, kFailed);
}

// With K the rows or columns [first, first + width), copies D_:K to C (n x width), and D_K: to R (width x n)
// with 0 in place of D_KK. Leaves -C in D_:K and W in D_KK.
template <class A>
__global__ void __launch_bounds__(kBlock)
    split_panels(A* __restrict__ D, const A* __restrict__ W, A* __restrict__ C, A* __restrict__ R,
                 long long batch, int n, int first, int width) {
  const long long e = static_cast<long long>(blockIdx.x) * kBlock + threadIdx.x,
                  size = static_cast<long long>(n) * width;
  const long long matrix = e / size;
  if (matrix >= batch) return;
  A* const d = D + matrix * n * n;
  const int k = static_cast<int>(e - matrix * size);  // n width < 2^31
  const int ci = k / width, cj = k - ci * width, ri = k / n, rj = k - ri * n;
  A& column = d[static_cast<long long>(ci) * n + first + cj];
  C[e] = column;
  column = ci >= first && ci < first + width ? W[(matrix * width + ci - first) * width + cj] : -column;
  R[e] = rj >= first && rj < first + width ? A(0) : d[static_cast<long long>(first + ri) * n + rj];
}

// ---- backward ---------------------------------------------------------------------------------------------

// P = Q D + I, contiguous.
template <class T>
__global__ void __launch_bounds__(kBlock)
    add_identity(const Given<T> Q, acc_t<T>* __restrict__ P, long long batch) {
  using A = acc_t<T>;
  const long long e = static_cast<long long>(blockIdx.x) * kBlock + threadIdx.x,
                  size = static_cast<long long>(Q.n) * Q.n;
  const long long matrix = e / size;
  if (matrix >= batch) return;
  const long long k = e - matrix * size, r = k / Q.n, c = k - r * Q.n;
  const A q = static_cast<A>(Q.matrix(matrix)[r * Q.row_stride + c]);
  P[e] = (Q.flips(matrix, static_cast<int>(c)) ? -q : q) + (r == c ? A(1) : A(0));
}

// Writes the gradient from Z = P^T G D P^T.
template <class T>
__global__ void __launch_bounds__(kBlock)
    project(const acc_t<T>* __restrict__ Z, const Gradient<T> gradient) {
  using A = acc_t<T>;
  __shared__ A given[kSquare][kSquare + 1], mirrored[kSquare][kSquare + 1];
  const TilePair pair(gradient.n, false);
  const int n = gradient.n;
  const A* const z = Z + static_cast<long long>(pair.matrix) * n * n;
  T* const d = gradient.matrix(pair.matrix);
#pragma unroll
  for (int i = pair.y; i < kSquare; i += kSquareRows) {
    if (pair.row + i < n && pair.column + pair.x < n)
      given[i][pair.x] = z[static_cast<long long>(pair.row + i) * n + pair.column + pair.x];
    if (pair.column + i < n && pair.row + pair.x < n)
      mirrored[i][pair.x] = z[static_cast<long long>(pair.column + i) * n + pair.row + pair.x];
  }
  __syncthreads();
#pragma unroll
  for (int i = pair.y; i < kSquare; i += kSquareRows) {
    if (pair.row + i < n && pair.column + pair.x < n)
      gradient.put(d, pair.row + i, pair.column + pair.x, given[i][pair.x], mirrored[pair.x][i]);
    if (pair.row != pair.column && pair.column + i < n && pair.row + pair.x < n)
      gradient.put(d, pair.column + i, pair.row + pair.x, mirrored[i][pair.x], given[pair.x][i]);
  }
}

}  // namespace fastparam::cuda
