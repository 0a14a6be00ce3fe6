// A tile of a product, computed by a block. Panels of both factors pass through shared memory, and the next
// panels are loaded while the block works on the current ones.
#pragma once
#include "../../core/cuda/common.cuh"

namespace fastparam::cuda {

// A tile of N x N, with 4 x 4 entries per thread. With panels of depth N / 4, each thread loads four adjacent
// entries of each factor.
template <class A, int N_>
struct TileShape {
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

// acc += left right, for matrices of order `width`, a multiple of kDepth. The tile begins at (row, column),
// and may extend beyond the matrix.
template <class S, class A>
__device__ __forceinline__ void multiply(A (&acc)[4][4], const A* left, const A* right, int width, int row,
                                         int column, typename S::Shared& shared) {
  constexpr int kFours = S::kDepth / 4;
  const int l_row = threadIdx.x / kFours, l_k = threadIdx.x % kFours * 4, r_k = threadIdx.x / S::kSide;
  const int y = S::row(), x = S::column();
  const bool l_exists = row + l_row < width, r_exists = column + x < width;
  left += static_cast<long long>(row + l_row) * width + l_k;
  right += static_cast<long long>(r_k) * width + column + x;
  Four<A> l = {}, r = {};
  if (l_exists) l = load4(left);
  if (r_exists) r = load4(right);
#pragma unroll 1
  for (int left_over = width; left_over > 0; left_over -= S::kDepth) {
    __syncthreads();  // the previous panels have been used
#pragma unroll
    for (int u = 0; u < 4; ++u) shared.left[l_k + u][l_row] = l.v[u];
    store4(&shared.right[r_k][x], r);
    __syncthreads();
    left += S::kDepth;
    right += static_cast<long long>(S::kDepth) * width;
    if (l_exists && left_over > S::kDepth) l = load4(left);
    if (r_exists && left_over > S::kDepth) r = load4(right);
#pragma unroll(sizeof(A) == 8 ? 1 : 8)
    for (int d = 0; d < S::kDepth; ++d) {
      const Four<A> a = load4(&shared.left[d][y]), b = load4(&shared.right[d][x]);
#pragma unroll
      for (int i = 0; i < 4; ++i)
#pragma unroll
        for (int w = 0; w < 4; ++w) acc[i][w] += a.v[i] * b.v[w];
    }
  }
}

}  // namespace fastparam::cuda
