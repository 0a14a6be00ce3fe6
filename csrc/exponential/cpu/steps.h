// What the exponential is made of: sums of matrices with a product, transposes, sums of squares; all of
// padded matrices, whose columns beyond n are zero. Each runs at the CPU's level, its strips among threads
// where orders are large.
#pragma once

#include <cmath>
#include <limits>

#include "../../core/cpu/dense/product.h"
#include "../../core/cpu/dense/threads.h"
#include "recurrence.h"

namespace fastparam::cpu {

struct Order {
  int64_t n, width, stride;  // width: whole vectors

  template <class T>
  static Order of(int64_t n) {
    const int64_t lanes = vector_bytes() / sizeof(T), width = (n + lanes - 1) / lanes * lanes;
    return {n, width, width > kStrip ? width + 16 : width};
  }
  int64_t size() const { return width * stride; }  // rows are filled up as columns are
};

// O = the sum of factor * term, + A B. With `half` the result is symmetric, or skew: what lies left of the
// diagonal's blocks is not made.
template <class T>
struct Sum {
  Order order;
  T* O;
  int count;
  const T* terms[kMostTerms];
  T factors[kMostTerms];
  const T *A, *B;  // null: no product
  bool half;
};

template <class T>
struct SumBody {
  template <int Bytes>
  static FASTPARAM_INLINE void run(const Sum<T>* sum, int64_t begin, int64_t end) {
    constexpr int64_t kStep = Product<T, Bytes>::kTile * Product<T, Bytes>::W;
    const auto [n, width, stride] = sum->order;
    const int64_t strips = strips_of(width);
    for (int64_t task = begin; task < end; ++task) {
      // Halves grow with the strip: threads, which take neighbours, get a long one with each short one.
      const int64_t strip = !sum->half ? task : task % 2 == 0 ? task / 2 : strips - 1 - task / 2;
      const int64_t j = strip * kStrip, last = std::min(j + kStrip, width);
      const int64_t rows = sum->half ? std::min(last, n) : n;
      add_terms<Bytes>(*sum, rows, j, last);
      if (!sum->A) continue;
      if (strips > 1) {
        multiply<T, Bytes, false>(sum->A, stride, sum->B + j, stride, sum->O + j, stride, rows, n, last - j,
                                  true);
        continue;
      }
      const Product<T, Bytes> product{sum->A, stride, sum->B, stride, sum->O, stride, n, true};
      if (!sum->half) product.template run<false>(0, n, 0, width);
      else
        for (int64_t c = 0; c < width; c += kStep)
          product.template run<false>(0, std::min(c + kStep, n), c, std::min(c + kStep, width));
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
    // Where one strip has all columns, the rows are one.
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

// Tiles of W x W: O = the transpose of M; or, where O is M, what lies below the diagonal becomes `sign` times
// what lies above it.
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
          for (int l = 1; l < W; ++l)
            for (int q = 0; q < l; ++q) O[(c + l) * stride + r + q] = sign * t[l][q];
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
    int64_t k = 0;
    for (int64_t i = 0; i < order->n; ++i)
      for (int64_t j = 0; j < order->width; j += W, ++k) {
        const V v = load<V>(M + i * order->stride + j);
        sums[k % 4] += v * v;
      }
    const V sum = (sums[0] + sums[1]) + (sums[2] + sums[3]);
    *squares = 0;
    for (int l = 0; l < W; ++l) *squares += sum[l];
  }
};

// The largest magnitude of the entries; NaN where one is not finite.
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
