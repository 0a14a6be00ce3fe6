// The exponential and its derivative for orders above those of lanes.cuh: a team of blocks per matrix, with
// the matrices of the chain in global memory. The blocks share the tiles of each step, and wait for each
// other after it. So each matrix is squared as often as it needs, and the host reads no value.
//
// Sums over a matrix are computed by tiles, in the order of the tiles, so nothing depends on the size of a
// team.
#pragma once
#include "../../core/cuda/panels.cuh"
#include "../../core/cuda/teams.cuh"
#include "../../core/cuda/tiles.cuh"
#include "batch.cuh"

namespace fastparam::cuda {

// The work space of a team: matrices padded with zeros, then one number per tile for four matrices.
template <class A, class S>
struct TeamSpace {
  int n, width, tiles;  // width: a multiple of kDepth

  __host__ __device__ explicit TeamSpace(int n)
      : n(n),
        width(round_up(n, S::kDepth)),
        tiles((n + S::N - 1) / S::N) {}
  __host__ __device__ long long size() const { return static_cast<long long>(width) * width; }
  __host__ __device__ int count() const { return tiles * tiles; }
  __host__ __device__ long long words(bool dual) const {
    return (dual ? 2 : 1) * kPlaces<A> * size() + round_up(4 * count(), 4);
  }
};

template <class T>
struct TeamCall {
  Batch<T> batch;
  acc_t<T>* memory;
  unsigned* arrived;  // one per team, initially zero
  int teams;
};

// A block of a team, and the matrix of the team.
template <class A, class S>
class TeamChain {
  const Program<A>& program_;
  const TeamSpace<A, S> space_;
  A* const memory_;
  unsigned* const arrived_;
  const int number_, blocks_;
  typename S::Shared& shared_;
  const int row_, column_;  // the position of the thread in a tile
  unsigned round_ = 0;

 public:
  __device__ TeamChain(const Program<A>& program, int n, A* memory, unsigned* arrived, int number, int blocks)
      : program_(program),
        space_(n),
        memory_(memory),
        arrived_(arrived),
        number_(number),
        blocks_(blocks),
        shared_(*dynamic_shared<typename S::Shared>()),
        row_(S::row()),
        column_(S::column()) {}

  // Computes one matrix. The next one is read into places that `write` does not read.
  template <class T>
  __device__ void run(const Batch<T>& batch, const T* x, const T* g, T* out) {
    read(batch, x, g);
    barrier();
    const A largest = over_tiles(0, Largest());
    int s = is_finite(largest) ? halvings_before(largest) : 0;
    if (s > 0) {
      scale(0, half_to<A>(s));
      barrier();
    }
#pragma unroll 1
    for (int turn = -1; turn <= s; ++turn) {
      const Part& part = program_.part(turn);
      follow(part.begin, program_.polishes(turn, s) ? part.more : part.end);
      if (turn < 0) s += scale_powers();
    }
    write(batch, at(place_of<A>(value(s % 2 == 0 ? 4 : 5)) + (g != nullptr ? kPlaces<A> : 0)), out,
          is_finite(largest));
  }

 private:
  struct Plus {
    __device__ __forceinline__ A operator()(A a, A b) const { return a + b; }
  };
  struct Largest {
    __device__ __forceinline__ A operator()(A a, A b) const { return b > a ? b : a; }
  };

  __device__ __forceinline__ A* at(int place) const { return memory_ + place * space_.size(); }
  __device__ __forceinline__ A& of_tile(int i, int tile) const {
    return at((program_.dual ? 2 : 1) * kPlaces<A>)[i * space_.count() + tile];
  }
  __device__ __forceinline__ void barrier() { team_barrier(arrived_, ++round_, blocks_); }

  // Calls f(tile, I, J) for the tiles of this block. With `half`, tiles below the diagonal are left out.
  template <class F>
  __device__ __forceinline__ void each_tile(bool half, const F& f) const {
    const int tiles = space_.tiles, count = half ? tiles * (tiles + 1) / 2 : tiles * tiles;
#pragma unroll 1
    for (int tile = number_; tile < count; tile += blocks_) {
      int I = tile / tiles, J = tile % tiles;
      unsigned matrix = 0;
      if (half) tile_pair(static_cast<unsigned>(tile), static_cast<unsigned>(tiles), matrix, I, J);
      f(tile, I, J);
    }
  }
  // Whether any of the entries of the thread in a tile is inside the matrix.
  __device__ __forceinline__ bool inside(int row, int column) const {
    return row < space_.width && column < space_.width;
  }
  __device__ __forceinline__ long long offset(int row, int column) const {
    return static_cast<long long>(row) * space_.width + column;
  }

  // Combines the values of all threads. The result is the same in every thread.
  template <class F>
  __device__ __forceinline__ A over_block(A mine, const F& f) const {
    for (int bits = 16; bits > 0; bits /= 2) mine = f(mine, __shfl_xor_sync(kWholeWarp, mine, bits));
    __syncthreads();  // the parts of the previous call have been read
    if (threadIdx.x % 32 == 0) shared_.parts[threadIdx.x / 32] = mine;
    __syncthreads();
    A all = shared_.parts[0];
    for (int w = 1; w < S::kThreads / 32; ++w) all = f(all, shared_.parts[w]);
    return all;
  }
  template <class F>
  __device__ __forceinline__ A over_tiles(int i, const F& f) const {
    A mine = A(0);
#pragma unroll 1
    for (int tile = threadIdx.x; tile < space_.count(); tile += S::kThreads) mine = f(mine, of_tile(i, tile));
    return over_block(mine, f);
  }

  template <class T>
  __device__ void read(const Batch<T>& batch, const T* x, const T* g) const {
    each_tile(false, [&](int tile, int I, int J) {
      A largest = A(0);
#pragma unroll 1
      for (int e = threadIdx.x; e < S::N * S::N; e += S::kThreads) {
        const int r = I * S::N + e / S::N, c = J * S::N + e % S::N;
        if (!inside(r, c)) continue;
        const bool exists = r < space_.n && c < space_.n;
        const A a = exists ? batch.element(x, r, c) : A(0);
        largest = Largest()(largest, is_finite(a) ? (a < A(0) ? -a : a) : A(INFINITY));
        at(0)[offset(r, c)] = a;
        if (g != nullptr) at(kPlaces<A>)[offset(r, c)] = exists ? batch.direction(g, r, c) : A(0);
      }
      largest = over_block(largest, Largest());
      if (threadIdx.x == 0) of_tile(0, tile) = largest;
    });
  }
  template <class T>
  __device__ void write(const Batch<T>& batch, const A* L, T* out, bool finite) const {
    each_tile(false, [&](int, int I, int J) {
#pragma unroll 1
      for (int e = threadIdx.x; e < S::N * S::N; e += S::kThreads) {
        const int r = I * S::N + e / S::N, c = J * S::N + e % S::N;
        if (r < space_.n && c < space_.n)
          out[batch.place(r, c)] = batch.result(r, c, L[offset(r, c)], L[offset(c, r)], finite);
      }
    });
  }

  // Replaces the powers of A by those of A / 2^s, and returns s.
  __device__ __forceinline__ int scale_powers() {
    constexpr int kPowers = sizeof(A) == 8 ? 4 : 3;
    each_tile(false, [&](int tile, int I, int J) {
      const int row = I * S::N + row_, column = J * S::N + column_;
#pragma unroll 1
      for (int i = 0; i < kPowers; ++i) {
        A sum = A(0);
        for (int r = 0; r < 4 && inside(row, column); ++r) {
          const Four<A> v = load4(at(i) + offset(row + r, column));
          for (int w = 0; w < 4; ++w) sum += v.v[w] * v.v[w];
        }
        sum = over_block(sum, Plus());
        if (threadIdx.x == 0) of_tile(i, tile) = sum;
      }
    });
    barrier();
    A squares[4];
#pragma unroll
    for (int i = 0; i < kPowers; ++i) squares[i] = over_tiles(i, Plus());
    const int s = squarings(squares, program_.structure, program_.theta);
    if (s == 0) return 0;
    for (int i = 0; i < kPowers; ++i) {
      const int power = i == 3 ? 6 : i + 1;
      scale(i, half_to<A>(power * s));
      if (program_.dual && i > 0) scale(kPlaces<A> + i, half_to<A>((power - 1) * s));
    }
    barrier();
    return s;
  }
  __device__ void scale(int place, A by) const {
    each_tile(false, [&](int, int I, int J) {
      const int row = I * S::N + row_, column = J * S::N + column_;
#pragma unroll 1
      for (int r = 0; r < 4 && inside(row, column); ++r) {
        A* const entries = at(place) + offset(row + r, column);
        Four<A> v = load4(entries);
        for (int w = 0; w < 4; ++w) v.v[w] *= by;
        store4(entries, v);
      }
    });
  }

  __device__ __forceinline__ void follow(int begin, int end) {
#pragma unroll 1
    for (int i = begin; i < end; ++i) {
      const Step<A>& step = program_.steps[i];
      each_tile(step.half, [&](int, int I, int J) { take(step, I, J); });
      barrier();
    }
  }

  __device__ __forceinline__ void take(const Step<A>& step, int I, int J) const {
    const int row = I * S::N + row_, column = J * S::N + column_;
    const bool mine = inside(row, column);
    A acc[4][4] = {};
#pragma unroll 1
    for (int t = 0; t < step.count && mine; ++t) {
      const A factor = step.factors[t];
      const A* const M = at(step.terms[t]);
#pragma unroll
      for (int r = 0; r < 4; ++r) {
        const Four<A> v = load4(M + (step.transposed ? offset(column + r, row) : offset(row + r, column)));
#pragma unroll
        for (int w = 0; w < 4; ++w) {
          if (step.transposed) acc[w][r] += factor * v.v[w];
          else acc[r][w] += factor * v.v[w];
        }
      }
    }
    if (step.left >= 0) {
      const A *const left = at(step.left), *const right = at(step.right);
      multiply<S>(
          acc, space_.width,
          [&](int i, int k) {
            return I * S::N + i < space_.width ? load4(left + offset(I * S::N + i, k)) : Four<A>{};
          },
          [&](int k, int j) {
            return J * S::N + j < space_.width ? load4(right + offset(k, J * S::N + j)) : Four<A>{};
          },
          shared_);
    }
    if (!mine) return;
#pragma unroll
    for (int r = 0; r < 4; ++r)
#pragma unroll
      for (int w = 0; w < 4; ++w) {
        const int i = row + r, j = column + w;  // if a product overflows, 0 times an entry is NaN
        acc[r][w] = i < space_.n && j < space_.n ? acc[r][w] + (i == j ? step.diagonal : A(0)) : A(0);
      }
    A* const O = at(step.O);
#pragma unroll
    for (int r = 0; r < 4; ++r)
      store4(O + offset(row + r, column), Four<A>{{acc[r][0], acc[r][1], acc[r][2], acc[r][3]}});
    if (step.mirror == 0 || I == J) return;
    const A sign = static_cast<A>(step.mirror);
#pragma unroll
    for (int w = 0; w < 4; ++w)
      store4(O + offset(column + w, row),
             Four<A>{{sign * acc[0][w], sign * acc[1][w], sign * acc[2][w], sign * acc[3][w]}});
  }
};

template <class T, int N>
__global__ void __launch_bounds__(TileShape<acc_t<T>, N>::kThreads, TileShape<acc_t<T>, N>::kBlocks)
    exponential_team(const __grid_constant__ Program<acc_t<T>> program, const TeamCall<T> call) {
  using A = acc_t<T>;
  using S = TileShape<A, N>;
  const Batch<T>& batch = call.batch;
  const int blocks = gridDim.x / call.teams, team = blockIdx.x / blocks;
  A* const memory = call.memory + team * TeamSpace<A, S>(batch.n).words(program.dual);
  TeamChain<A, S> chain(program, batch.n, memory, call.arrived + team, blockIdx.x % blocks, blocks);
  for (long long b = team; b < batch.count; b += call.teams) {
    const long long first = b * batch.n * batch.n;
    chain.run(batch, batch.X + first, program.dual ? batch.G + first : nullptr, batch.out + first);
  }
}

}  // namespace fastparam::cuda
