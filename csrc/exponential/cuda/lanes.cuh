// The exponential for n <= 32 and its derivative: a group of lanes per matrix, with all matrices of the chain
// in shared memory. In each step, a lane computes one tile in registers. Both factors of a product are read
// by rows, four adjacent entries at a time.
//
// The groups of a warp execute their steps together. A group that has squared its matrix often enough
// continues without writing, so a result does not depend on the neighbours of a matrix.
#pragma once
#include "batch.cuh"

namespace fastparam::cuda {

template <class A, int N_>
struct LanesShape {
  static constexpr int N = N_;
  static constexpr int kTr = N == 24 ? 3 : smaller(N / 4, 4), kTc = N >= 24 ? 8 : 4;  // the tile of a lane
  // rows y + kY r, columns 4 (x + kX c) .. + 3
  static constexpr int kY = N / kTr, kX = N / kTc;
  static constexpr int kLanes = ceil_pow2(kY * kX);
  static constexpr int kMatrices = 32 / kLanes;  // per warp
  static constexpr int kWarps = N == 4 ? 2 : 1;  // per block
  static constexpr int kThreads = 32 * kWarps;
  static constexpr int kGroups = kWarps * kMatrices;
  // Eight lanes that read 16 bytes each access different banks.
  static constexpr int kLd = (sizeof(A) == 8 && N > 4) || N == 32 ? N + 4 : N;
  static constexpr int kSize = N * kLd;
  static constexpr int kSkip = N > 4 ? 0 : sizeof(A) == 8 ? 6 : 16;

  static constexpr int words(bool dual) { return (dual ? 2 : 1) * kPlaces<A> * kSize + kSkip; }
  static constexpr int shared_bytes(bool dual) { return kGroups * words(dual) * static_cast<int>(sizeof(A)); }
  // Blocks per SM, as many as fit into 200 KB. This number bounds the registers.
  static constexpr int kBlocks = larger(1, smaller(16 / kWarps, (200 << 10) / shared_bytes(false)));
};

// A group of lanes, and its matrix.
template <class S, class A>
struct LanesChain {
  A* const memory;
  const int n, lane, y, x;
  const bool active;

  __device__ __forceinline__ LanesChain(A* memory, int n)
      : memory(memory),
        n(n),
        lane(threadIdx.x % S::kLanes),
        y(tile_row<S, A>(lane)),
        x(lane % S::kX),
        active(lane < S::kY * S::kX) {}

  __device__ __forceinline__ A* at(int place) const { return memory + place * S::kSize; }
  __device__ __forceinline__ int row(int r) const { return y + S::kY * r; }
  __device__ __forceinline__ int column(int c) const { return c * S::kX + 4 * x; }  // c: 0, 4
  __device__ __forceinline__ int offset(int r, int c) const { return row(r) * S::kLd + column(c); }

  // acc += left right
  __device__ __forceinline__ void multiply(A (&acc)[S::kTr][S::kTc], const A* left, const A* right) const {
#pragma unroll 1
    for (int k = 0; k < n; k += 4) {  // entries from n on are 0
      Four<A> l[S::kTr];
#pragma unroll
      for (int r = 0; r < S::kTr; ++r) l[r] = load4(left + row(r) * S::kLd + k);
#pragma unroll
      for (int u = 0; u < 4; ++u)
#pragma unroll
        for (int c = 0; c < S::kTc; c += 4) {
          const Four<A> v = load4(right + (k + u) * S::kLd + column(c));
#pragma unroll
          for (int r = 0; r < S::kTr; ++r)
#pragma unroll
            for (int w = 0; w < 4; ++w) acc[r][c + w] += l[r].v[u] * v.v[w];
        }
    }
  }
  __device__ __forceinline__ void add_term(A (&acc)[S::kTr][S::kTc], A factor, const A* M,
                                           bool transposed) const {
#pragma unroll
    for (int r = 0; r < S::kTr; ++r)
#pragma unroll
      for (int c = 0; c < S::kTc; c += 4) {
        Four<A> v;
        if (!transposed) v = load4(M + offset(r, c));
        else
          for (int w = 0; w < 4; ++w) v.v[w] = M[(column(c) + w) * S::kLd + row(r)];
#pragma unroll
        for (int w = 0; w < 4; ++w) acc[r][c + w] += factor * v.v[w];
      }
  }
  __device__ __forceinline__ void take(const Step<A>& step, bool mine) const {
    if (active && mine) write_tile(step);
    __syncwarp();
  }
  __device__ __forceinline__ void write_tile(const Step<A>& step) const {
    A acc[S::kTr][S::kTc] = {};
#pragma unroll 1
    for (int t = 0; t < step.count; ++t) add_term(acc, step.factors[t], at(step.terms[t]), step.transposed);
    if (step.left >= 0) multiply(acc, at(step.left), at(step.right));
    A* const O = at(step.O);
#pragma unroll
    for (int r = 0; r < S::kTr; ++r)
#pragma unroll
      for (int c = 0; c < S::kTc; c += 4) {
        Four<A> v;
#pragma unroll
        for (int w = 0; w < 4; ++w) {
          const bool inside =
              row(r) < n && column(c) + w < n;  // if a product overflows, 0 times an entry is NaN
          v.v[w] = inside ? acc[r][c + w] + (row(r) == column(c) + w ? step.diagonal : A(0)) : A(0);
        }
        store4(O + offset(r, c), v);
      }
  }
  template <class F>
  __device__ __forceinline__ void each(const F& f) const {
    if (!active) return;
#pragma unroll
    for (int r = 0; r < S::kTr; ++r)
#pragma unroll
      for (int c = 0; c < S::kTc; c += 4) f(offset(r, c));
  }
  // Each active lane scales its own tile.
  __device__ __forceinline__ void scale(int place, A by) const {
    each([&](int e) {
      Four<A> v = load4(at(place) + e);
#pragma unroll
      for (int w = 0; w < 4; ++w) v.v[w] *= by;
      store4(at(place) + e, v);
    });
  }
  __device__ __forceinline__ A squares_of(int place) const {
    A sum = A(0);
    each([&](int e) {
      const Four<A> v = load4(at(place) + e);
#pragma unroll
      for (int w = 0; w < 4; ++w) sum += v.v[w] * v.v[w];
    });
#pragma unroll
    for (int bits = S::kLanes / 2; bits > 0; bits /= 2) sum += __shfl_xor_sync(kWholeWarp, sum, bits);
    return sum;
  }
  __device__ __forceinline__ static A largest_of_group(A value) {
#pragma unroll
    for (int bits = S::kLanes / 2; bits > 0; bits /= 2) {
      const A other = __shfl_xor_sync(kWholeWarp, value, bits);
      value = other > value ? other : value;
    }
    return value;
  }

  // Reads A to place 0, and its direction to the first place of the derivatives. Returns the largest
  // magnitude of an entry of A, or NaN if an entry is not finite.
  template <class T>
  __device__ __forceinline__ A read(const Batch<T>& batch, const T* x, const T* g, int order) const {
    A largest = A(0);
    bool finite = true;
#pragma unroll 4
    for (int e = lane; e < S::N * S::N; e += S::kLanes) {
      const int r = e / S::N, c = e % S::N;
      const bool inside = r < order && c < order;
      const A a = inside ? batch.element(x, r, c) : A(0), size = a < A(0) ? -a : a;
      finite = finite && is_finite(a);
      largest = size > largest ? size : largest;
      at(0)[r * S::kLd + c] = a;
      if (g != nullptr) at(kPlaces<A>)[r * S::kLd + c] = inside ? batch.direction(g, r, c) : A(0);
    }
    const unsigned others = __ballot_sync(kWholeWarp, !finite) >> threadIdx.x % 32 / S::kLanes * S::kLanes;
    largest = largest_of_group(largest);
    return (others & (kWholeWarp >> (32 - S::kLanes))) == 0 ? largest : A(NAN);
  }

  // Replaces the powers of A by those of A / 2^s, and returns s.
  __device__ __forceinline__ int scale_powers(const Program<A>& program) const {
    constexpr int kPowers = sizeof(A) == 8 ? 4 : 3;
    A squares[4];
#pragma unroll
    for (int i = 0; i < kPowers; ++i) squares[i] = squares_of(i);
    const int s = squarings(squares, program.structure, program.theta);
#pragma unroll
    for (int i = 0; i < kPowers && s > 0; ++i) {
      const int power = i == 3 ? 6 : i + 1;
      scale(i, half_to<A>(power * s));
      if (program.dual && i > 0) scale(kPlaces<A> + i, half_to<A>((power - 1) * s));
    }
    __syncwarp();
    return s;
  }

  // Returns the place of exp(A), or of exp(A) - I if A is skew. The derivative is kPlaces<A> places further
  // on.
  __device__ __forceinline__ int run(const Program<A>& program, A largest) const {
    int mine = is_finite(largest) ? halvings_before(largest) : 0, most = 0;
    if (mine > 0) scale(0, half_to<A>(mine));
    __syncwarp();
#pragma unroll 1
    for (int turn = -1; turn <= most; ++turn) {
      const Part& part = program.part(turn);
      const bool polishes = program.polishes(turn, mine);
      const int end = __any_sync(kWholeWarp, polishes) ? part.more : part.end;
#pragma unroll 1
      for (int i = part.begin; i < end; ++i)
        take(program.steps[i], turn <= mine && (i < part.end || polishes));
      if (turn >= 0) continue;
      mine += scale_powers(program);
      most = mine;  // the largest in the warp
      for (int bits = 16; bits > 0; bits /= 2) most = larger(most, __shfl_xor_sync(kWholeWarp, most, bits));
    }
    return place_of<A>(value(mine % 2 == 0 ? 4 : 5));
  }

  template <class T>
  __device__ __forceinline__ void write(const Batch<T>& batch, int place, T* out, bool finite) const {
    const A* const L = at(place);
#pragma unroll 4
    for (int e = lane; e < S::N * S::N; e += S::kLanes) {
      const int r = e / S::N, c = e % S::N;
      if (r < n && c < n) out[r * n + c] = batch.result(r, c, L[r * S::kLd + c], L[c * S::kLd + r], finite);
    }
  }
};

template <class T, int N>
__global__ void __launch_bounds__(LanesShape<acc_t<T>, N>::kThreads, LanesShape<acc_t<T>, N>::kBlocks)
    exponential_lanes(const __grid_constant__ Program<acc_t<T>> program, const Batch<T> batch) {
  using A = acc_t<T>;
  using S = LanesShape<A, N>;
  const int group = threadIdx.x / S::kLanes, n = batch.n;
  const long long matrix = static_cast<long long>(blockIdx.x) * S::kGroups + group;
  if (matrix - group % S::kMatrices >= batch.count) return;  // the whole warp
  const bool exists = matrix < batch.count;
  const long long place = exists ? matrix * n * n : 0;
  const LanesChain<S, A> chain(dynamic_shared<A>() + group * S::words(program.dual), n);
  const A largest =
      chain.read(batch, batch.X + place, program.dual ? batch.G + place : nullptr, exists ? n : 0);
  __syncwarp();
  const int result = chain.run(program, largest) + (program.dual ? kPlaces<A> : 0);
  if (exists) chain.write(batch, result, batch.out + place, is_finite(largest));
}

}  // namespace fastparam::cuda
