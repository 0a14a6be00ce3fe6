// The second attempt for large skew matrices that fail the guard: Newton's iteration on the inverse. With
// M = I + D near (I + aA)^-1:
//   R = I - (I + aA) M   (R = -(D + aA + aA D))
//   M += M R             (D += R + D R)
// Each step squares R. Because R is computed with twice the digits, the result is as accurate as its type,
// even if the first attempt has lost nearly all digits.
//
// It is one launch, because the host does not know whether any matrix failed. Teams of blocks process the
// flagged matrices in turn, some columns at a time, which bounds their memory. A matrix is flagged no longer
// when it has converged. The others are left to repeat_pivoted.
#pragma once
#include "../../core/cuda/panels.cuh"
#include "../../core/cuda/teams.cuh"
#include "given.cuh"

namespace fastparam::cuda {

constexpr int kRefineSteps = 8;
// Frobenius norms of R: above the first, the iteration is not tried, and below the second, it is sure to
// converge.
constexpr double kFarResidual = 16, kNearResidual = 0.5;
constexpr double kEnough = 4;  // times sqrt(n) eps: the error of D that is left

// A sum with twice the digits of A.
template <class A>
struct Sum {
  double value = 0;
  __device__ __forceinline__ void add(double x) { value += x; }
  __device__ __forceinline__ double get() const { return value; }
};
template <class A>
__device__ __forceinline__ void add_product(Sum<A>& sum, double a, double b) {
  sum.value += a * b;
}
template <>
struct Sum<double> {
  double high = 0, low = 0;  // low: what rounding has removed
  __device__ __forceinline__ void add(double x) {
    const double sum = high + x, added = sum - high;
    low += (high - (sum - added)) + (x - added);
    high = sum;
  }
  __device__ __forceinline__ double get() const { return high + low; }
};
__device__ __forceinline__ void add_product(Sum<double>& sum, double a, double b) {
  const double product = __dmul_rn(a, b);  // is not contracted to an fma with the next sum
  sum.add(product);
  sum.low += fma(a, b, -product);
}

// The memory of a team that changes `width` columns at a time, in doubles.
struct RefineMemory {
  int n, width, tiles;

  __host__ __device__ RefineMemory(int n, int width, int tile)
      : n(n),
        width(width),
        tiles(((n + tile - 1) / tile) * ((width + tile - 1) / tile)) {}
  // The columns of R and of the next D, and two sums per tile.
  template <class A>
  __host__ __device__ long long words() const {
    return 2LL * tiles + (2LL * n * width * static_cast<int>(sizeof(A)) + 7) / 8;
  }
};

template <class T>
struct Refine {
  Given<T> given;
  acc_t<T>* D;
  unsigned* flags;
  double* memory;
  unsigned* arrived;  // one counter per team, initially 0
  long long batch;
  int teams, width;
};

// A block of a team, and the matrix of the team.
template <class T, int N>
class Refiner {
  using A = acc_t<T>;
  using Wide = TileShape<double, N>;
  using Shape = TileShape<A, N>;
  const Given<T>& given_;
  const RefineMemory space_;
  double* const sums_;  // of the squares of R and of the change, per tile
  A *const R_, *const next_;
  unsigned* const arrived_;
  const int n_, number_, size_, row_, column_;  // row, column: of the thread in a tile
  unsigned round_ = 0;
  const T* x_ = nullptr;
  A* D_ = nullptr;

 public:
  static constexpr int kThreads = Shape::kThreads;
  static constexpr int kBlocks = Shape::kBlocks / (sizeof(A) == 8 ? 2 : 1);  // per SM, by registers
  static constexpr int kSharedBytes = sizeof(typename Wide::Shared);

  __device__ Refiner(const Refine<T>& call, int team, int number, int size)
      : given_(call.given),
        space_(call.given.n, call.width, N),
        sums_(call.memory + team * space_.template words<A>()),
        R_(reinterpret_cast<A*>(sums_ + 2 * space_.tiles)),
        next_(R_ + static_cast<long long>(space_.n) * space_.width),
        arrived_(call.arrived + team),
        n_(call.given.n),
        number_(number),
        size_(size),
        row_(Shape::row()),
        column_(Shape::column()) {}

  // Returns whether the matrix has converged, the same in all threads of the team.
  __device__ bool run(const T* x, A* D) {
    x_ = x;
    D_ = D;
    const double eps = kEnough * static_cast<double>(kEpsilon<A>), enough = n_ * eps * eps;
    double before = 4 * kFarResidual * kFarResidual;
#pragma unroll 1
    for (int step = 0; step < kRefineSteps; ++step) {
      double residual = 0, change = 0;  // their squares
#pragma unroll 1
      for (int first = 0; first < n_; first += space_.width) {
        const int columns = n_ - first < space_.width ? n_ - first : space_.width;
        each_tile(columns, [&](int tile, int i, int j) { find_residual(tile, i, first, j, columns); });
        barrier();
        residual += total(sums_, columns);
        if (!(residual < before / 4)) {
          barrier();  // all blocks have read the sums, which the next matrix overwrites
          return false;
        }
        each_tile(columns, [&](int tile, int i, int j) { find_next(tile, i, first, j, columns); });
        barrier();
        change += total(sums_ + space_.tiles, columns);
        each_tile(columns, [&](int, int i, int j) {
          each_element(i, j, columns, [&](int, int, int r, int c) { at(r, first + c) = next(r, c); });
        });
        barrier();
      }
      // the error that is left is at most about the product of the two norms
      if (residual < kNearResidual * kNearResidual && residual * change <= enough) return true;
      before = residual;
    }
    return false;
  }

 private:
  __device__ __forceinline__ A& at(int i, int j) const { return D_[static_cast<long long>(i) * n_ + j]; }
  __device__ __forceinline__ A& R(int i, int j) const {
    return R_[static_cast<long long>(i) * space_.width + j];
  }
  __device__ __forceinline__ A& next(int i, int j) const {
    return next_[static_cast<long long>(i) * space_.width + j];
  }
  __device__ __forceinline__ void barrier() { team_barrier(arrived_, ++round_, size_); }

  // Calls f(tile, row, column) for the tiles of this block, among those of the given number of columns.
  template <class F>
  __device__ __forceinline__ void each_tile(int columns, const F& f) const {
    const int across = (columns + N - 1) / N, count = (n_ + N - 1) / N * across;
#pragma unroll 1
    for (int tile = number_; tile < count; tile += size_) f(tile, tile / across * N, tile % across * N);
  }
  // Calls f(r, c, row, column) for the elements of this thread in a tile.
  template <class F>
  __device__ __forceinline__ void each_element(int i, int j, int columns, const F& f) const {
#pragma unroll
    for (int r = 0; r < 4; ++r)
#pragma unroll
      for (int c = 0; c < 4; ++c)
        if (i + row_ + r < n_ && j + column_ + c < columns) f(r, c, i + row_ + r, j + column_ + c);
  }

  // Four adjacent elements of row i, from column j on: f(i, j) where that exists, else 0.
  template <class E, class F>
  __device__ __forceinline__ Four<E> four(int i, int j, int columns, const F& f) const {
    Four<E> v;
#pragma unroll
    for (int u = 0; u < 4; ++u) v.v[u] = i < n_ && j + u < columns ? static_cast<E>(f(i, j + u)) : E(0);
    return v;
  }
  __device__ __forceinline__ void find_residual(int tile, int i, int first, int j, int columns) const {
    const auto aA = [&](int r, int c) { return given_.element(x_, r, c); };
    Sum<A> acc[4][4];
    multiply<Wide>(
        acc, n_, [&](int r, int k) { return four<double>(i + r, k, n_, aA); },
        [&](int k, int c) {
          return four<double>(k, j + c, columns, [&](int r, int c) { return at(r, first + c); });
        },
        wide());
    double squares = 0;
    each_element(i, j, columns, [&](int r, int c, int row, int column) {
      acc[r][c].add(static_cast<double>(at(row, first + column)));
      acc[r][c].add(aA(row, first + column));
      const double residual = -acc[r][c].get();
      R(row, column) = static_cast<A>(residual);
      squares += residual * residual;
    });
    put_sum(sums_ + tile, squares);
  }
  __device__ __forceinline__ void find_next(int tile, int i, int first, int j, int columns) const {
    A acc[4][4] = {};
    multiply<Shape>(
        acc, n_, [&](int r, int k) { return four<A>(i + r, k, n_, [&](int r, int c) { return at(r, c); }); },
        [&](int k, int c) { return four<A>(k, j + c, columns, [&](int r, int c) { return R(r, c); }); },
        *dynamic_shared<typename Shape::Shared>());
    double squares = 0;
    each_element(i, j, columns, [&](int r, int c, int row, int column) {
      const A change = R(row, column) + acc[r][c];
      next(row, column) = at(row, first + column) + change;
      squares += static_cast<double>(change) * static_cast<double>(change);
    });
    put_sum(sums_ + space_.tiles + tile, squares);
  }

  __device__ __forceinline__ typename Wide::Shared& wide() const {
    return *dynamic_shared<typename Wide::Shared>();
  }
  // The sum over the threads of the block, the same in each of them.
  __device__ __forceinline__ double over_block(double mine) const {
    for (int bits = 16; bits > 0; bits /= 2) mine += __shfl_xor_sync(kWholeWarp, mine, bits);
    __syncthreads();  // the shared memory is no longer in use
    if (threadIdx.x % 32 == 0) wide().parts[threadIdx.x / 32] = mine;
    __syncthreads();
    double all = 0;
    for (int w = 0; w < kThreads / 32; ++w) all += wide().parts[w];
    return all;
  }
  __device__ __forceinline__ void put_sum(double* to, double mine) const {
    const double all = over_block(mine);
    if (threadIdx.x == 0) *to = all;
  }
  // The sum over the tiles. Its order does not depend on the size of the team.
  __device__ __forceinline__ double total(const double* sums, int columns) const {
    const int count = (n_ + N - 1) / N * ((columns + N - 1) / N);
    double mine = 0;
#pragma unroll 1
    for (int tile = threadIdx.x; tile < count; tile += kThreads) mine += sums[tile];
    return over_block(mine);
  }
};

template <class T, int N>
__global__ void __launch_bounds__(Refiner<T, N>::kThreads, Refiner<T, N>::kBlocks)
    refine(const Refine<T> call) {
  const int size = gridDim.x / call.teams, team = blockIdx.x / size, number = blockIdx.x % size;
  Refiner<T, N> refiner(call, team, number, size);
  const long long square = static_cast<long long>(call.given.n) * call.given.n;
  for (long long b = team; b < call.batch; b += call.teams) {
    if ((call.flags[b] & (kFailed | kNotSkew)) != kFailed) continue;
    const bool converged = refiner.run(call.given.matrix(b), call.D + b * square);
    // all blocks have read the flag, because they have waited for each other since
    if (converged && number == 0 && threadIdx.x == 0) call.flags[b] = 0;
  }
}

}  // namespace fastparam::cuda
