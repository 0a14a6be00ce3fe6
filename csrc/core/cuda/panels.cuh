// A tile of a product, computed by a block. Panels of both factors pass through shared memory, and the next
// panels are loaded while the block works on the current ones.
#pragma once
#include "common.cuh"

namespace fastparam::cuda {

// A tile of N x N, with 4 x 4 entries per thread. With panels of depth N / 4, each thread loads four adjacent
// entries of each factor.
template <class A, int N_>
struct TileShape {
  using Element = A;
  static constexpr int N = N_;
  static constexpr int kSide = N / 4;  // threads along a side
  static constexpr int kThreads = kSide * kSide;
  static constexpr int kDepth = N / 4;
  static constexpr int kBlocks = 512 / kThreads;  // per SM, by registers

  // The shared memory of a block.
  struct Shared {
    alignas(16) A left[kDepth][N + 4];  // transposed
    alignas(16) A right[kDepth][N];
    A parts[kThreads / 32];
  };

  // The position of the thread in a tile.
  static __device__ __forceinline__ int row() { return threadIdx.x / kSide * 4; }
  static __device__ __forceinline__ int column() { return threadIdx.x % kSide * 4; }
};

template <class A>
__device__ __forceinline__ void add_product(A& acc, A a, A b) {
  acc += a * b;
}

// acc += left right, by add_product. left(i, k) returns four adjacent elements of row i of the left tile, and
// right(k, j) of row k of the right one. Their common side, of length `depth`, is padded with zeros to a
// multiple of kDepth.
template <class S, class Sum, class Left, class Right>
__device__ __forceinline__ void multiply(Sum (&acc)[4][4], int depth, const Left& left, const Right& right,
                                         typename S::Shared& shared) {
  using A = typename S::Element;
  constexpr int kFours = S::kDepth / 4;
  const int l_row = threadIdx.x / kFours, l_k = threadIdx.x % kFours * 4, r_k = threadIdx.x / S::kSide;
  const int y = S::row(), x = S::column();
  Four<A> l = left(l_row, l_k), r = right(r_k, x);
#pragma unroll 1
  for (int k = S::kDepth;; k += S::kDepth) {
    __syncthreads();  // the previous panels have been used
#pragma unroll
    for (int u = 0; u < 4; ++u) shared.left[l_k + u][l_row] = l.v[u];
    store4(&shared.right[r_k][x], r);
    __syncthreads();
    if (k < depth) l = left(l_row, k + l_k), r = right(k + r_k, x);
#pragma unroll(sizeof(A) == 8 ? 1 : 8)
    for (int d = 0; d < S::kDepth; ++d) {
      const Four<A> a = load4(&shared.left[d][y]), b = load4(&shared.right[d][x]);
#pragma unroll
      for (int i = 0; i < 4; ++i)
#pragma unroll
        for (int w = 0; w < 4; ++w) add_product(acc[i][w], a.v[i], b.v[w]);
    }
    if (k >= depth) return;
  }
}

}  // namespace fastparam::cuda
