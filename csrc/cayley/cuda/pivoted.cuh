// The second attempt for large matrices: Gauss-Jordan with partial pivoting in double precision, one pivot
// at a time, on the whole device.
//
// It is one launch, because the host does not know whether any matrix failed. Teams of blocks process the
// flagged matrices in turn. Block `member` of a team owns the rows member, member + size, ...; the blocks
// wait for each other once per pivot, so the launch is cooperative. A step on pivot row p changes every row
// except p, because all blocks read it; that row is scaled in the next step. During a step, each block also
// finds its candidate for the next pivot.
//
// A skew matrix given in double is then polished (guard.h) by the same team. Matrices in float have already
// been eliminated with twice their digits.
//
// This is slow compared to the first attempt: each of the n pivots needs a barrier and 16 n^2 bytes. By
// calculation (2 us per barrier, 4 TB/s), each matrix that fails takes 6 ms at n = 1024 and a quarter of a
// second at 4096. Nearly all of these have rows of a norm above 4.
#pragma once
#include "../../core/cuda/teams.cuh"
#include "given.cuh"

namespace fastparam::cuda {

// The memory of one team of `size` blocks for matrices of order n, in doubles; two ints count as one.
struct TeamMemory {
  double *matrix, *sizes;      // n x n; the sizes of the candidates, in two generations
  int *rows, *pivots, *ranks;  // the rows of the candidates; pivots and ranks as in gauss_jordan
  double* defect;              // n x n, if matrices are polished

  static __host__ __device__ long long words(int n, int size, bool polished) {
    return static_cast<long long>(n) * n * (polished ? 2 : 1) + 3 * size + n;
  }
  __device__ TeamMemory(double* memory, int n, int size)
      : matrix(memory),
        sizes(matrix + static_cast<long long>(n) * n),
        rows(reinterpret_cast<int*>(sizes + 2 * size)),
        pivots(rows + 2 * size),
        ranks(pivots + n),
        defect(sizes + 3 * size + n) {}
};

template <class T>
struct Repeat {
  Given<T> given;
  T* Q;
  unsigned* flags;  // of the matrices
  double* memory;
  unsigned* arrived;  // one counter per team, initially 0
  long long batch;
  int teams;
};

// The share of one block in the work on a matrix.
template <class T>
struct Member {
  const Given<T>& given;
  const TeamMemory m;
  const int n, number, size;  // number: of the block in the team; size: of the team
  const int lane, warp;

  __device__ Member(const Given<T>& given, const TeamMemory& m, int number, int size)
      : given(given),
        m(m),
        n(given.n),
        number(number),
        size(size),
        lane(threadIdx.x % 32),
        warp(threadIdx.x / 32) {}
  __device__ __forceinline__ double* row(int i) const { return m.matrix + static_cast<long long>(i) * n; }
  __device__ __forceinline__ int first() const { return number + warp * size; }
  __device__ __forceinline__ int step() const { return kBlock / 32 * size; }

  // Publishes the candidate of the block for pivot k, given the candidates in lane 0 of each of its warps.
  __device__ void propose(int k, const Candidate<double>& mine) const {
    __shared__ double sizes[kBlock / 32];
    __shared__ int rows[kBlock / 32];
    if (lane == 0) sizes[warp] = mine.size, rows[warp] = mine.row;
    __syncthreads();
    if (threadIdx.x == 0) {
      Candidate<double> best = mine;
      for (int w = 1; w < kBlock / 32; ++w) best.take(sizes[w], rows[w]);
      m.sizes[k % 2 * size + number] = best.size;
      m.rows[k % 2 * size + number] = best.row;
    }
  }

  // Sets the rows of the block to those of I + aA. Returns whether they are finite.
  __device__ bool fill(const T* x) const {
    bool finite = true;
    Candidate<double> best;
    for (int i = first(); i < n; i += step())
      for (int j = lane; j < n; j += 32) {
        const double a = given.element(x, i, j);
        finite = finite && is_finite(a);
        row(i)[j] = a + (i == j ? 1 : 0);
        if (j == 0) {
          best.take(Candidate<double>(row(i)[j], i));
          m.ranks[i] = -1;
        }
      }
    propose(0, best);
    return finite;
  }

  // Returns the pivot row of step k, the same in all blocks.
  __device__ int choose(int k) const {
    __shared__ int chosen;
    if (warp == 0) {
      Candidate<double> best;
      for (int b = lane; b < size; b += 32) best.take(m.sizes[k % 2 * size + b], m.rows[k % 2 * size + b]);
      best.among_lanes(32);
      if (lane == 0) {
        chosen = best.row;
        if (best.row % size == number) m.pivots[k] = best.row, m.ranks[best.row] = k;
      }
    }
    __syncthreads();
    return chosen;
  }

  // Returns the pivot row. `before` is the pivot row of the previous step, which is not scaled yet.
  __device__ int eliminate(int k, int before) const {
    const int pivot = choose(k);
    const double *const p = row(pivot), inverse = 1 / p[k];
    Candidate<double> best;
    for (int i = first(); i < n; i += step()) {
      if (i == pivot) continue;
      double* const a = row(i);
      const double scale = i == before ? 1 / a[k - 1] : 1;
      const double factor = a[k] * scale;
      __syncwarp();  // all threads have read the values that some change
      for (int j = lane; j < n; j += 32) {
        const double old = j == k ? 0 : i == before && j == k - 1 ? scale : a[j] * scale;
        const double now = old - factor * (j == k ? inverse : p[j] * inverse);
        a[j] = now;
        if (j == k + 1 && m.ranks[i] < 0) best.take(Candidate<double>(now, i));
      }
    }
    best.among_lanes(32);
    propose(k + 1, best);
    return pivot;
  }

  // Row c of the transpose of M is in the row that was pivot c. `last` is the last pivot row, which is not
  // scaled yet.
  __device__ void write(T* Q, int last, bool finite) const {
    for (int k = first(); k < n; k += step()) {
      const int from = m.pivots[k];
      const double scale = from == last ? 1 / row(from)[n - 1] : 1;
      for (int c = lane; c < n; c += 32) {
        const int j = m.ranks[c];
        const double q = 2 * (from == last && j == n - 1 ? scale : row(from)[j] * scale) - (k == c ? 1 : 0);
        Q[static_cast<long long>(k) * n + c] = static_cast<T>(static_cast<acc_t<T>>(finite ? q : NAN));
      }
    }
  }

  // E = (3 I - Q Q^T) / 2, and the distance of Q Q^T from I in the rows of the block.
  __device__ void find_defect(const double* Q) const {
    __shared__ double farthest[kBlock / 32];
    double far = 0;
    for (int i = first(); i < n; i += step())
      for (int j = 0; j < n; ++j) {
        double e = 0;
        for (int c = lane; c < n; c += 32)
          e += Q[static_cast<long long>(i) * n + c] * Q[static_cast<long long>(j) * n + c];
        for (int bits = 16; bits > 0; bits /= 2) e += __shfl_xor_sync(kWholeWarp, e, bits);
        const double off = i == j ? e - 1 : e;
        far = off > far ? off : -off > far ? -off : far;
        if (lane == 0) m.defect[static_cast<long long>(i) * n + j] = (i == j ? 1 : 0) - off / 2;
      }
    if (lane == 0) farthest[warp] = far;
    __syncthreads();
    if (threadIdx.x == 0) {
      for (int w = 1; w < kBlock / 32; ++w) far = farthest[w] > far ? farthest[w] : far;
      m.sizes[number] = far;
    }
  }
  // Returns whether the matrix is to be polished, the same in all blocks.
  __device__ bool is_near() const {
    double far = 0;
    for (int b = 0; b < size; ++b) far = m.sizes[b] > far ? m.sizes[b] : far;
    return far > kPolished * sqrt(static_cast<double>(n)) && far < kNear;
  }
  __device__ void multiply_defect(const double* Q) const {
    for (int i = first(); i < n; i += step())
      for (int c = lane; c < n; c += 32) {
        double q = 0;
        for (int j = 0; j < n; ++j)
          q += m.defect[static_cast<long long>(i) * n + j] * Q[static_cast<long long>(j) * n + c];
        row(i)[c] = q;
      }
  }
  __device__ void take_product(double* Q) const {
    for (int i = first(); i < n; i += step())
      for (int c = lane; c < n; c += 32) Q[static_cast<long long>(i) * n + c] = row(i)[c];
  }

  __device__ void put_signs(T* Q, long long matrix) const {
    for (int i = first(); i < n; i += step())
      for (int c = lane; c < n; c += 32) {
        T& q = Q[static_cast<long long>(i) * n + c];
        if (given.flips(matrix, c)) q = static_cast<T>(-static_cast<acc_t<T>>(q));
      }
  }
};

template <class T>
__global__ void __launch_bounds__(kBlock, 2) repeat_pivoted(const Repeat<T> r) {
  constexpr bool kPolishes = sizeof(T) == 8;
  const int n = r.given.n, size = gridDim.x / r.teams, team = blockIdx.x / size;
  const TeamMemory memory(r.memory + team * TeamMemory::words(n, size, kPolishes), n, size);
  const Member<T> member(r.given, memory, blockIdx.x % size, size);
  unsigned* const arrived = r.arrived + team;
  unsigned round = 0;
  for (long long b = team; b < r.batch; b += r.teams) {
    const unsigned flag = r.flags[b];
    if ((flag & kFailed) == 0) continue;
    T* const Q = r.Q + b * n * n;
    if (!member.fill(r.given.matrix(b))) atomicOr(r.flags + b, kNotFinite);
    team_barrier(arrived, ++round, size);
    const bool finite = (*static_cast<volatile unsigned*>(r.flags + b) & kNotFinite) == 0;
    int pivot = -1;
    for (int k = 0; k < n; ++k) {
      pivot = member.eliminate(k, pivot);
      team_barrier(arrived, ++round, size);
    }
    member.write(Q, pivot, finite);
    team_barrier(arrived, ++round, size);
    if constexpr (kPolishes)
      for (int step = 0; (flag & kNotSkew) == 0 && step < kPolishSteps; ++step) {
        member.find_defect(Q);
        team_barrier(arrived, ++round, size);
        const bool near = member.is_near();
        // all blocks have read the values that the next step overwrites
        team_barrier(arrived, ++round, size);
        if (!near) break;
        member.multiply_defect(Q);
        team_barrier(arrived, ++round, size);
        member.take_product(Q);
        team_barrier(arrived, ++round, size);
      }
    member.put_signs(Q, b);  // each block in the rows that it wrote last
  }
}

}  // namespace fastparam::cuda
