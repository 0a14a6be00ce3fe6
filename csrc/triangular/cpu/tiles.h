// Matrices by tiles.
//
// A matrix is cut into N x N tiles that fit the vector registers. Of a pair of mirrored tiles one, the
// source, is read and written by rows; transposed in registers it gives the other. The given tile lies in the
// triangle that is read:
//   forward   the source is the given tile:      Y = X there, (+-) X^T in the other      (the mirrored half
//   of X is not read) adjoint   the source is the mirrored tile:   D = 0 there, G +- (source)^T in the other
// So every cache line is touched once and written whole. The last tiles of a matrix overlap the ones before
// instead of being cut: what they share is written twice. A tile that so reaches over the diagonal leaves
// wrong values beside it, which the diagonal tiles, always last, set right.
#pragma once

#include <algorithm>

#include "call.h"

namespace fastparam::cpu {

constexpr int64_t kGroupBytes = 128;           // a group of tiles writes so much of each mirrored row,
constexpr int64_t kStreamedGroupBytes = 256;   // or so much past the caches
constexpr int64_t kPrefetchBytes = 512 << 10;  // outputs from this size on are fetched ahead of the tiles,
constexpr int64_t kStreamBytes = 12 << 20;     // from this size on written past the caches
constexpr int64_t kLine = 64;                  // bytes of a cache line
constexpr int64_t kPage =
    4096;  // rows so far apart share a cache set: then tiles are staged, kStaged by kStaged
constexpr int kStaged = 8;
constexpr int64_t kSmallOrder = 128;

// How a matrix is cut: rows of tiles, in groups. A task is the groups t and (last - t): together they are as
// long as any other two.
struct Cut {
  bool staged;
  int64_t rows, per_group, groups, tasks;
  FASTPARAM_INLINE Cut(int64_t n, int64_t tile, int64_t element_bytes, bool streamed)
      : staged(n * element_bytes % kPage == 0),
        rows((n + tile - 1) / tile),
        per_group(staged ? kStaged
                         : std::max<int64_t>(
                               1, (streamed ? kStreamedGroupBytes : kGroupBytes) / (tile * element_bytes))),
        groups(std::max<int64_t>(1, rows / per_group)),
        tasks((groups + 1) / 2) {}
};

// Masks: of N lanes, those from up + N - 1 - i on are set where lane > i, from down + N - i where lane < i,
// from at + N - 1 - i where lane
// == i.
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
        cut(map.n, N, sizeof(T), Streamed) {}

  FASTPARAM_INLINE int64_t at(int64_t tile) const { return std::min(tile * N, map.n - N); }

  FASTPARAM_INLINE Row read(int64_t r, int64_t c) const { return load<Row>(in + r * map.row_stride + c); }
  FASTPARAM_INLINE void write(int64_t r, int64_t c, const Row& row) const {
    if constexpr (Streamed) store_past_caches(out + r * map.n + c, row);
    else store(out + r * map.n + c, row);
  }

  // What becomes of a row of the source, and of a row of its transpose, at (r, c).
  FASTPARAM_INLINE void write_source(int64_t r, int64_t c, const Row& x) const {
    write(r, c, Adjoint ? Row{} : x);
  }
  FASTPARAM_INLINE void write_other(int64_t r, int64_t c, const Row& x) const {
    if constexpr (Adjoint) write(r, c, add<T, N>(read(r, c), x ^ map.flip));
    else write(r, c, x ^ map.flip);
  }

  // What the pairs to come touch: the source two tiles on, its mirror one tile on. No hardware stream follows
  // a column of short pieces.
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

  // The source at (r, c).
  FASTPARAM_INLINE void pair(int64_t r, int64_t c) const {
    Row t[N];
    if (fetch_ahead) prefetch(r, c);
    for (int i = 0; i < N; ++i) t[i] = read(r + i, c);
    for (int i = 0; i < N; ++i) write_source(r + i, c, t[i]);
    transpose<BitsOf<T>, N>(t);
    for (int i = 0; i < N; ++i) write_other(c + i, r, t[i]);
  }

  // kStaged x kStaged pairs at once, the source at (r, c). Where rows are whole pages apart, a column of
  // lines shares one cache set and evicts itself; so memory is read and written in long pieces of rows and
  // the transposition goes through two buffers.
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

  // The tiles whose row of sources is in the group. First along the rows, the group's tiles of a column
  // together, so that kGroupBytes of a row of the other tiles are written at once; then those inside the
  // group, the diagonal last.
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

  // Tasks are counted through the batch.
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

// Large outputs are written without being read first and without driving everything else out of the caches,
// where tiles are lines wide.
template <class T, int N>
FASTPARAM_INLINE bool streamed(const TriangularMap<T>& map) {
  constexpr int64_t kRow = N * sizeof(T);
  return kRow == kLine && map.n % N == 0 &&
         map.batch * map.n * map.n * static_cast<int64_t>(sizeof(T)) >= kStreamBytes &&
         reinterpret_cast<uintptr_t>(map.out) % kLine == 0;
}

// Calls f(N, Streamed) with the constants that serve the map where vectors have so many bytes. Up to
// kSmallOrder tiles half as wide were measured a quarter faster for 4-byte types: they fit the order better
// and split fewer cache lines.
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
      return Cut(map->n, n, sizeof(T), streamed).tasks;
    });
  }
};

}  // namespace fastparam::cpu
