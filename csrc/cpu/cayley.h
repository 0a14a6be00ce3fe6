// One call of a Cayley op on real matrices, and what every path shares: the parameter as tiles, the guard, denormal numbers.
//
// Every path computes D = (I + aA)^-1 - I ("delta") by elimination without row exchanges, and from it Q = 2 D + I. Of a skew A all pivots
// are >= 1 in exact arithmetic. Storing D and not D + I is what keeps small A accurate: nothing is rounded at the size of 1 but Q itself.
// Where A is large, digits are lost; the guard finds the matrices whose Q is not orthogonal enough, see cayley_batch.h.
#pragma once

#include <algorithm>
#include <cmath>
#include <limits>

#include "simd.h"

namespace fastparam::cpu {

enum class Layout { Upper, Lower, Packed };  // A is given by a strict triangle of an n x n matrix, or by the entries above the diagonal

template <class T>
struct CayleyMap {
  const T* in;
  T* out;
  int64_t n, batch;
  double alpha;
  Layout layout;
  uint8_t* failed;  // one flag a matrix, set where the guard fails

  FASTPARAM_INLINE int64_t entries() const { return layout == Layout::Packed ? n * (n - 1) / 2 : n * n; }
};

// Elimination is trusted where no column of aA has a larger sum of squares than this (measured: with norms up to 8 no worse than LU with
// row exchanges, in most cases from 40 on worse),
constexpr double kLargestColumn = 16;
// and where after it the square of the norm of each column of Q is 1 within so many eps, times sqrt(n / 64) above 64.
constexpr double kColumnTolerance = 34;
template <class T>
FASTPARAM_INLINE T column_tolerance(int64_t n) {
  return static_cast<T>(kColumnTolerance * std::numeric_limits<T>::epsilon() * std::sqrt(std::max(1.0, static_cast<double>(n) / 64)));
}

// Within its life denormal numbers are zeros in this thread: entries near 1e-20 have denormal products, which cost x86 up to 60 times.
class FlushDenormals {
#ifdef __SSE__
  const unsigned saved_ = __builtin_ia32_stmxcsr();

 public:
  FlushDenormals() { __builtin_ia32_ldmxcsr(saved_ | 0x8040); }  // flush to zero, denormals are zero
  ~FlushDenormals() { __builtin_ia32_ldmxcsr(saved_); }
  FlushDenormals(const FlushDenormals&) = delete;
  FlushDenormals& operator=(const FlushDenormals&) = delete;
#else
 public:
  FlushDenormals() {}
#endif
};

template <class T>
using MaskElement = std::make_signed_t<typename UIntOf<sizeof(T)>::type>;

// Masks of N lanes, loaded from tables: g++ 12 fails on comparisons of integer vectors at the wider levels.
template <class T, int N>
struct LaneMasks {
  using M = MaskElement<T>;
  M first_[2 * N] = {}, but_[2 * N + 4] = {};
  T unit_[2 * N] = {};
  constexpr LaneMasks() {
    for (int i = 0; i < N; ++i) first_[i] = but_[i] = but_[N + 4 + i] = -1;
    unit_[N - 1] = 1;
  }
};
template <class T, int N>
constexpr LaneMasks<T, N> kLaneMasks;

// Of N lanes the first `count`; all but the four from `at` on, which may lie outside.
template <class T, int N>
FASTPARAM_INLINE Vec<MaskElement<T>, N> first_lanes(int64_t count) {
  return load<Vec<MaskElement<T>, N>>(kLaneMasks<T, N>.first_ + N - std::max<int64_t>(0, std::min<int64_t>(N, count)));
}
template <class T, int N>
FASTPARAM_INLINE Vec<MaskElement<T>, N> all_but_four(int64_t at) {
  return load<Vec<MaskElement<T>, N>>(kLaneMasks<T, N>.but_ + N - std::max<int64_t>(-4, std::min<int64_t>(N, at)));
}

// 1 in lane `at`, 0 elsewhere.
template <class T, int N>
FASTPARAM_INLINE Vec<T, N> unit(int64_t at) {
  return load<Vec<T, N>>(kLaneMasks<T, N>.unit_ + (at >= 0 && at < N ? N - 1 - at : N));
}

// The elements of x where the mask is set, 0 elsewhere.
template <class V, class M>
FASTPARAM_INLINE V only(const V& x, const M& mask) {
  return bit_cast<V>(bit_cast<M>(x) & mask);
}

template <class M>
FASTPARAM_INLINE bool all(const M& mask) {
  auto result = mask[0];
  for (size_t l = 1; l < sizeof(M) / sizeof(mask[0]); ++l) result &= mask[l];
  return result != 0;
}

// Fetches what comes next into the caches, a share at each of `ticks` calls: of streams so short the hardware foresees little.
struct Prefetch {
  static constexpr int64_t kLine = 64;
  const char *first, *second, *written;
  int64_t left, share;  // lines

  Prefetch() : first(nullptr), second(nullptr), written(nullptr), left(0), share(0) {}
  FASTPARAM_INLINE Prefetch(const void* first, const void* second, const void* written, int64_t bytes, int64_t ticks)
      : first(static_cast<const char*>(first)),
        second(static_cast<const char*>(second)),
        written(static_cast<const char*>(written)),
        left((bytes + kLine - 1) / kLine),
        share((left + ticks - 1) / ticks) {}
  FASTPARAM_INLINE void tick() {
    for (int64_t l = std::min(left, share); l > 0; --l, --left, first += kLine, second += kLine, written += kLine) {
      __builtin_prefetch(first, 0);
      if (second != first) __builtin_prefetch(second, 0);
      __builtin_prefetch(written, 1);
    }
  }
};

// The parameter of one matrix.
template <class In>
struct Source {
  const In *x, *end;  // end of the tensor: up to there may be read
  int64_t n;
  Layout layout;

  FASTPARAM_INLINE Source(const CayleyMap<In>& map, int64_t matrix)
      : x(map.in + matrix * map.entries()),
        end(map.in + map.batch * map.entries()),
        n(map.n),
        layout(map.layout) {}

  // Entry (i, j) is row(i)[j], for the j of the triangle.
  FASTPARAM_INLINE const In* row(int64_t i) const { return layout == Layout::Packed ? x + i * n - i * (i + 1) / 2 - i - 1 : x + i * n; }

  // Columns c, c + 1, ... of row i as T, 0 from column n on.
  template <class T, int N>
  FASTPARAM_INLINE Vec<T, N> read(int64_t i, int64_t c) const {
    using V = Vec<In, N>;
    const In* p = row(i) + c;
    V v{};
    if (p + N <= end) v = load<V>(p);
    else std::memcpy(&v, p, std::max<int64_t>(0, std::min<int64_t>(N, n - c)) * sizeof(In));
    if (c + N > n) v = only(v, first_lanes<In, N>(n - c));
    return __builtin_convertvector(v, Vec<T, N>);
  }
};

// ---- aA from its triangle ----------------------------------------------------------------------------------------------------------

// S, `rows` x `rows` in rows `width` long (a multiple of N) and `stride` apart, becomes aA, and 0 beyond n.
template <class T, int N, class In>
struct SkewTiles {
  using V = Vec<T, N>;
  const Source<In> X;
  T* S;
  int64_t rows, width, stride;
  T alpha;

  FASTPARAM_INLINE void put(int64_t i, int64_t j, const V& v) const {
    if (i < rows) store(S + i * stride + j, v);
  }

  // Tiles (r, c) and (c, r), r < c.
  FASTPARAM_INLINE void pair(int64_t r, int64_t c) const {
    if (X.layout == Layout::Lower) std::swap(r, c);
    V t[N];
    for (int l = 0; l < N; ++l) t[l] = r + l < X.n ? X.template read<T, N>(r + l, c) * alpha : V{};
    for (int l = 0; l < N; ++l) put(r + l, c, t[l]);
    transpose<T, N>(t);
    for (int l = 0; l < N; ++l) put(c + l, r, -t[l]);
  }

  FASTPARAM_INLINE void diagonal(int64_t r) const {
    V t[N], u[N];
    if (X.layout == Layout::Packed) {
      alignas(64) T tile[N][N] = {};
      for (int l = 0; l < N; ++l)
        for (int q = l + 1; q < N && r + q < X.n; ++q) tile[l][q] = static_cast<T>(X.row(r + l)[r + q]);
      for (int l = 0; l < N; ++l) t[l] = load<V>(tile[l]) * alpha;
    } else {
      for (int l = 0; l < N; ++l) t[l] = r + l < X.n ? X.template read<T, N>(r + l, r) * alpha : V{};
    }
    for (int l = 0; l < N; ++l) u[l] = t[l];
    transpose<T, N>(u);
    const bool lower = X.layout == Layout::Lower;
    for (int l = 0; l < N; ++l) {
      const auto up = ~first_lanes<T, N>(l + 1), down = first_lanes<T, N>(l);
      const V given = only(t[l], lower ? down : up), mirrored = only(-u[l], lower ? up : down);
      put(r + l, r, bit_cast<V>(bit_cast<Vec<MaskElement<T>, N>>(given) | bit_cast<Vec<MaskElement<T>, N>>(mirrored)));
    }
  }

  // The tiles of one row of tiles from the diagonal on, and their mirror images.
  FASTPARAM_INLINE void tile_row(int64_t r) const {
    diagonal(r);
    for (int64_t c = r + N; c < width; c += N) pair(r, c);
  }
};

}  // namespace fastparam::cpu
