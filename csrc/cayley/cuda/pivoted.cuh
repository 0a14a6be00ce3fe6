// The last attempt for matrices that fail the guard: Gauss-Jordan with partial pivoting in double precision,
// one pivot at a time, on the whole device.
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
// second at 4096.
#pragma once
#include "../../core/cuda/teams.cuh"
#include "given.cuh"

namespace fastparam::cuda {

// A matrix in double. For float, an element is the sum of two floats, so that half of the memory can be that
// of the result of the first attempt.
template <class A>
struct WideMatrix {
  A *high, *low;
  __device__ __forceinline__ double get(long long i) const {
    return static_cast<double>(high[i]) + static_cast<double>(low[i]);
  }
  __device__ __forceinline__ void set(long long i, double x) const {
    high[i] = static_cast<A>(x);
    low[i] = static_cast<A>(x - static_cast<double>(high[i]));
  }
};
template <>
struct WideMatrix<double> {
  double *high, *low;  // high is not used
  __device__ __forceinline__ double get(long long i) const { return low[i]; }
  __device__ __forceinline__ void set(long long i, double x) const { low[i] = x; }
};

// The memory of one team of `size` blocks for matrices of order n, in doubles; two ints count as one.
template <class A>
struct TeamMemory {
  double* sizes;               // of the candidates, in two generations
  int *rows, *pivots, *ranks;  // the rows of the candidates; pivots and ranks as in gauss_jordan
  WideMatrix<A> matrix;        // n x n
  A* defect;                   // n x n, if matrices are polished

  // in_place: high is elsewhere.
  static __host__ __device__ long long words(int n, int size, bool in_place) {
    const long long square = static_cast<long long>(n) * n;
    return 3 * size + n + (sizeof(A) == 8 ? 2 * square : in_place ? (square + 1) / 2 : square);
  }
  __device__ TeamMemory(double* memory, A* high, int n, int size)
      : sizes(memory),
        rows(reinterpret_cast<int*>(sizes + 2 * size)),
        pivots(rows + 2 * size),
        ranks(pivots + n) {
    A* const squares = reinterpret_cast<A*>(memory + 3 * size + n);
    defect = squares + static_cast<long long>(n) * n;
    matrix = {high != nullptr ? high : defect, squares};
  }
};

template <class T>
struct Repeat {
  Given<T> given;
  T* Q;
  unsigned* flags;  // of the matrices
  acc_t<T>* D;      // of the first attempt, which is overwritten, or null; may be Q
  double* memory;
  unsigned* arrived;  // one counter per team, initially 0
  long long batch;
  int teams;
};

// The share of one block in the work on a matrix.
template <class T>
struct Member {
  using A = acc_t<T>;
  const Given<T>& given;
  const TeamMemory<A> m;
  const int n, number, size;  // number: of the block in the team; size: of the team
  const int lane, warp;

  __device__ Member(const Given<T>& given, const TeamMemory<A>& m, int number, int size)
      : given(given),
        m(m),
        n(given.n),
        number(number),
        size(size),
        lane(threadIdx.x % 32),
        warp(threadIdx.x / 32) {}
  __device__ __forceinline__ long long at(int i, int j) const { return static_cast<long long>(i) * n + j; }
  __device__ __forceinline__ double get(int i, int j) const { return m.matrix.get(at(i, j)); }
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
        const double value = a + (i == j ? 1 : 0);
        m.matrix.set(at(i, j), value);
        if (j == 0) {
          best.take(Candidate<double>(value, i));
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
    const double inverse = 1 / get(pivot, k);
    Candidate<double> best;
    for (int i = first(); i < n; i += step()) {
      if (i == pivot) continue;
      const double scale = i == before ? 1 / get(i, k - 1) : 1;
      const double factor = get(i, k) * scale;
      __syncwarp();  // all threads have read the values that some change
      for (int j = lane; j < n; j += 32) {
        const double old = j == k ? 0 : i == before && j == k - 1 ? scale : get(i, j) * scale;
        const double now = old - factor * (j == k ? inverse : get(pivot, j) * inverse);
        m.matrix.set(at(i, j), now);
        if (j == k + 1 && m.ranks[i] < 0) best.take(Candidate<double>(now, i));
      }
    }
    best.among_lanes(32);
    propose(k + 1, best);
    return pivot;
  }

  // Leaves Q in `low`, with its rows and columns still exchanged: row k of M is in the row that was pivot k,
  // and its column c where pivot c was. `last` is the last pivot row, which is not scaled yet.
  __device__ void collect(int last, bool finite) const {
    for (int i = first(); i < n; i += step()) {
      const double scale = i == last ? 1 / get(i, n - 1) : 1;
      __syncwarp();  // all threads have read the value that one changes
      for (int j = lane; j < n; j += 32) {
        const double value = i == last && j == n - 1 ? scale : get(i, j) * scale;
        const double q = 2 * value - (m.pivots[j] == m.ranks[i] ? 1 : 0);
        m.matrix.low[at(i, j)] = static_cast<A>(finite ? q : NAN);
      }
    }
  }
  __device__ void write(T* Q) const {
    for (int k = first(); k < n; k += step())
      for (int c = lane; c < n; c += 32)
        Q[at(k, c)] = static_cast<T>(m.matrix.low[at(m.pivots[k], m.ranks[c])]);
  }

  // E = (3 I - Q Q^T) / 2, and the distance of Q Q^T from I in the rows of the block.
  __device__ void find_defect(const double* Q) const {
    __shared__ double farthest[kBlock / 32];
    double far = 0;
    for (int i = first(); i < n; i += step())
      for (int j = 0; j < n; ++j) {
        double e = 0;
        for (int c = lane; c < n; c += 32) e += Q[at(i, c)] * Q[at(j, c)];
        for (int bits = 16; bits > 0; bits /= 2) e += __shfl_xor_sync(kWholeWarp, e, bits);
        const double off = i == j ? e - 1 : e;
        far = off > far ? off : -off > far ? -off : far;
        if (lane == 0) m.defect[at(i, j)] = (i == j ? 1 : 0) - off / 2;
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
        for (int j = 0; j < n; ++j) q += m.defect[at(i, j)] * Q[at(j, c)];
        m.matrix.low[at(i, c)] = q;
      }
  }
  __device__ void take_product(double* Q) const {
    for (int i = first(); i < n; i += step())
      for (int c = lane; c < n; c += 32) Q[at(i, c)] = m.matrix.low[at(i, c)];
  }

  __device__ void put_signs(T* Q, long long matrix) const {
    for (int i = first(); i < n; i += step())
      for (int c = lane; c < n; c += 32) {
        T& q = Q[at(i, c)];
        if (given.flips(matrix, c)) q = static_cast<T>(-static_cast<acc_t<T>>(q));
      }
  }
};

template <class T>
__global__ void __launch_bounds__(kBlock, 2) repeat_pivoted(const Repeat<T> r) {
  using A = acc_t<T>;
  const int n = r.given.n, size = gridDim.x / r.teams, team = blockIdx.x / size;
  double* const memory = r.memory + team * TeamMemory<A>::words(n, size, r.D != nullptr);
  unsigned* const arrived = r.arrived + team;
  unsigned round = 0;
  for (long long b = team; b < r.batch; b += r.teams) {
    const unsigned flag = r.flags[b];
    if ((flag & kFailed) == 0) continue;
    T* const Q = r.Q + b * n * n;
    A* const high = r.D == nullptr ? nullptr : r.D + b * n * n;
    const Member<T> member(r.given, TeamMemory<A>(memory, high, n, size), blockIdx.x % size, size);
    if (!member.fill(r.given.matrix(b))) atomicOr(r.flags + b, kNotFinite);
    team_barrier(arrived, ++round, size);
    const bool finite = (*static_cast<volatile unsigned*>(r.flags + b) & kNotFinite) == 0;
    int pivot = -1;
    for (int k = 0; k < n; ++k) {
      pivot = member.eliminate(k, pivot);
      team_barrier(arrived, ++round, size);
    }
    member.collect(pivot, finite);
    team_barrier(arrived, ++round, size);
    member.write(Q);
    team_barrier(arrived, ++round, size);
    if constexpr (sizeof(T) == 8)
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
