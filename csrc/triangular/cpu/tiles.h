// Processes matrices by tiles.
//
// A matrix is divided into N x N tiles that fit in the vector registers. One tile of each pair of mirrored
// tiles, the source, is read and written by rows; transposing it in registers gives the other one. The given
// tile lies in the triangle that is read:
//   forward   the source is the given tile: Y = X there, and +-X^T in the other one. The mirrored half of X
//             is not read.
//   adjoint   the source is the mirrored tile: D = 0 there, and G +- (source)^T in the other one.
// So every cache line is touched once and written as a whole. The last tiles of a matrix are not cut, but
// overlap the previous ones, and the entries that they share are written twice. If such a tile extends
// beyond the diagonal, it leaves wrong values next to it, which are corrected by the diagonal tiles, always
// the last ones.
#pragma once

#include <algorithm>

#include "call.h"

namespace fastparam::cpu {

constexpr int64_t kGroupBytes = 128;           // bytes that a group of tiles writes of each mirrored row
constexpr int64_t kStreamedGroupBytes = 256;   // the same when written past the caches
constexpr int64_t kPrefetchBytes = 512 << 10;  // outputs of at least this size are fetched ahead of the tiles
constexpr int64_t kStreamBytes = 12 << 20;     // outputs of at least this size are written past the caches
constexpr int64_t kLine = 64;                  // bytes of a cache line
// Rows this far apart share a cache set, so tiles are staged, kStaged by kStaged. Adjoints read both tiles of
// a pair, and are staged at half of it if tiles are as wide as cache lines.
constexpr int64_t kPage = 4096;
constexpr int kStaged = 8;
constexpr int64_t kSmallOrder = 128;

// How a matrix is divided: into rows of tiles, in groups. A task is the groups t and (last - t), so that all
// tasks are equally long.
struct Cut {
  bool staged;
  int64_t rows, per_group, groups, tasks;
  FASTPARAM_INLINE Cut(int64_t n, int64_t tile, int64_t element_bytes, bool streamed, bool adjoint)
      : staged(n * element_bytes % (adjoint && tile * element_bytes == kLine ? kPage / 2 : kPage) == 0),
        rows((n + tile - 1) / tile),
        per_group(staged ? kStaged
                         : std::max<int64_t>(
                               1, (streamed ? kStreamedGroupBytes : kGroupBytes) / (tile * element_bytes))),
        groups(std::max<int64_t>(1, rows / per_group)),
        tasks((groups + 1) / 2) {}
};

// Masks of N lanes. Those loaded from up + N - 1 - i are set where lane > i, those from down + N - i where
// lane < i, and those from at + N - 1 - i where lane == i.
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

  const TriangularMap<T> map;
  const Cut cut;
  const bool fetch_ahead = map.batch * map.n * map.n * static_cast<int64_t>(sizeof(T)) >= kPrefetchBytes;
  const BitsOf<T>* in = nullptr;
  BitsOf<T>* out = nullptr;

  FASTPARAM_INLINE explicit Tiles(const TriangularMap<T>& map)
      : map(map),
        cut(map.n, N, sizeof(T), Streamed, Adjoint) {}

  FASTPARAM_INLINE int64_t at(int64_t tile) const { return std::min(tile * N, map.n - N); }

  FASTPARAM_INLINE Row read(int64_t r, int64_t c) const { return load<Row>(in + r * map.row_stride + c); }
  FASTPARAM_INLINE void write(int64_t r, int64_t c, const Row& row) const {
    if constexpr (Streamed) store_past_caches(out + r * map.n + c, row);
    else store(out + r * map.n + c, row);
  }

  // Writes the results for a row of the source, and for a row of its transpose, at (r, c).
  FASTPARAM_INLINE void write_source(int64_t r, int64_t c, const Row& x) const {
    write(r, c, Adjoint ? Row{} : x);
  }
  FASTPARAM_INLINE void write_other(int64_t r, int64_t c, const Row& x) const {
    if constexpr (Adjoint) write(r, c, add<T, N>(read(r, c), x ^ map.flip));
    else write(r, c, x ^ map.flip);
  }

  // Prefetches the data of the next pairs: the source two tiles ahead, and its mirror image one tile ahead.
  // The hardware does not recognise a column of short pieces as a stream.
  FASTPARAM_INLINE void prefetch(int64_t r, int64_t c) const {
    for (int i = 0; i < N; ++i) {
      __builtin_prefetch(in + (r + i) * map.row_stride + c + 2 * N, 0);
      if (!Streamed) __builtin_prefetch(out + (r + i) * map.n + c + 2 * N, 1);
    }
    if (c + 2 * N > map.n) return;
    for (int i = N; i < 2 * N; ++i) {
      if (!Streamed) __builtin_prefetch(out + (c + i) * map.n + r, 1);
      if (Adjoint) __builtin_prefetch(in + (c + i) * map.row_stride + r, 0);
    }
  }

  // The pair whose source is at (r, c).
  FASTPARAM_INLINE void pair(int64_t r, int64_t c) const {
    Row t[N];
    if (fetch_ahead) prefetch(r, c);
    for (int i = 0; i < N; ++i) t[i] = read(r + i, c);
    for (int i = 0; i < N; ++i) write_source(r + i, c, t[i]);
    transpose<BitsOf<T>, N>(t);
    for (int i = 0; i < N; ++i) write_other(c + i, r, t[i]);
  }

  // kStaged x kStaged pairs at once, the first source at (r, c). If rows are whole pages apart, a column of
  // cache lines shares one cache set and evicts itself. So memory is read and written in long pieces of
  // rows, and the transposition goes through two buffers.
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

  // The tiles whose row of sources is in the group. The tiles outside of the group come first, one column of
  // the group after the other, so that kGroupBytes of a row of the mirrored tiles are written at once. Those
  // inside the group follow, the diagonal last.
  FASTPARAM_INLINE void group(int64_t g) const {
    const int64_t first = g * cut.per_group, last = g + 1 == cut.groups ? cut.rows : first + cut.per_group;
    const bool sources_left = map.lower != Adjoint;
    const int64_t begin = sources_left ? 0 : first, end = sources_left ? last : cut.rows;
    if (cut.staged)
      for (int64_t c = sources_left ? 0 : last; c < (sources_left ? first : cut.rows); c += kStaged)
        staged_pairs(at(first), at(c));
    for (int64_t c = cut.staged ? first : begin; c < (cut.staged ? last : end); ++c)
      for (int64_t r = first; r < last; ++r)
        if (sources_left ? c < r : c > r) pair(at(r), at(c));
    for (int64_t r = first; r < last; ++r) on_diagonal(at(r));
  }

  // Tasks are numbered through the batch.
  FASTPARAM_INLINE void run(int64_t begin, int64_t end) {
    in = map.in + begin / cut.tasks * map.batch_stride;
    out = map.out + begin / cut.tasks * map.n * map.n;
    int64_t near = begin % cut.tasks;
    for (int64_t task = begin; task < end; ++task) {
      const int64_t far = cut.groups - 1 - near;
      for (int64_t g = near; g <= far; g += std::max<int64_t>(1, far - near)) group(g);
      if (++near < cut.tasks) continue;
      near = 0;
      in += map.batch_stride;
      out += map.n * map.n;
    }
    if constexpr (Streamed) fence_past_caches();
  }
};

// If tiles are as wide as cache lines, large outputs are written without being read first and without
// evicting everything else from the caches.
template <class T, int N>
FASTPARAM_INLINE bool streamed(const TriangularMap<T>& map) {
  constexpr int64_t kRow = N * sizeof(T);
  return kRow == kLine && map.n % N == 0 &&
         map.batch * map.n * map.n * static_cast<int64_t>(sizeof(T)) >= kStreamBytes &&
         reinterpret_cast<uintptr_t>(map.out) % kLine == 0;
}

// Calls f(N, Streamed) with the constants for this map and this many bytes per vector. Up to kSmallOrder,
// tiles half as wide were measured to be a quarter faster for 4-byte types: they fit the order better and
// split fewer cache lines.
template <int Bytes, bool Adjoint, class T, class F>
FASTPARAM_INLINE auto with_tiles(const TriangularMap<T>& map, const F& f) {
  constexpr int N = std::min<int>(16, Bytes / sizeof(T));
  using Full = std::integral_constant<int, N>;
  using Small = std::integral_constant<int, std::min(N, 8)>;
  const bool fits = Adjoint && map.n % N == 0;
  if (map.n < N || (sizeof(T) == 4 && map.n <= kSmallOrder && !fits)) return f(Small(), std::false_type());
  return streamed<T, N>(map) ? f(Full(), std::true_type()) : f(Full(), std::false_type());
}

template <class T, bool Adjoint>
struct TilesBody {
  template <int Bytes>
  static FASTPARAM_INLINE void run(const TriangularMap<T>* map, int64_t begin, int64_t end) {
    with_tiles<Bytes, Adjoint>(*map, [&](auto n, auto streamed) __attribute__((always_inline)) {
      Tiles<T, decltype(n)::value, Adjoint, decltype(streamed)::value>(*map).run(begin, end);
    });
  }
};

template <class T, bool Adjoint>
struct TilesTasks {
  template <int Bytes>
  static FASTPARAM_INLINE int64_t run(const TriangularMap<T>* map) {
    return with_tiles<Bytes, Adjoint>(*map, [&](auto n, auto streamed) __attribute__((always_inline)) {
      return Cut(map->n, n, sizeof(T), streamed, Adjoint).tasks;
    });
  }
};

}  // namespace fastparam::cpu
