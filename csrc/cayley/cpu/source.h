// Reads the parameter of one matrix, and computes aA from it.
//
// Every path computes D = (I + aA)^-1 - I ("delta") and then Q = 2 D + I. Storing D instead of D + I keeps
// small A accurate, because nothing except Q itself is rounded at the size of 1.
#pragma once

#include "../../core/cpu/dense/lane_masks.h"
#include "call.h"

namespace fastparam::cpu {

// The parameter of one matrix.
template <class In>
struct Source {
  const In *x, *end;  // end of the tensor; reading up to here is allowed
  int64_t n, stride;
  Layout layout;

  FASTPARAM_INLINE Source(const CayleyCall<In>& call, int64_t matrix)
      : Source(call.in + matrix * call.entries(), call.in + call.batch * call.entries(), call.n, call.n,
               call.layout) {}
  // Rows are `stride` apart, unless they are packed.
  FASTPARAM_INLINE Source(const In* x, const In* end, int64_t n, int64_t stride, Layout layout)
      : x(x),
        end(end),
        n(n),
        stride(stride),
        layout(layout) {}

  // Entry (i, j) is row(i)[j], for every j in the triangle.
  FASTPARAM_INLINE const In* row(int64_t i) const {
    return layout == Layout::packed ? x + i * n - i * (i + 1) / 2 - i - 1 : x + i * stride;
  }

  // The columns c, c + 1, ... of row i as T; 0 from column n on.
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

// ---- aA from its triangle ---------------------------------------------------------------------------------

// Sets S to aA, and to 0 beyond n. S is `rows` x `rows`, in rows of length `width` (a multiple of N) that
// are `stride` apart.
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

  // The tiles (r, c) and (c, r), r < c.
  FASTPARAM_INLINE void pair(int64_t r, int64_t c) const {
    if (X.layout == Layout::lower) std::swap(r, c);
    V t[N];
    for (int l = 0; l < N; ++l) t[l] = r + l < X.n ? X.template read<T, N>(r + l, c) * alpha : V{};
    for (int l = 0; l < N; ++l) put(r + l, c, t[l]);
    transpose<T, N>(t);
    for (int l = 0; l < N; ++l) put(c + l, r, -t[l]);
  }

  FASTPARAM_INLINE void diagonal(int64_t r) const {
    V t[N], u[N];
    if (X.layout == Layout::packed) {
      alignas(64) T tile[N][N] = {};
      for (int l = 0; l < N; ++l)
        for (int q = l + 1; q < N && r + q < X.n; ++q) tile[l][q] = static_cast<T>(X.row(r + l)[r + q]);
      for (int l = 0; l < N; ++l) t[l] = load<V>(tile[l]) * alpha;
    } else {
      for (int l = 0; l < N; ++l) t[l] = r + l < X.n ? X.template read<T, N>(r + l, r) * alpha : V{};
    }
    for (int l = 0; l < N; ++l) u[l] = t[l];
    transpose<T, N>(u);
    const bool lower = X.layout == Layout::lower;
    for (int l = 0; l < N; ++l) {
      const auto up = ~first_lanes<T, N>(l + 1), down = first_lanes<T, N>(l);
      const V kept = only(t[l], lower ? down : up), mirrored = only(-u[l], lower ? up : down);
      put(r + l, r, bit_cast<V>(bit_cast<MaskOf<T, N>>(kept) | bit_cast<MaskOf<T, N>>(mirrored)));
    }
  }

  // One row of tiles from the diagonal on, and the mirror images of these tiles.
  FASTPARAM_INLINE void tile_row(int64_t r) const {
    diagonal(r);
    for (int64_t c = r + N; c < width; c += N) pair(r, c);
  }
};

}  // namespace fastparam::cpu
