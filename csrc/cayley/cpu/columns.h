// Checks of the columns of a matrix, and of whether it is skew.
#pragma once

#include "../../core/cpu/dense/lane_masks.h"
#include "../../core/cpu/dense/square.h"

namespace fastparam::cpu {

// Returns whether each of the columns j, ..., j + C * W - 1 of S has a sum of squares equal to `centre`
// within the tolerance. Columns from n on are ignored. Calls each(i, j, vector) on the way.
template <class T, int W, int C, class Each>
FASTPARAM_INLINE bool columns_near(const T* S, int64_t stride, int64_t n, int64_t j, T centre, T tolerance,
                                   const Each& each) {
  using V = Vec<T, W>;
  V sum[C] = {};
  for (int64_t i = 0; i < n; ++i)
#pragma GCC unroll 16
    for (int c = 0; c < C; ++c) {
      const V s = load<V>(S + i * stride + j + c * W);
      sum[c] += s * s;
      each(i, j + c * W, s);
    }
  auto ok = ~MaskOf<T, W>{};
#pragma GCC unroll 16
  for (int c = 0; c < C; ++c) {
    const auto beyond = ~first_lanes<T, W>(n - j - c * W);
    ok &= at_most<T, W>(sum[c] - centre, tolerance - V{}) | beyond;
  }
  return all(ok);
}

// The same for the columns [j, last) of a strip.
template <class T, int W, class Each>
FASTPARAM_INLINE bool columns_near(const T* S, int64_t stride, int64_t n, int64_t j, int64_t last, T centre,
                                   T tolerance, const Each& each) {
  if (j + kStrip == last) return columns_near<T, W, kStrip / W>(S, stride, n, j, centre, tolerance, each);
  bool ok = true;
  for (; j + W < last; j += 2 * W) ok &= columns_near<T, W, 2>(S, stride, n, j, centre, tolerance, each);
  if (j < last) ok &= columns_near<T, W, 1>(S, stride, n, j, centre, tolerance, each);
  return ok;
}

// ---- is A skew? -------------------------------------------------------------------------------------------

template <class T>
struct SkewTest {
  const T* in;
  int64_t n;
  uint8_t* other;  // one flag per matrix, set if it is not exactly minus its transpose
};

template <class T>
struct SkewTestBody {
  template <int Bytes>
  static FASTPARAM_INLINE void run(const SkewTest<T>* test, int64_t begin, int64_t end) {
    constexpr int W = Bytes / sizeof(T);
    const int64_t n = test->n, whole = n / W * W;
    for (int64_t m = begin; m < end; ++m) {
      const T* A = test->in + m * n * n;
      bool skew = true;
      for (int64_t r = 0; r < whole && skew; r += W)
        for (int64_t c = r; c < whole; c += W) skew &= tiles<W>(A, n, r, c);
      for (int64_t i = 0; i < n && skew; ++i)  // the entries outside of whole tiles
        for (int64_t j = std::max(i, whole); j < n; ++j) skew &= A[i * n + j] == -A[j * n + i];
      test->other[m] = !skew;
    }
  }
  template <int W>
  static FASTPARAM_INLINE bool tiles(const T* A, int64_t n, int64_t r, int64_t c) {
    using V = Vec<T, W>;
    V t[W];
    for (int l = 0; l < W; ++l) t[l] = load<V>(A + (r + l) * n + c);
    transpose<T, W>(t);
    MaskOf<T, W> different{};
    for (int l = 0; l < W; ++l) {
      const V a = t[l] + T(0), b = T(0) - load<V>(A + (c + l) * n + r);  // neither is -0
      different |= bit_cast<MaskOf<T, W>>(a) ^ bit_cast<MaskOf<T, W>>(b);
    }
    return !any(different);
  }
};

}  // namespace fastparam::cpu
