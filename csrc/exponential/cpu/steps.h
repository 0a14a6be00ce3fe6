// The steps of the exponential: sums of matrices with products, transposes, and sums of squares. All matrices
// are padded, and their columns beyond n are zero. Each step runs at the CPU's level, and threads share its
// strips if the order is large.
#pragma once

#include <cmath>
#include <limits>

#include "../../core/cpu/dense/lane_masks.h"
#include "../../core/cpu/dense/product.h"
#include "../../core/cpu/dense/threads.h"
#include "../recurrence.h"

namespace fastparam::cpu {

struct Order {
  int64_t n, width, stride;  // width: fills whole vectors

  template <class T>
  static Order of(int64_t n) {
    const int64_t lanes = vector_bytes() / sizeof(T), width = (n + lanes - 1) / lanes * lanes;
    return {n, width, width > kStrip ? width + 16 : (width + 15) / 16 * 16};
  }
  int64_t size() const { return width * stride; }  // rows are padded as columns are
};

// O = the sum of factor * term, and of the products A B. With `half`, the result is symmetric or skew, and
// the part to the left of the diagonal blocks is not computed.
template <class T>
struct Sum {
  Order order;
  T* O;
  int count;
  const T* terms[kMostTerms];
  T factors[kMostTerms];
  int products;
  const T *A[2], *B[2];
  bool half;
};

// The same for matrices whose rows are a constant Stride apart. Rows are addressed from one register, and all
// terms and products of an entry are added in one accumulator.
template <class T, int Bytes, int Stride>
struct SmallSum {
  static constexpr int W = Bytes / sizeof(T), kTile = Bytes == 64 ? 4 : 2;

  const Sum<T>& sum;

  // R x C vectors of L numbers.
  template <int R, int C, int L>
  FASTPARAM_INLINE void tile(int64_t i, int64_t j) const {
    using V = Vec<T, L>;
    V o[R][C] = {};
    for (int t = 0; t < sum.count; ++t) {
      const T f = sum.factors[t], *const term = sum.terms[t] + i * Stride + j;
#pragma GCC unroll 16
      for (int r = 0; r < R; ++r)
#pragma GCC unroll 16
        for (int c = 0; c < C; ++c) o[r][c] += f * load<V>(term + r * Stride + c * L);
    }
    for (int p = 0; p < sum.products; ++p) {
      const T *a = sum.A[p] + i * Stride, *b = sum.B[p] + j;
      for (int64_t k = 0; k < sum.order.n; ++k, ++a, b += Stride) {
        V row[C];
#pragma GCC unroll 16
        for (int c = 0; c < C; ++c) row[c] = load<V>(b + c * L);
#pragma GCC unroll 16
        for (int r = 0; r < R; ++r)
#pragma GCC unroll 16
          for (int c = 0; c < C; ++c) o[r][c] += a[r * Stride] * row[c];
      }
    }
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 16
      for (int c = 0; c < C; ++c) {
        T* const o_row = sum.O + (i + r) * Stride + j + c * W;
        store(o_row, o[r][c]);
        if constexpr (L < W) store(o_row + L, V{});
      }
  }

  template <int R, int C, int L = W>
  FASTPARAM_INLINE void rows(int64_t end, int64_t j) const {
    int64_t i = 0;
    for (; i + R <= end; i += R) tile<R, C, L>(i, j);
    if constexpr (R > 8)
      for (; i + 8 <= end; i += 8) tile<8, C, L>(i, j);
    if constexpr (R > 4)
      for (; i + 4 <= end; i += 4) tile<4, C, L>(i, j);
    for (; i + 2 <= end; i += 2) tile<2, C, L>(i, j);
    for (; i < end; ++i) tile<1, C, L>(i, j);
  }

  // A last vector that is at most half full is half as wide, which is faster on CPUs that execute 64 bytes
  // in two steps.
  FASTPARAM_INLINE void run() const {
    const auto [n, width, stride] = sum.order;
    constexpr bool kWide = Bytes == 64;
    const int64_t step = kWide && sum.half ? 1 : kTile;
    const int64_t whole = kWide && width - n >= W / 2 ? width - W : width;
    for (int64_t j = 0; j < whole; j += step * W) {
      const int64_t end = sum.half ? std::min(j + step * W, n) : n;
      constexpr auto columns = [](int C) { return std::min({C, kTile, Stride / W}); };
      switch (std::min<int64_t>((whole - j) / W, step)) {
        case 1: rows<kWide ? 16 : 8, 1>(end, j); break;
        case 2: rows<kWide ? 12 : 6, columns(2)>(end, j); break;
        case 3: rows<8, columns(3)>(end, j); break;
        case 4: rows<6, columns(4)>(end, j); break;
      }
    }
    if constexpr (kWide)
      if (whole < width) rows<16, 1, W / 2>(n, whole);
  }
};

template <class T, int Stride>
struct SmallSumBody {
  template <int Bytes>
  static FASTPARAM_INLINE void run(const Sum<T>* sum) {
    SmallSum<T, Bytes, Stride>{*sum}.run();
  }
};

template <class T>
struct SumBody {
  template <int Bytes>
  static FASTPARAM_INLINE void run(const Sum<T>* sum, int64_t begin, int64_t end) {
    const auto [n, width, stride] = sum->order;
    const int64_t strips = strips_of(width);
    for (int64_t task = begin; task < end; ++task) {
      // With `half`, later strips are longer. A thread has adjacent tasks, so each short strip is next to a
      // long one.
      const int64_t strip = !sum->half ? task : task % 2 == 0 ? task / 2 : strips - 1 - task / 2;
      const int64_t j = strip * kStrip, last = std::min(j + kStrip, width);
      const int64_t rows = sum->half ? std::min(last, n) : n;
      add_terms<Bytes>(*sum, rows, j, last);
      for (int p = 0; p < sum->products; ++p)
        multiply<T, Bytes, false>(sum->A[p], stride, sum->B[p] + j, stride, sum->O + j, stride, rows, n,
                                  last - j, true);
    }
  }

  template <int Bytes>
  static FASTPARAM_INLINE void add_terms(const Sum<T>& sum, int64_t rows, int64_t j, int64_t last) {
    switch (sum.count) {
      case 0: return add<Bytes, 0>(sum, rows, j, last);
      case 1: return add<Bytes, 1>(sum, rows, j, last);
      case 2: return add<Bytes, 2>(sum, rows, j, last);
      case 3: return add<Bytes, 3>(sum, rows, j, last);
      case 4: return add<Bytes, 4>(sum, rows, j, last);
      case 5: return add<Bytes, 5>(sum, rows, j, last);
      case 6: return add<Bytes, 6>(sum, rows, j, last);
    }
  }
  template <int Bytes, int Count>
  static FASTPARAM_INLINE void add(const Sum<T>& sum, int64_t rows, int64_t j, int64_t last) {
    constexpr int W = Bytes / sizeof(T);
    using V = Vec<T, W>;
    // If one strip contains all columns, all rows are processed as one.
    const bool dense = last - j == sum.order.stride;
    const int64_t lines = dense ? 1 : rows, length = dense ? rows * sum.order.stride : last - j;
    for (int64_t i = 0; i < lines; ++i)
      for (int64_t e = i * sum.order.stride + j; e < i * sum.order.stride + j + length; e += W) {
        V v{};
#pragma GCC unroll 6
        for (int t = 0; t < Count; ++t) v += sum.factors[t] * load<V>(sum.terms[t] + e);
        store(sum.O + e, v);
      }
  }
};

template <class T>
void add_up(const Sum<T>& sum) {
  const auto [n, width, stride] = sum.order;
  if (sum.products != 0) switch (stride) {
      case 16: return run_simd<SmallSumBody<T, 16>>(&sum);
      case 32: return run_simd<SmallSumBody<T, 32>>(&sum);
      case 48: return run_simd<SmallSumBody<T, 48>>(&sum);
      case 64: return run_simd<SmallSumBody<T, 64>>(&sum);
    }
  parallel_tasks<SumBody<T>>(n, strips_of(width), &sum);
}

// Sets O to `sign` times the transpose of M, by tiles of W x W. If O is M, only the part below the diagonal
// is written, from the part above it.
template <class T>
struct TransposeBody {
  template <int Bytes>
  static FASTPARAM_INLINE void run(const Order* order, const T* M, T* O, T sign, int64_t begin, int64_t end) {
    constexpr int W = Bytes / sizeof(T);
    using V = Vec<T, W>;
    const auto [n, width, stride] = *order;
    for (int64_t r = begin * kStrip; r < std::min(end * kStrip, n); r += W)
      for (int64_t c = O == M ? r : 0; c < n; c += W) {
        V t[W];
        for (int l = 0; l < W; ++l) t[l] = load<V>(M + (r + l) * stride + c);
        transpose<T, W>(t);
        if (O == M && r == c) {
          for (int l = 1; l < W; ++l) {
            T* const row = O + (c + l) * stride + r;
            const auto below = first_lanes<T, W>(l);
            store(row, either(below, V(sign * t[l]), load<V>(row)));
          }
        } else {
          for (int l = 0; l < W; ++l) store(O + (c + l) * stride + r, sign * t[l]);
        }
      }
  }
};

// The sum of the squares of the entries.
template <class T>
struct SquaresBody {
  template <int Bytes>
  static FASTPARAM_INLINE void run(const Order* order, const T* M, T* squares) {
    constexpr int W = Bytes / sizeof(T);
    using V = Vec<T, W>;
    V sums[4] = {};
    for (int64_t j = 0; j < order->width; j += W) {
      const T* m = M + j;
      int64_t i = 0;
      for (; i + 4 <= order->n; i += 4)
#pragma GCC unroll 4
        for (int r = 0; r < 4; ++r, m += order->stride) sums[r] += load<V>(m) * load<V>(m);
      for (; i < order->n; ++i, m += order->stride) sums[0] += load<V>(m) * load<V>(m);
    }
    const V sum = (sums[0] + sums[1]) + (sums[2] + sums[3]);
    *squares = 0;
    for (int l = 0; l < W; ++l) *squares += sum[l];
  }
};

// The largest magnitude of an entry, or NaN if an entry is not finite.
template <class T>
T largest_of(const Order& order, const T* M) {
  T largest = 0;
  for (int64_t i = 0; i < order.n; ++i)
    for (int64_t j = 0; j < order.n; ++j) {
      const T size = std::abs(M[i * order.stride + j]);
      if (!std::isfinite(size)) return std::numeric_limits<T>::quiet_NaN();
      largest = std::max(largest, size);
    }
  return largest;
}

}  // namespace fastparam::cpu
