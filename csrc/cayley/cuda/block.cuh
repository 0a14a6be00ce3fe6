// The Cayley map for larger matrices, up to order 128 (double: 64), with one block per matrix. The whole
// matrix stays in registers, as an 8 x 8 tile (double: 4 x 4) per thread, and shared memory holds the panels
// of one step. Each step inverts a 16 x 16 diagonal block in one warp (gauss_jordan of warp.cuh) and updates
// every tile with 16 products per element.
//
// The step on rows and columns K is that of gauss_jordan with blocks in place of elements. Let W = (I +
// D_KK)^-1 - I, C = D_:K, and T = D_K: + W D_K:, except that T is W in the columns K. Then D_:K = -C, D_K: =
// 0 and C_K = -I are set, and D -= C T. A matrix that fails the guard is flagged for repeat_pivoted
// (pivoted.cuh).
#pragma once
#include "warp.cuh"

namespace fastparam::cuda {

constexpr int kPanel = 16;

template <class A, int N_>
struct BlockShape {
  static constexpr int N = N_;
  static constexpr int kTile = sizeof(A) == 4 ? 8 : 4;
  static constexpr int kSide = N / kTile;  // threads per side
  static constexpr int kPerPanel = kPanel / kTile;
  static constexpr int kThreads = round_up(kSide * kSide, 32);
  static constexpr int kBlocks = 65536 / (kThreads * (sizeof(A) == 4 ? 128 : 168));  // per SM, by registers
  // 16 bytes are skipped after every 128 bytes of a row, so that eight neighbours that read 16 bytes each,
  // 32 bytes apart, have no bank conflicts.
  static constexpr int kSkip = 16 / sizeof(A), kRun = 128 / sizeof(A);
  static constexpr int kPanelLd = N + (N + kRun - 1) / kRun * kSkip;
  static constexpr int kLd =
      (kPanelLd / kSkip | 1) * kSkip;  // of the stage, which first holds A and finally Q
  static constexpr int kStage = N * kLd;
  // The second attempt also needs the pivot line, column, numbers and ranks.
  static constexpr int kWords = kStage + 4 * N;
  static constexpr int kPanels = 3 * kPanel * kPanelLd + kPanel * kPanel + 3 * kPanel;
  static constexpr int kSharedBytes = larger(kStage, kPanels) * static_cast<int>(sizeof(A));

  static __device__ __forceinline__ int skipping(int j) { return j + j / kRun * kSkip; }
  static __device__ __forceinline__ int at(int r, int c) { return r * kLd + skipping(c); }
  static __device__ __forceinline__ int in_panel(int r, int c) { return r * kPanelLd + skipping(c); }
};

// The panels of one step, stored over the stage: R, the transpose of C, T, and the transpose of W.
template <class S, class A>
struct Panels {
  A *rows, *columns, *scaled, *inverse, *line;
  __device__ explicit Panels(A* memory)
      : rows(memory),
        columns(rows + kPanel * S::kPanelLd),
        scaled(columns + kPanel * S::kPanelLd),
        inverse(scaled + kPanel * S::kPanelLd),
        line(inverse + kPanel * kPanel) {}
};

template <class S>
struct Place {
  int y, x;
  bool active;
  __device__ __forceinline__ Place()
      : y(threadIdx.x / S::kSide),
        x(threadIdx.x % S::kSide),
        active(threadIdx.x < S::kSide * S::kSide) {
    if (!active) y = x = 0;
  }
};

template <class S, class A>
__device__ __forceinline__ void scale_rows(const Panels<S, A>& panels, int step) {
  constexpr int kHalf = S::N / 2;
  for (int item = threadIdx.x; item < 4 * kHalf; item += S::kThreads) {  // 4 rows x 2 columns per thread
    const int i0 = item / kHalf * 4, j0 = item % kHalf;
    A sum[4][2] = {};
#pragma unroll 4
    for (int k = 0; k < kPanel; ++k) {
      const Four<A> w = load4(panels.inverse + k * kPanel + i0);
      const A left = panels.rows[S::in_panel(k, j0)], right = panels.rows[S::in_panel(k, j0 + kHalf)];
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        sum[i][0] += w.v[i] * left;
        sum[i][1] += w.v[i] * right;
      }
    }
#pragma unroll
    for (int i = 0; i < 4; ++i)
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int j = j0 + half * kHalf, at = S::in_panel(i0 + i, j);
        panels.scaled[at] = j / kPanel == step ? panels.inverse[j % kPanel * kPanel + i0 + i]
                                               : panels.rows[at] + sum[i][half];
      }
  }
}

// Computes W of the diagonal block of the step, in the first warp.
template <class S, class A>
__device__ __forceinline__ void invert_diagonal(const Panels<S, A>& panels, int step) {
  // the upper half of the warp repeats the lower half and writes nothing
  const int lane = threadIdx.x % kPanel;
  A d[1][kPanel];
  int rank[1];
#pragma unroll
  for (int j = 0; j < kPanel; j += 4) {
    const Four<A> four = load4(panels.rows + S::in_panel(lane, step * kPanel + j));
#pragma unroll
    for (int u = 0; u < 4; ++u) d[0][j + u] = four.v[u];
  }
  gauss_jordan<false>(d, panels.line, lane, threadIdx.x < kPanel, kPanel, rank, static_cast<int*>(nullptr));
#pragma unroll
  for (int j = 0; j < kPanel; ++j)
    if (threadIdx.x < kPanel) panels.inverse[j * kPanel + lane] = d[0][j];
}

// One step on the tile of the thread.
template <class S, class A>
__device__ __forceinline__ void block_step(A (&a)[S::kTile][S::kTile], const Panels<S, A>& panels, int step,
                                           const Place<S>& place) {
  constexpr int B = S::kTile;
  const int y = place.y, x = place.x;
  const bool in_rows = place.active && y / S::kPerPanel == step,
             in_columns = place.active && x / S::kPerPanel == step;
  const int row = y % S::kPerPanel * B, column = x % S::kPerPanel * B;  // within the panel
#pragma unroll
  for (int c = 0; c < B; c += 4)
#pragma unroll
    for (int r = 0; r < B; ++r)
      if (in_rows)
        store4(panels.rows + S::in_panel(row + r, x * B + c),
               Four<A>{{a[r][c], a[r][c + 1], a[r][c + 2], a[r][c + 3]}});
#pragma unroll
  for (int r = 0; r < B; r += 4)
#pragma unroll
    for (int c = 0; c < B; ++c)
      if (in_columns) {
        Four<A> four;
#pragma unroll
        for (int u = 0; u < 4; ++u) {
          four.v[u] = !in_rows ? a[r + u][c] : row + r + u == column + c ? A(-1) : A(0);
          a[r + u][c] = -a[r + u][c];
        }
        store4(panels.columns + S::in_panel(column + c, y * B + r), four);
      }
#pragma unroll
  for (int r = 0; r < B; ++r)
#pragma unroll
    for (int c = 0; c < B; ++c)
      if (in_rows) a[r][c] = A(0);
  __syncthreads();
  if (threadIdx.x < 32) invert_diagonal<S>(panels, step);
  __syncthreads();
  scale_rows<S>(panels, step);
  __syncthreads();
#pragma unroll 2
  for (int k = 0; k < kPanel; ++k) {
    A left[B], right[B];
#pragma unroll
    for (int c = 0; c < B; c += 4) {
      const Four<A> l = load4(panels.columns + S::in_panel(k, y * B + c)),
                    r = load4(panels.scaled + S::in_panel(k, x * B + c));
#pragma unroll
      for (int u = 0; u < 4; ++u) left[c + u] = l.v[u], right[c + u] = r.v[u];
    }
#pragma unroll
    for (int r = 0; r < B; ++r)
#pragma unroll
      for (int c = 0; c < B; ++c) a[r][c] -= left[r] * right[c];
  }
  __syncthreads();
}

// Returns whether `is_good` accepts the sums of squares of the columns of the stage that this thread checks.
template <class S, class A, class F>
__device__ __forceinline__ bool columns_are(const A* stage, int n, const F& is_good) {
  bool good = true;
  for (int j = threadIdx.x; j < n; j += S::kThreads) {
    A squares = A(0);
#pragma unroll 8
    for (int i = 0; i < n; ++i) squares += stage[S::at(i, j)] * stage[S::at(i, j)];
    good = good && is_good(squares);
  }
  return good;
}

template <class S, class A>
__device__ __forceinline__ bool is_skew(const A* stage) {
  bool skew = true;
  for (int e = threadIdx.x; e < S::N * S::N; e += S::kThreads)
    skew = skew && stage[S::at(e / S::N, e % S::N)] == -stage[S::at(e % S::N, e / S::N)];
  return skew;
}

// Writes a contiguous Q or, for Layout::inside, M - I without the guard. `flags` holds the flags of the
// matrices, followed by the counters of `teams` teams, which are set to 0 for repeat_pivoted.
template <class T, int N>
__global__ void __launch_bounds__(BlockShape<acc_t<T>, N>::kThreads, BlockShape<acc_t<T>, N>::kBlocks)
    cayley_block(const Given<T> given, T* __restrict__ Q, Limits<acc_t<T>> limits, unsigned* flags,
                 int teams) {
  using A = acc_t<T>;
  using S = BlockShape<A, N>;
  constexpr int B = S::kTile;
  const int thread = threadIdx.x, n = given.n;
  const Place<S> place;
  const bool guarded = given.layout != Layout::inside;
  const T* const x = given.matrix(blockIdx.x);
  T* const q = Q + static_cast<long long>(blockIdx.x) * n * n;
  A* const stage = dynamic_shared<A>();

  stage_matrix<S, S::kThreads>(given, x, stage, n, thread);
  __syncthreads();
  unsigned flag = 0;
  if (guarded) {
    if (blockIdx.x == 0)
      for (int team = thread; team < teams; team += S::kThreads) flags[gridDim.x + team] = 0;
    // the columns of a skew matrix are as large as its rows
    const bool small = columns_are<S>(stage, n, [&](A squares) { return limits.row_is_small(squares); });
    if (__syncthreads_or(!small)) flag = kFailed;
    if (given.layout == Layout::whole && __syncthreads_or(!is_skew<S>(stage))) flag = kFailed | kNotSkew;
  }
  if (flag == 0) {  // the same in all threads
    A a[B][B];
#pragma unroll
    for (int r = 0; r < B; ++r)
#pragma unroll
      for (int c = 0; c < B; c += 4) {
        const Four<A> four = load4(stage + S::at(place.y * B + r, place.x * B + c));
#pragma unroll
        for (int u = 0; u < 4; ++u) a[r][c + u] = four.v[u];
      }
    __syncthreads();
    const Panels<S, A> panels(stage);
#pragma unroll 1
    for (int step = 0; step < N / kPanel; ++step) block_step<S>(a, panels, step, place);
    const A factor = guarded ? A(2) : A(1), diagonal = guarded ? A(1) : A(0);
#pragma unroll
    for (int r = 0; r < B; ++r)
#pragma unroll
      for (int c = 0; c < B; c += 4) {
        Four<A> four;
        const int i = place.y * B + r, j = place.x * B + c;
#pragma unroll
        for (int u = 0; u < 4; ++u) four.v[u] = factor * a[r][c + u] + (i == j + u ? diagonal : A(0));
        if (place.active) store4(stage + S::at(i, j), four);
      }
    __syncthreads();
    const bool unit =
        !guarded || columns_are<S>(stage, n, [&](A squares) { return limits.is_unit(squares); });
    if (__syncthreads_or(!unit)) flag = kFailed;
#pragma unroll 8
    for (int e = thread; flag == 0 && e < N * N; e += S::kThreads) {
      const int i = e / N, j = e % N;
      if (i >= n || j >= n) continue;
      const A value = stage[S::at(i, j)];
      q[i * n + j] = static_cast<T>(given.flips(blockIdx.x, j) ? -value : value);
    }
  }
  if (guarded && thread == 0) flags[blockIdx.x] = flag;
}

}  // namespace fastparam::cuda
