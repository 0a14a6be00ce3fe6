// The Cayley map for n <= 32: one group of lanes per matrix, with whole rows in registers.
//
// This is in-place Gauss-Jordan (given.cuh). The pivot is always register 0: each step writes its results
// one register to the left and the new pivot column into the last one, so that after N steps every column is
// back in its place, and the loop over steps need not be unrolled. The warp repeats matrices that fail the
// guard one by one, in double with implicit row exchanges (a row keeps its lane).
//
// The bottleneck is the broadcast of the pivot row through shared memory, N words per lane and step. This is
// why a lane holds two rows.
#pragma once
#include "given.cuh"

namespace fastparam::cuda {

template <class A, int N_>
struct WarpShape {
  static constexpr int N = N_;
  static constexpr int kRows = sizeof(A) == 4 && N >= 16 ? 2 : 1;  // rows per lane
  static constexpr int kActive = N / kRows;                        // lanes that hold rows
  static constexpr int kLanes = ceil_pow2(kActive);
  static constexpr int kMatrices = 32 / kLanes;  // per warp
  static constexpr int kLd = N + 1;
  static constexpr int kStage = round_up(N * kLd, 4);
  // The stage and two pivot lines. The groups of a warp are as far apart as their lanes' rows, modulo the
  // banks, so that all lanes of the warp access rows and columns as those of one matrix: without conflicts.
  static constexpr int kBanks = 128 / sizeof(A);
  static constexpr int kWords = kLanes * kLd + round_up(larger(0, kStage + 2 * N - kLanes * kLd), kBanks);
  static constexpr int kWarps = 4;  // per block
  static constexpr int kThreads = 32 * kWarps;
  static constexpr int kBlocks = sizeof(A) == 4 ? 4 : 3;  // per SM, at least: limits the registers
  static constexpr int kSharedBytes = kWarps * kMatrices * kWords * static_cast<int>(sizeof(A));

  static constexpr unsigned kMask =
      kLanes == 32 ? kWholeWarp : (1u << kLanes % 32) - 1;  // the lanes of the first group
  static_assert(kMatrices * kWords * sizeof(A) >=
                (2 * N + N / 2) * sizeof(double));  // the work space of the second attempt

  static __device__ __forceinline__ int at(int r, int c) { return r * kLd + c; }
};

// The lane of the group with the pivot of step k: it holds the largest element of the column among the rows
// that have not been pivots.
template <class A, int N, int R>
__device__ __forceinline__ int find_pivot(const A (&a)[R][N], const int (&rank)[R], int y, int lanes) {
  Candidate<A> best;
  best.row = y;
#pragma unroll
  for (int h = 0; h < R; ++h)
    if (rank[h] < 0) best.take(Candidate<A>(a[h][0], y + h * (N / R)));
  best.among_lanes(lanes);
  return best.row;
}

// Replaces the rows y, y + N / R, ... of D by those of M - I. With Pivot, replaces the rows of I + aA by
// those of M, permuted: the row that was pivot k (rank[h] = k, and pivots[k] is its number) is row k of M,
// and its column h belongs to the row with number h. `line` is 2 N words of the group.
template <bool Pivot, class A, int N, int R>
__device__ __forceinline__ void gauss_jordan(A (&a)[R][N], A* line, int y, bool active, int lanes,
                                             int (&rank)[R], int* pivots) {
  constexpr int kStep = N / R;
#pragma unroll
  for (int h = 0; h < R; ++h) rank[h] = -1;
#pragma unroll 1
  for (int k = 0; k < N; ++k) {
    A* const buffer = line + k % 2 * N;  // two buffers, so that one barrier per step is enough
    const int pivot = Pivot ? find_pivot(a, rank, y, lanes) : k;
#pragma unroll
    for (int h = 0; h < R; ++h) {
      if (!active || y + h * kStep != pivot) continue;
      const A inverse = A(1) / (Pivot ? a[h][0] : A(1) + a[h][0]);
#pragma unroll
      for (int j = 1; j < N; ++j) a[h][j] *= inverse;
      buffer[0] = inverse;
#pragma unroll
      for (int j = 1; j < N; ++j) buffer[j] = a[h][j];
      if (Pivot) pivots[k] = pivot;
    }
    __syncwarp();
    const A inverse = buffer[0];
    A factor[R], last[R];
#pragma unroll
    for (int h = 0; h < R; ++h) {
      const bool own =
          // this row is already scaled: the formula would lose digits for a large pivot
          y + h * kStep == pivot;
      last[h] = Pivot && own ? inverse : -a[h][0] * inverse;
      factor[h] = own ? A(0) : a[h][0];
      if (Pivot && own) rank[h] = k;
    }
#pragma unroll
    for (int j0 = 0; j0 < N; j0 += 4) {
      const Four<A> v = load4(buffer + j0);
#pragma unroll
      for (int j = j0 == 0 ? 1 : j0; j < j0 + 4; ++j)
#pragma unroll
        for (int h = 0; h < R; ++h) a[h][j - 1] = a[h][j] - factor[h] * v.v[j - j0];
    }
#pragma unroll
    for (int h = 0; h < R; ++h) a[h][N - 1] = last[h];
  }
}

// The position of the group in the grid.
template <class S>
struct Group {
  int lane, number, y;
  bool active;
  unsigned lanes;    // of the warp
  long long matrix;  // of the first group of the warp: first

  __device__ __forceinline__ Group()
      : lane(threadIdx.x % S::kLanes),
        number(threadIdx.x / S::kLanes),
        y(smaller(lane, S::kActive - 1)),  // idle lanes repeat the last one, and write nothing
        active(lane < S::kActive),
        lanes(S::kLanes == 32 ? kWholeWarp
                              : ((1u << S::kLanes % 32) - 1) << (threadIdx.x % 32 / S::kLanes * S::kLanes)),
        matrix(static_cast<long long>(blockIdx.x) * (S::kWarps * S::kMatrices) + number) {}
  __device__ __forceinline__ long long first() const { return matrix - number % S::kMatrices; }
};

// Replaces Q by Q (3 I - Q^T Q) / 2, in a warp. E is n x n words of shared memory. Stops if Q is orthogonal,
// or not near an orthogonal matrix. The loops are not unrolled, because this would take up to 80 registers
// from the kernel, for a part that is seldom executed.
template <int N>
__device__ __forceinline__ void polish_by_warp(double* Q, double* E, int n) {
  const int lane = threadIdx.x % 32;
#pragma unroll 1
  for (int step = 0; step < kPolishSteps; ++step) {
    double far = 0;
#pragma unroll 1
    for (int j = 0; lane < n && j < n; ++j) {
      double e = lane == j ? -1 : 0;  // of Q Q^T - I
#pragma unroll 1
      for (int c = 0; c < n; ++c) e += Q[lane * n + c] * Q[j * n + c];
      E[lane * n + j] = (lane == j ? 1 : 0) - e / 2;
      far = e > far ? e : -e > far ? -e : far;
    }
    for (int bits = 16; bits > 0; bits /= 2) {
      const double other = __shfl_xor_sync(kWholeWarp, far, bits);
      far = other > far ? other : far;
    }
    __syncwarp();  // also after the last step: E is reused, and shuffles do not order accesses to memory
    if (!(far > kPolished * sqrt(static_cast<double>(n)) && far < kNear)) break;
    double column[N];
#pragma unroll
    for (int r = 0; r < N; ++r) column[r] = lane < n && r < n ? Q[r * n + lane] : 0;
#pragma unroll 1
    for (int i = 0; lane < n && i < n; ++i) {
      double q = 0;
#pragma unroll
      for (int r = 0; r < N; ++r)
        if (r < n) q += E[i * n + r] * column[r];
      Q[i * n + lane] = q;
    }
    __syncwarp();
  }
}

// Moves the registers one to the left, and `value` into the last one. A loop that does so traverses a row
// without being unrolled, which would hold all its loads in registers at once.
template <int N>
__device__ __forceinline__ void rotate_in(double (&row)[N], double value) {
#pragma unroll
  for (int j = 1; j < N; ++j) row[j - 1] = row[j];
  row[N - 1] = value;
}

// The second attempt of guard.h, and the only one for a matrix that is not skew: the whole warp processes
// one matrix in double, with one row in the registers of each lane. It writes the matrix itself. `shared` is
// the memory of the warp, 16-byte aligned.
template <int N, class T>
__device__ __forceinline__ void pivoted_by_warp(const Given<T>& given, long long matrix, T* q, double* shared,
                                                bool skew) {
  const int lane = threadIdx.x % 32, n = given.n;
  const T* const x = given.matrix(matrix);
  double a[1][N];
  int rank[1];
  int* const pivots = reinterpret_cast<int*>(shared + 2 * N);
  const int row = smaller(lane, N - 1);
  bool finite = true;
#pragma unroll 1
  for (int j = 0; j < N; ++j) {
    const double value = row < n && j < n ? given.element(x, row, j) : 0;
    finite = finite && is_finite(value);
    rotate_in(a[0], value + (row == j ? 1 : 0));
  }
  if (__ballot_sync(kWholeWarp, !finite) != 0) {
    for (int e = lane; e < n * n; e += 32) q[e] = static_cast<T>(static_cast<acc_t<T>>(NAN));
    return;
  }
  gauss_jordan<true>(a, shared, row, lane < N, 32, rank, pivots);
  __syncwarp();  // pivots
#pragma unroll 1
  for (int j = 0; j < N; ++j) {
    const int c = pivots[j];
    double value = 2 * a[0][0] - (rank[0] == c ? 1 : 0);
    rotate_in(a[0], 0.0);
    if (lane >= N || rank[0] >= n || c >= n) continue;
    if (sizeof(T) < 8 && given.flips(matrix, c)) value = -value;
    q[rank[0] * n + c] = static_cast<T>(static_cast<acc_t<T>>(value));
  }
  __syncwarp();
  if constexpr (sizeof(T) == 8) {
    if (skew) polish_by_warp<N>(q, shared, n);
    if (lane < n && given.flips(matrix, lane))
#pragma unroll 1
      for (int i = 0; i < n; ++i) q[i * n + lane] = -q[i * n + lane];
  }
}

template <class T, int N>
__global__ void __launch_bounds__(WarpShape<acc_t<T>, N>::kThreads, WarpShape<acc_t<T>, N>::kBlocks)
    cayley_warp(const Given<T> given, T* __restrict__ Q, long long batch, Limits<acc_t<T>> limits) {
  using A = acc_t<T>;
  using S = WarpShape<A, N>;
  constexpr int R = S::kRows;
  const Group<S> group;
  if (group.first() >= batch) return;  // the whole warp
  const bool exists = group.matrix < batch;
  const int order = exists ? given.n : 0;  // beyond the batch: the identity, which is not stored
  const T* const x = given.matrix(exists ? group.matrix : 0);
  A* const stage = dynamic_shared<A>() + group.number * S::kWords;

  stage_matrix<S, S::kLanes>(given, x, stage, order, group.lane);
  __syncwarp();
  bool good = true, skew = true;
  {
    A a[R][N];
    int rank[R];
#pragma unroll
    for (int h = 0; h < R; ++h) {
      const int i = group.y + h * S::kActive;
      A squares = A(0);
#pragma unroll
      for (int j = 0; j < N; ++j) {
        a[h][j] = stage[S::at(i, j)];
        squares += a[h][j] * a[h][j];
      }
      good = good && limits.row_is_small(squares);
      if (given.layout == Layout::whole)
#pragma unroll
        for (int j = 0; j < N; ++j) skew = skew && a[h][j] == -stage[S::at(j, i)];
    }
    gauss_jordan<false>(a, stage + S::kStage, group.y, group.active, S::kLanes, rank,
                        static_cast<int*>(nullptr));
#pragma unroll
    for (int h = 0; h < R; ++h)
#pragma unroll
      for (int j = 0; j < N; ++j) {
        const int i = group.y + h * S::kActive;
        if (group.active) stage[S::at(i, j)] = A(2) * a[h][j] + (j == i ? A(1) : A(0));
      }
  }
  __syncwarp();
#pragma unroll
  for (int h = 0; h < R; ++h) {
    A squares = A(0);
#pragma unroll 8
    for (int i = 0; i < N; ++i) {
      const A q = stage[S::at(i, group.y + h * S::kActive)];
      squares += q * q;
    }
    good = good && limits.is_unit(squares);
  }

  const unsigned other = __ballot_sync(kWholeWarp, exists && !skew);
  const unsigned bad = __ballot_sync(kWholeWarp, exists && !good) | other;
  if ((bad & group.lanes) == 0) {
    T* const q = Q + group.matrix * given.n * given.n;
#pragma unroll 8
    for (int e = group.lane; e < N * N; e += S::kLanes) {
      const int r = e / N, c = e % N;
      if (r >= order || c >= order) continue;
      const A value = stage[S::at(r, c)];
      q[r * given.n + c] = static_cast<T>(given.flips(group.matrix, c) ? -value : value);
    }
  }
  if (bad == 0) return;
  __syncwarp();  // the stages of all groups become the work space of the warp
  double* const shared =
      reinterpret_cast<double*>(dynamic_shared<A>() + group.number / S::kMatrices * S::kMatrices * S::kWords);
  for (int g = 0; g < S::kMatrices; ++g)
    if ((bad >> g * S::kLanes & S::kMask) != 0)
      pivoted_by_warp<N>(given, group.first() + g, Q + (group.first() + g) * given.n * given.n, shared,
                         (other >> g * S::kLanes & S::kMask) == 0);
}

}  // namespace fastparam::cuda
