// Products of reflections, one matrix at a time, in the compact form (the formulas are in
// householder_expression.cpp). X is n x k. Rows of the work space are whole vectors, whose entries beyond k
// are arbitrary.
#pragma once

#include <type_traits>

#include "../../core/cpu/dense/lane_masks.h"
#include "../../core/cpu/dense/product.h"
#include "../../core/cpu/dense/threads.h"
#include "../../core/cpu/dense/widen.h"

namespace fastparam::cpu {

// A call for Q or, with G, for the gradient of X.
template <class In>
struct HouseholderCall {
  const In *X, *G;
  In* out;
  int64_t n, k, batch;
};

// A float32 matrix whose reflections have nearly parallel vectors would lose digits, and is computed in
// float64. The criterion is the sum of the squared cosines between the vectors, which may be at most this
// number per column. Square Gaussian matrices have half a square per column.
constexpr float kMostParallel = 4;

// x <- U^-1 x for an upper triangular x or, if Transposed, x <- U^-T x for any x. Only the upper triangle of
// U is read. The columns of x fill whole vectors.
template <class T, bool Transposed>
struct SolveBody {
  template <int Bytes>
  static FASTPARAM_INLINE void run(const T* U, T* x, int64_t stride, int64_t k, int64_t width) {
    constexpr int W = Bytes / sizeof(T);
    for (int64_t c = 0; c < width; c += 4 * W) switch ((width - c) / W) {
        case 1: columns<W, 1>(U, x, c, stride, k); break;
        case 2: columns<W, 2>(U, x, c, stride, k); break;
        case 3: columns<W, 3>(U, x, c, stride, k); break;
        default: columns<W, 4>(U, x, c, stride, k);
      }
  }
  template <int W, int C>
  static FASTPARAM_INLINE void columns(const T* U, T* x, int64_t first, int64_t stride, int64_t k) {
    using V = Vec<T, W>;
    const int64_t rows = Transposed ? k : std::min(k, first + C * W);
    x += first;
    for (int64_t step = 0; step < rows; ++step) {
      const int64_t i = Transposed ? step : rows - 1 - step, end = Transposed ? i : rows;
      V sum[2][C] = {};
      const auto add = [&](int part, int64_t j) __attribute__((always_inline)) {
        const T u = Transposed ? U[j * stride + i] : U[i * stride + j];
#pragma GCC unroll 4
        for (int c = 0; c < C; ++c) sum[part][c] += u * load<V>(x + j * stride + c * W);
      };
      int64_t j = Transposed ? 0 : i + 1;
      for (; j + 2 <= end; j += 2) add(0, j), add(1, j + 1);
      if (j < end) add(0, j);
      const T inverse = 1 / U[i * (stride + 1)];
#pragma GCC unroll 4
      for (int c = 0; c < C; ++c) {
        T* const at = x + i * stride + c * W;
        store(at, (load<V>(at) - (sum[0][c] + sum[1][c])) * inverse);
      }
    }
  }
};

template <class In, class T, int Bytes>
class Compact {
  static constexpr int W = Bytes / sizeof(T);
  using V = Vec<T, W>;

  const int64_t n_, k_, width_, stride_, rows_;
  T *const A_, *const G_, *const D_;                             // n x k
  T *const U_, *const W_, *const Y_, *const turned_, *const M_;  // k x k

 public:
  static FASTPARAM_INLINE int64_t width_of(int64_t k) { return (k + W - 1) / W * W; }
  FASTPARAM_INLINE Compact(int64_t n, int64_t k, T* memory)
      : n_(n),
        k_(k),
        width_(width_of(k)),
        stride_(width_ > kStrip ? width_ + 16 : width_),
        rows_(std::max(n, width_)),
        A_(memory),
        G_(A_ + rows_ * stride_),
        D_(G_ + rows_ * stride_),
        U_(D_ + rows_ * stride_),
        W_(U_ + width_ * stride_),
        Y_(W_ + width_ * stride_),
        turned_(Y_ + width_ * stride_),
        M_(turned_ + width_ * stride_) {}

  // Returns false, without writing, if T is float and the matrix has to be computed in double.
  FASTPARAM_INLINE bool run(const In* X, const In* G, In* out) const {
    for (int64_t i = 0; i < n_; ++i) {
      const int64_t given = std::min(i, k_);
      std::copy_n(X + i * k_, given, A_ + i * stride_);
      std::fill_n(A_ + i * stride_ + given, width_ - given, T(0));
    }
    times_lower<true>(A_, A_, U_, n_, true);
    turn(A_, W_);
    for (int64_t i = 0; i < k_; ++i) {
      T* const u = U_ + i * stride_;
      for (int64_t j = 0; j < width_; j += W) store(u + j, load<V>(u + j) + load<V>(W_ + i * stride_ + j));
      u[i] = (u[i] + 1) / 2;
      W_[i * (stride_ + 1)] = 1;
    }
    if (std::is_same_v<T, float> && !(parallel() <= kMostParallel * k_)) return false;
    run_at<Bytes, SolveBody<T, false>>(static_cast<const T*>(U_), W_, stride_, k_, width_);
    G ? gradient(G, out) : value(out);
    return true;
  }

 private:
  // The sum of the squared cosines between the vectors.
  FASTPARAM_INLINE T parallel() const {
    T* const inverse = Y_;  // of the squared norms of the vectors
    for (int64_t i = 0; i < k_; ++i) inverse[i] = 1 / (2 * U_[i * (stride_ + 1)]);
    T sum = 0;
    for (int64_t i = 0; i + 1 < k_; ++i) {
      V row{};
      for (int64_t j = (i + 1) / W * W; j < width_; j += W) {
        const V u = load<V>(U_ + i * stride_ + j);
        row += only(u * u * load<V>(inverse + j), first_lanes<T, W>(k_ - j) & ~first_lanes<T, W>(i + 1 - j));
      }
      T of_row = 0;
      for (int l = 0; l < W; ++l) of_row += row[l];
      sum += of_row * inverse[i];
    }
    return sum;
  }
  // O = A B (A^T B if Transposed), or O = O + A B with `add`. Only the rows [begin, end) and the columns
  // [j, last) of O are computed, from the terms [first, past) of their sums.
  template <bool Transposed>
  FASTPARAM_INLINE void product(const T* A, const T* B, T* O, int64_t begin, int64_t end, int64_t j,
                                int64_t last, int64_t first, int64_t past, bool add) const {
    constexpr int64_t kDepth = 256;  // up to this depth, B stays in the caches and is read in place
    A += Transposed ? first * stride_ + begin : begin * stride_ + first;
    B += first * stride_ + j, O += begin * stride_ + j;
    const int64_t rows = end - begin, depth = past - first, columns = last - j;
    if (columns > kStrip || depth > kDepth)
      return multiply<T, Bytes, Transposed>(A, stride_, B, stride_, O, stride_, rows, depth, columns, add);
    Product<T, Bytes>{A, stride_, B, stride_, O, stride_, depth, add}.template run<Transposed>(0, rows, 0,
                                                                                               columns);
  }
  // O = A M for the strictly lower A, whose row i gives i terms.
  FASTPARAM_INLINE void lower_times(const T* M, T* O, bool add) const {
    constexpr int64_t kRows = 24;
    for (int64_t i = 0; i < n_; i += kRows) {
      const int64_t end = std::min(i + kRows, n_);
      product<false>(A_, M, O, i, i >= k_ ? n_ : end, 0, width_, 0, std::min(end, k_), add);
      if (i >= k_) return;
    }
  }
  // O = A B (A^T B if Transposed) for a lower B, whose column j has no terms before the j-th. With `upper`, O
  // has k rows, and only its upper triangle needs to be complete.
  template <bool Transposed>
  FASTPARAM_INLINE void times_lower(const T* A, const T* B, T* O, int64_t depth, bool upper) const {
    for (int64_t j = 0; j < width_; j += kStrip) {
      const int64_t last = std::min(j + kStrip, width_);
      product<Transposed>(A, B, O, 0, upper ? std::min(last, k_) : n_, j, last, j, depth, false);
    }
  }
  // O = the transpose of the first k rows of M.
  FASTPARAM_INLINE void turn(const T* M, T* O) const {
    for (int64_t r = 0; r < k_; r += W)
      for (int64_t c = 0; c < k_; c += W) {
        V t[W];
        for (int l = 0; l < W; ++l) t[l] = load<V>(M + (r + l) * stride_ + c);
        transpose<T, W>(t);
        for (int l = 0; l < W; ++l) store(O + (c + l) * stride_ + r, t[l]);
      }
  }

  FASTPARAM_INLINE void value(In* out) const {
    lower_times(W_, D_, false);
    for (int64_t i = 0; i < n_; ++i) {
      T* const d = D_ + i * stride_;
      for (int64_t j = 0; j < k_; ++j) d[j] = -(i < k_ ? W_[i * stride_ + j] + d[j] : d[j]);
      if (i < k_) d[i] += 1;
      std::copy_n(d, k_, out + i * k_);
    }
  }

  FASTPARAM_INLINE void gradient(const In* G, In* out) const {
    for (int64_t i = 0; i < n_; ++i) {
      std::copy_n(G + i * k_, k_, G_ + i * stride_);
      std::fill_n(G_ + i * stride_ + k_, width_ - k_, T(0));
    }
    std::copy_n(G_, k_ * stride_, Y_);
    product<true>(A_, G_, Y_, 0, k_, 0, width_, 0, n_, true);
    run_at<Bytes, SolveBody<T, true>>(static_cast<const T*>(U_), Y_, stride_, k_, width_);
    turn(W_, turned_);
    times_lower<false>(Y_, turned_, M_, k_, true);
    times_lower<false>(G_, turned_, D_, k_, false);
    turn(M_, turned_);
    for (int64_t i = 0; i < k_; ++i) {  // minus M
      std::copy_n(turned_ + i * stride_, i, M_ + i * stride_);
      for (int64_t j = 0; j < width_; j += W) store(M_ + i * stride_ + j, -load<V>(M_ + i * stride_ + j));
    }
    lower_times(M_, D_, true);
    turn(Y_, turned_);
    for (int64_t i = 0; i < n_; ++i) {
      const T *const d = D_ + i * stride_, *const m = M_ + i * stride_, *const y = turned_ + i * stride_;
      const int64_t given = std::min(i, k_);
      In* const to = out + i * k_;
      for (int64_t j = 0; j < given; ++j) to[j] = static_cast<In>(-(i < k_ ? d[j] + m[j] + y[j] : d[j]));
      std::fill_n(to + given, k_ - given, In(0));
    }
  }
};

template <class In, class T>
struct HouseholderBody {
  template <int Bytes>
  static FASTPARAM_INLINE bool run(const HouseholderCall<In>* call, void* memory, int64_t m) {
    if constexpr (Bytes == 64)
      if (call->k * sizeof(T) <= 32) return run_at<32, HouseholderBody>(call, memory, m);  // half as wide
    const int64_t size = call->n * call->k;
    const Compact<In, T, Bytes> compact(call->n, call->k, static_cast<T*>(memory));
    return compact.run(call->X + m * size, call->G ? call->G + m * size : nullptr, call->out + m * size);
  }
};

template <class T>
int64_t householder_bytes(int64_t n, int64_t k) {
  const int64_t stride = largest_stride(k);
  return (3 * std::max(n, stride) + 5 * stride) * stride * static_cast<int64_t>(sizeof(T));
}

template <class In>
void run_householder(const HouseholderCall<In>& call) {
  using T = compute_t<In>;
  const int64_t n = call.n, k = call.k;
  over_batch(call.batch, false, n * k * k, householder_bytes<T>(n, k),
             [&](int64_t begin, int64_t end, void* memory) {
               for (int64_t m = begin; m < end; ++m) {
                 if (run_simd<HouseholderBody<In, T>>(&call, memory, m) || std::is_same_v<T, double>)
                   continue;
                 const Scratch more(householder_bytes<double>(n, k));
                 run_simd<HouseholderBody<In, double>>(&call, more.get(), m);
               }
             });
}

}  // namespace fastparam::cpu
