// The gradient of the Cayley map from its output alone: P = Q D + I, T = (G D)^T P, U = P T, dA = -(a / 2)
// U^T. Both products read the right operand by rows. There is one group of threads per matrix: a part of a
// warp up to n = 32, and a block above. Each thread holds a kTr x kTc tile of the product in registers.
#pragma once
#include "given.cuh"

namespace fastparam::cuda {

// Writes the gradient: a contiguous dA or, for triangles, dA_ij - dA_ji in the given triangle and 0 in the
// other one.
template <class T>
struct Gradient {
  T* data;
  int n;
  Layout layout;
  acc_t<T> alpha;

  __device__ __forceinline__ T* matrix(long long b) const {
    const long long square = static_cast<long long>(n) * n;
    return data + b * (layout == Layout::packed ? (square - n) / 2 : square);
  }
  // Writes the elements (r, c) and (c, r) of P^T G P^T to the matrix d.
  __device__ __forceinline__ void put(T* d, int r, int c, acc_t<T> here, acc_t<T> there) const {
    using A = acc_t<T>;
    const A scale = A(-0.5) * alpha;
    const bool given = is_given(layout, r, c);
    const T value = static_cast<T>(layout == Layout::whole ? scale * here
                                   : given                 ? scale * (here - there)
                                                           : A(0));
    if (layout != Layout::packed) d[static_cast<long long>(r) * n + c] = value;
    else if (given) d[packed_place(n, r, c)] = value;
  }
};

template <class A, int N_>
struct BackwardShape {
  static constexpr int N = N_;
  static constexpr int kTr = N > 32 ? 8 : N == 24 ? 3 : N >= 16 ? 4 : N / 4;
  static constexpr int kTc = N == 4 ? 4 : 8;
  // The rows are y + kY r, and the columns 4 (x + kX c) .. + 3, so that reads have no bank conflicts.
  static constexpr int kY = N / kTr, kX = N / kTc;
  static constexpr bool kWarp = N <= 32;
  static constexpr int kLanes = kWarp ? ceil_pow2(kY * kX) : round_up(kY * kX, 32);
  static constexpr int kThreads = kWarp ? 128 : kLanes;
  static constexpr int kBlocks = 65536 / (kThreads * (sizeof(A) == 4 ? 128 : 255));  // per SM, by registers
  static constexpr int kMatrices = kThreads / kLanes;                                // per block
  static constexpr int kLd = N + 4;
  static constexpr int kWords = 2 * N * kLd + (N == 16 ? 8 : 4);  // the groups of a warp use different banks
  static constexpr int kSharedBytes = kMatrices * kWords * static_cast<int>(sizeof(A));
};

// acc[r][c] = sum over k of left(row r, k) * right(k, column c), where left(i, k) = left[i * row_step +
// k * k_step].
template <class S, class A>
__device__ __forceinline__ void tile_product(A (&acc)[S::kTr][S::kTc], const A* left, int row_step,
                                             int k_step, const A* right, int y, int x) {
#pragma unroll
  for (int r = 0; r < S::kTr; ++r)
#pragma unroll
    for (int c = 0; c < S::kTc; ++c) acc[r][c] = A(0);
#pragma unroll 2
  for (int k = 0; k < S::N; ++k) {
    A l[S::kTr];
#pragma unroll
    for (int r = 0; r < S::kTr; ++r) l[r] = left[(y + S::kY * r) * row_step + k * k_step];
#pragma unroll
    for (int c = 0; c < S::kTc; c += 4) {
      const Four<A> v = load4(right + k * S::kLd + c * S::kX + 4 * x);
#pragma unroll
      for (int r = 0; r < S::kTr; ++r)
#pragma unroll
        for (int u = 0; u < 4; ++u) acc[r][c + u] += l[r] * v.v[u];
    }
  }
}

template <class S, class A>
__device__ __forceinline__ void store_tile(const A (&acc)[S::kTr][S::kTc], A* to, int y, int x) {
#pragma unroll
  for (int r = 0; r < S::kTr; ++r)
#pragma unroll
    for (int c = 0; c < S::kTc; c += 4)
      store4(to + (y + S::kY * r) * S::kLd + c * S::kX + 4 * x,
             Four<A>{{acc[r][c], acc[r][c + 1], acc[r][c + 2], acc[r][c + 3]}});
}

template <class S>
__device__ __forceinline__ void group_barrier() {
  if (S::kWarp) __syncwarp();
  else __syncthreads();
}

// Of Q and G, only the addresses, the strides and n are used, and the signs of Q.
template <class T, int N>
__global__ void __launch_bounds__(BackwardShape<acc_t<T>, N>::kThreads, BackwardShape<acc_t<T>, N>::kBlocks)
    cayley_gradient(const Given<T> Q, const Given<T> G, const Gradient<T> gradient, long long batch) {
  using A = acc_t<T>;
  using S = BackwardShape<A, N>;
  const int lane = threadIdx.x % S::kLanes, group = threadIdx.x / S::kLanes;
  const long long matrix = static_cast<long long>(blockIdx.x) * S::kMatrices + group;
  const int order = matrix < batch ? gradient.n : 0;
  const T *const from_q = Q.matrix(matrix < batch ? matrix : 0), *const from_g =
                                                                     G.matrix(matrix < batch ? matrix : 0);
  A* const p = dynamic_shared<A>() + group * S::kWords;
  A* const g = p + N * S::kLd;
  T* const d = gradient.matrix(matrix);
  const bool active = lane < S::kY * S::kX;
  const int y = active ? tile_row<S, A>(lane) : 0, x = active ? lane % S::kX : 0;

#pragma unroll 4
  for (int e = lane; e < N * N; e += S::kLanes) {
    const int r = e / N, c = e % N;
    const bool inside = r < order && c < order;
    const A q = inside ? static_cast<A>(from_q[r * Q.row_stride + c]) : A(0);
    const A v = inside ? static_cast<A>(from_g[r * G.row_stride + c]) : A(0);
    const bool flip = inside && Q.flips(matrix, c);
    p[r * S::kLd + c] = (flip ? -q : q) + (inside && r == c ? A(1) : A(0));
    g[r * S::kLd + c] = flip ? -v : v;
  }
  group_barrier<S>();
  A acc[S::kTr][S::kTc];
  tile_product<S>(acc, g, 1, S::kLd, p, y, x);
  group_barrier<S>();
  if (active) store_tile<S>(acc, g, y, x);  // T replaces G
  group_barrier<S>();
  tile_product<S>(acc, p, S::kLd, 1, g, y, x);
  group_barrier<S>();
  if (active) store_tile<S>(acc, g, y, x);  // U replaces T
  group_barrier<S>();
#pragma unroll 4
  for (int e = lane; e < N * N; e += S::kLanes) {
    const int r = e / N, c = e % N;
    if (r < order && c < order) gradient.put(d, r, c, g[c * S::kLd + r], g[r * S::kLd + c]);
  }
}

}  // namespace fastparam::cuda
