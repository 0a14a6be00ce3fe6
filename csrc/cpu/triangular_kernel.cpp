// symmetric, skew and their adjoints on CPU.
//
// A matrix is cut into N x N tiles that fit the vector registers. Of a pair of mirrored tiles one, the source, is read and written by
// rows; transposed in registers it gives the other. The given tile lies in the triangle that is read:
//   forward   the source is the given tile:      Y = X there, (+-) X^T in the other      (the mirrored half of X is not read)
//   adjoint   the source is the mirrored tile:   D = 0 there, G +- (source)^T in the other
// So every cache line is touched once and written whole. The last tiles of a matrix overlap the ones before instead of being cut: what they
// share is written twice. A tile that so reaches over the diagonal leaves wrong values beside it, which the diagonal tiles, always last,
// set right.
#include <ATen/Parallel.h>
#include <torch/library.h>

#include <algorithm>
#include <numeric>

#include "../common.h"
#include "bits.h"

namespace fastparam {
namespace {

using namespace fastparam::cpu;

constexpr int64_t kGrain = 32768;     // elements of work below which no second thread is woken
constexpr int64_t kGroupBytes = 128;  // a group of tiles writes so much of each mirrored row,
constexpr int64_t kStreamedGroupBytes = 256;  // or so much past the caches
constexpr int64_t kStreamBytes = 12 << 20;    // outputs from this size on are written past the caches
constexpr int64_t kLine = 64;                 // bytes of a cache line
constexpr int64_t kPage = 4096;       // rows so far apart share a cache set: then tiles are staged, kStaged by kStaged
constexpr int kStaged = 8;
constexpr int kTiny = 7;   // orders up to this have a path of their own
constexpr int kSmall = 8;  // tile of the orders between kTiny and the full tile

// A batch of matrices in and out (contiguous), and the map as data.
template <class T>
struct Map {
  const BitsOf<T>* in;
  BitsOf<T>* out;
  int64_t batch, n, batch_stride, row_stride;
  BitsOf<T> flip;      // xor of what is mirrored: the sign bit for skew
  BitsOf<T> diagonal;  // and of the diagonal: 0 for skew
  bool lower;
};

// ---- one matrix by tiles ----------------------------------------------------------------------------------------------------

template <class T>
constexpr int full_tile(int vector_bytes) { return std::min<int>(16, vector_bytes / sizeof(T)); }

// How a matrix is cut: rows of tiles, in groups. A task is the groups t and (last - t): together they are as long as any other two.
struct Cut {
  bool staged;
  int64_t rows, per_group, groups, tasks;
  FASTPARAM_INLINE Cut(int64_t n, int64_t tile, int64_t element_bytes, bool streamed)
      : staged(n * element_bytes % kPage == 0), rows((n + tile - 1) / tile),
        per_group(staged ? kStaged : std::max<int64_t>(1, (streamed ? kStreamedGroupBytes : kGroupBytes) / (tile * element_bytes))),
        groups(std::max<int64_t>(1, rows / per_group)), tasks((groups + 1) / 2) {}
};

// Masks: of N lanes, those from up + N - 1 - i on are set where lane > i, from down + N - i where lane < i, from at + N - 1 - i where lane == i.
template <class Bits, int N>
struct Steps {
  Bits up[2 * N] = {}, down[2 * N] = {}, at[2 * N] = {};
  constexpr Steps() {
    for (int i = 0; i < N; ++i) up[N + i] = down[i] = static_cast<Bits>(~Bits(0));
    at[N - 1] = up[N];
  }
};
template <class Bits, int N>
constexpr Steps<Bits, N> kSteps;

template <class T, int N, bool Adjoint, bool Streamed>
struct Tiles {
  using Row = Vec<BitsOf<T>, N>;

  const Map<T> map;
  const Cut cut;
  const BitsOf<T>* in = nullptr;
  BitsOf<T>* out = nullptr;

  FASTPARAM_INLINE explicit Tiles(const Map<T>& map) : map(map), cut(map.n, N, sizeof(T), Streamed) {}

  FASTPARAM_INLINE int64_t at(int64_t tile) const { return std::min(tile * N, map.n - N); }

  FASTPARAM_INLINE Row read(int64_t r, int64_t c) const { return load<Row>(in + r * map.row_stride + c); }
  FASTPARAM_INLINE void write(int64_t r, int64_t c, const Row& row) const {
    if constexpr (Streamed) store_past_caches(out + r * map.n + c, row);
    else store(out + r * map.n + c, row);
  }

  // What becomes of a row of the source, and of a row of its transpose, at (r, c).
  FASTPARAM_INLINE void write_source(int64_t r, int64_t c, const Row& x) const { write(r, c, Adjoint ? Row{} : x); }
  FASTPARAM_INLINE void write_other(int64_t r, int64_t c, const Row& x) const {
    if constexpr (Adjoint) write(r, c, add<T, N>(read(r, c), x ^ map.flip));
    else write(r, c, x ^ map.flip);
  }

  // The source at (r, c).
  FASTPARAM_INLINE void pair(int64_t r, int64_t c) const {
    Row t[N];
    for (int i = 0; i < N; ++i) t[i] = read(r + i, c);
    for (int i = 0; i < N; ++i) write_source(r + i, c, t[i]);
    transpose<BitsOf<T>, N>(t);
    for (int i = 0; i < N; ++i) write_other(c + i, r, t[i]);
  }

  // kStaged x kStaged pairs at once, the source at (r, c). Where rows are whole pages apart, a column of lines shares one cache set and
  // evicts itself; so memory is read and written in long pieces of rows and the transposition goes through two buffers.
  FASTPARAM_INLINE void staged_pairs(int64_t r, int64_t c) const {
    constexpr int kSide = kStaged * N;
    alignas(64) BitsOf<T> source[kSide][kSide], other[N][kSide];
    for (int i = 0; i < kSide; ++i)
      for (int j = 0; j < kSide; j += N) {
        const Row x = read(r + i, c + j);
        write_source(r + i, c + j, x);
        store(&source[i][j], x);
      }
    for (int j = 0; j < kSide; j += N) {
      for (int i = 0; i < kSide; i += N) {
        Row t[N];
        for (int k = 0; k < N; ++k) t[k] = load<Row>(&source[i + k][j]);
        transpose<BitsOf<T>, N>(t);
        for (int k = 0; k < N; ++k)
          if constexpr (Streamed) write_other(c + j + k, r + i, t[k]);
          else store(&other[k][i], t[k]);
      }
      if constexpr (!Streamed)
        for (int k = 0; k < N; ++k)
          for (int i = 0; i < kSide; i += N) write_other(c + j + k, r + i, load<Row>(&other[k][i]));
    }
  }

  FASTPARAM_INLINE void on_diagonal(int64_t r) const {
    constexpr const Steps<BitsOf<T>, N>& steps = kSteps<BitsOf<T>, N>;
    Row t[N];
    for (int i = 0; i < N; ++i) t[i] = read(r + i, r);
    transpose<BitsOf<T>, N>(t);
    for (int i = 0; i < N; ++i) {
      const Row given = load<Row>(map.lower ? steps.down + N - i : steps.up + N - 1 - i);
      const Row diagonal = load<Row>(steps.at + N - 1 - i);
      const Row x = read(r + i, r), y = t[i] ^ map.flip, kept = x & diagonal & map.diagonal;
      if constexpr (Adjoint) write(r + i, r, (add<T, N>(x, y) & given) | kept);
      else write(r + i, r, (x & given) | (y & ~given & ~diagonal) | kept);
    }
  }

  // The tiles whose row of sources is in the group. First along the rows, the group's tiles of a column together, so that kGroupBytes of
  // a row of the other tiles are written at once; then those inside the group, the diagonal last.
  FASTPARAM_INLINE void group(int64_t g) const {
    const int64_t first = g * cut.per_group, last = g + 1 == cut.groups ? cut.rows : first + cut.per_group;
    const bool sources_left = map.lower != Adjoint;
    const int64_t begin = sources_left ? 0 : first, end = sources_left ? last : cut.rows;
    if (cut.staged)
      for (int64_t c = sources_left ? 0 : last; c < (sources_left ? first : cut.rows); c += kStaged) staged_pairs(at(first), at(c));
    for (int64_t c = cut.staged ? first : begin; c < (cut.staged ? last : end); ++c)
      for (int64_t r = first; r < last; ++r)
        if (sources_left ? c < r : c > r) pair(at(r), at(c));
    for (int64_t r = first; r < last; ++r) on_diagonal(at(r));
  }

  FASTPARAM_INLINE void run(int64_t begin, int64_t end) {
    for (int64_t task = begin; task < end; ++task) {
      const int64_t b = task / cut.tasks, near = task % cut.tasks, far = cut.groups - 1 - near;
      in = map.in + b * map.batch_stride;
      out = map.out + b * map.n * map.n;
      for (int64_t g = near; g <= far; g += std::max<int64_t>(1, far - near)) group(g);
    }
    if constexpr (Streamed) fence_past_caches();
  }
};

// Large outputs whose rows are whole cache lines: written without being read first, and without driving everything else out.
template <class T>
FASTPARAM_INLINE bool streamed(const Map<T>& map) {
  const int64_t row = map.n * static_cast<int64_t>(sizeof(T));
  return map.batch * map.n * row >= kStreamBytes && row % kLine == 0 && reinterpret_cast<uintptr_t>(map.out) % kLine == 0;
}

template <class T, bool Adjoint>
struct TilesBody {
  template <int Bytes>
  static FASTPARAM_INLINE void run(const Map<T>* map, int64_t begin, int64_t end) {
    constexpr int N = full_tile<T>(Bytes);
    if (map->n < N) Tiles<T, std::min(N, kSmall), Adjoint, false>(*map).run(begin, end);
    else if (!streamed(*map)) Tiles<T, N, Adjoint, false>(*map).run(begin, end);
    else Tiles<T, N, Adjoint, true>(*map).run(begin, end);
  }
  static int64_t tasks(const Map<T>& map) {
    const int full = full_tile<T>(vector_bytes());
    return Cut(map.n, map.n < full ? kSmall : full, sizeof(T), map.n >= full && streamed(map)).tasks;
  }
};

// ---- tiny matrices: the order is a constant and everything unrolls --------------------------------------------------------------

template <class T, int N, bool Adjoint, int Bytes>
struct Tiny {
  using Bits = BitsOf<T>;

  // Vectors of kLanes elements run over the dense matrices one after the other; kPeriod of them are whole matrices again. The mirrored
  // elements of one vector are chosen from two that begin kReach before it: registers of that kind exist from AVX2 on.
  static constexpr int kElements = N * N, kLanes = sizeof(Bits) == 8 ? Bytes / 8 : Bytes / 4;
  static constexpr int kPeriod = kElements / std::gcd(kElements, kLanes), kReach = kLanes % kElements == 0 ? 0 : (N - 1) * (N - 1);
  static constexpr bool kByVector = Bytes >= 32 && N > 1 && 2 * kReach <= kLanes;
  static constexpr int64_t kMatrices = kPeriod * kLanes / kElements, kWorthwhile = 4 * kMatrices;
  using Row = Vec<Bits, kLanes>;

  const Map<T> map;

  template <bool Lower>
  FASTPARAM_INLINE void by_element(int64_t begin, int64_t end) const {
    for (int64_t b = begin; b < end; ++b) {
      const Bits* x = map.in + b * map.batch_stride;
      Bits* y = map.out + b * kElements;
#pragma GCC unroll 8
      for (int i = 0; i < N; ++i) {
        y[i * N + i] = x[i * map.row_stride + i] & map.diagonal;
#pragma GCC unroll 8
        for (int j = i + 1; j < N; ++j) {
          const int r = Lower ? j : i, c = Lower ? i : j;  // given
          const Bits given = x[r * map.row_stride + c];
          if constexpr (Adjoint) {
            y[r * N + c] = add<T, 1>(Vec<Bits, 1>{given}, Vec<Bits, 1>{static_cast<Bits>(x[c * map.row_stride + r] ^ map.flip)})[0];
            y[c * N + r] = 0;
          } else {
            y[r * N + c] = given;
            y[c * N + r] = given ^ map.flip;
          }
        }
      }
    }
  }

  template <bool Lower>
  FASTPARAM_INLINE void by_vector(int64_t begin, int64_t end) const {
    Row mirror[kPeriod], given[kPeriod], diagonal[kPeriod];
    for (int e = 0; e < kPeriod * kLanes; ++e) {
      const int v = e / kLanes, lane = e % kLanes, i = e % kElements / N, j = e % kElements % N;
      mirror[v][lane] = static_cast<Bits>(lane + kReach + (j - i) * (N - 1));
      given[v][lane] = (Lower ? i > j : i < j) ? ~Bits(0) : 0;
      diagonal[v][lane] = i == j ? ~Bits(0) : 0;
    }
    for (int64_t b = begin; b < end; b += kMatrices)
      for (int v = 0; v < kPeriod; ++v) {
        const int64_t at = b * kElements + v * kLanes;
        const Row x = load<Row>(map.in + at), a = load<Row>(map.in + at - kReach);
        const Row y = (kReach == 0 ? shuffle<Bits, kLanes>(a, a, mirror[v]) : shuffle<Bits, kLanes>(a, load<Row>(map.in + at - kReach + kLanes), mirror[v])) ^ map.flip;
        Row value;
        if constexpr (Adjoint) value = add<T, kLanes>(x, y) & given[v];
        else value = (x & given[v]) | (y & ~given[v] & ~diagonal[v]);
        store(map.out + at, value | (x & diagonal[v] & map.diagonal));
      }
  }

  // The first and last matrices, and all where rows are not dense, by element.
  template <bool Lower>
  FASTPARAM_INLINE void run(int64_t begin, int64_t end) const {
    const bool dense = map.row_stride == N && map.batch_stride == kElements;
    if constexpr (kByVector)
      if (dense && end - begin >= kWorthwhile) {
        const int64_t first = begin + (kReach > 0), last = first + (end - 1 - first - (kReach > 0)) / kMatrices * kMatrices;
        by_element<Lower>(begin, first);
        by_vector<Lower>(first, last);
        begin = last;
      }
    by_element<Lower>(begin, end);
  }
};

template <class T, int N, bool Adjoint>
struct TinyBody {
  template <int Bytes>
  static FASTPARAM_INLINE void run(const Map<T>* map, int64_t begin, int64_t end) {
    const Tiny<T, N, Adjoint, Bytes> tiny{*map};
    map->lower ? tiny.template run<true>(begin, end) : tiny.template run<false>(begin, end);
  }
};

// ---- the choice -----------------------------------------------------------------------------------------------------------------

template <class Body, class T>
void parallel(const Map<T>& map, int64_t tasks_per_matrix) {
  const int64_t elements = std::max<int64_t>(1, map.n * map.n / tasks_per_matrix);
  at::parallel_for(0, map.batch * tasks_per_matrix, std::max<int64_t>(1, kGrain / elements),
                   [&](int64_t begin, int64_t end) { run_simd<Body>(&map, begin, end); });
}

template <class T, bool Adjoint, int N = 1>
void run(const Map<T>& map) {
  if constexpr (N <= kTiny) map.n == N ? parallel<TinyBody<T, N, Adjoint>>(map, 1) : run<T, Adjoint, N + 1>(map);
  else parallel<TilesBody<T, Adjoint>>(map, TilesBody<T, Adjoint>::tasks(map));
}

template <class T, bool Adjoint>
void run(const Matrices& X, Tensor& Y, bool skew, bool lower) {
  using Bits = BitsOf<T>;
  const Bits sign = Bits(1) << (8 * sizeof(T) - 1), all = static_cast<Bits>(~Bits(0));
  run<T, Adjoint>(Map<T>{static_cast<const Bits*>(X.tensor.const_data_ptr()), static_cast<Bits*>(Y.mutable_data_ptr()), X.batch, X.n,
                         X.batch_stride, X.row_stride, skew ? sign : Bits(0), skew ? Bits(0) : all, lower});
}

// Forward copies bits: one instance a size. The adjoint adds: one instance a type.
void forward(const Matrices& X, Tensor& Y, bool skew, bool lower) {
  switch (Y.element_size()) {
    case 2: return run<uint16_t, false>(X, Y, skew, lower);
    case 4: return run<uint32_t, false>(X, Y, skew, lower);
    default: return run<uint64_t, false>(X, Y, skew, lower);
  }
}

void adjoint(const Matrices& G, Tensor& D, bool skew, bool lower) {
  switch (D.scalar_type()) {
    case at::kHalf: return run<at::Half, true>(G, D, skew, lower);
    case at::kBFloat16: return run<at::BFloat16, true>(G, D, skew, lower);
    case at::kFloat: return run<float, true>(G, D, skew, lower);
    default: return run<double, true>(G, D, skew, lower);
  }
}

using Fallback = Tensor (*)(const Tensor&, bool);

template <bool Adjoint, bool Skew, Fallback without_kernel>
Tensor map(const Tensor& X, bool lower) {
  check_square(Adjoint ? (Skew ? "skew_adjoint" : "symmetric_adjoint") : (Skew ? "skew" : "symmetric"), Adjoint ? "G" : "X", X);
  if (X.is_complex()) {
    warn_no_kernel(X);
    return without_kernel(X, lower);
  }
  Tensor Y = empty_like_contiguous(X);
  if (Y.numel() > 0) Adjoint ? adjoint(Matrices(X), Y, Skew, lower) : forward(Matrices(X), Y, Skew, lower);
  return Y;
}

}  // namespace

TORCH_LIBRARY_IMPL(fastparam, CPU, m) {
  m.impl("symmetric", &map<false, false, fallback::symmetric>);
  m.impl("symmetric_adjoint", &map<true, false, fallback::symmetric_adjoint>);
  m.impl("skew", &map<false, true, fallback::skew>);
  m.impl("skew_adjoint", &map<true, true, fallback::skew_adjoint>);
}

}  // namespace fastparam
