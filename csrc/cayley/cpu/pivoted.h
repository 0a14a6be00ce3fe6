// Elimination with row exchanges. It is the second attempt, in double, for matrices that fail the guard, and
// the only one for matrices that are not skew.
//
// This is Gauss-Jordan in place, one panel of columns at a time. Rows are not moved: order[k] is the pivot
// row of step k, and the inverse of the row-permuted matrix is read out at the end. The steps of a panel are
// then applied to all other columns, to the pivot rows one after the other, and to every other row i at
// once:
//   S_i <- S_i - factors_i R,   R_c: pivot row c at step c, divided by its pivot.
// (Multiplying by the inverse of the pivot block instead would lose accuracy, because that block can be
// ill-conditioned.) All the work is in this product. Threads share its strips, and no result depends on how
// they do.
#pragma once

#include "../../core/cpu/dense/householder.h"
#include "blocks.h"

namespace fastparam::cpu {

template <class T>
struct Exchanges {
  Square<T> S;
  int64_t n;
  T* panel;  // n rows of kPivotPanel: the columns of the panel
  // minus the multiple of each pivot row subtracted from row i; for the pivot row itself, 1 / pivot
  T* factors;
  int32_t* order;    // the pivot row of each step
  int32_t* step_of;  // the step in which a row was the pivot row, or -1
  bool* singular;    // set if all remaining pivots are 0
  T least;           // pivots of a smaller size are replaced by this
};

// Chooses pivots in the columns from k on, and updates these columns.
template <class T>
struct PanelBody {
  template <int Bytes>
  static FASTPARAM_INLINE void run(const Exchanges<T>* e, int64_t k) {
    constexpr int W = Bytes / sizeof(T);
    using V = Vec<T, W>;
    const int64_t n = e->n, width = std::min(kPivotPanel, e->S.width - k);
    for (int64_t i = 0; i < n; ++i)
      std::memcpy(e->panel + i * kPivotPanel, e->S.row(i) + k, width * sizeof(T));
    for (int64_t c = 0; c < std::min(kPivotPanel, n - k); ++c) {
      const int64_t pivot = find_pivot(*e, c);
      e->order[k + c] = static_cast<int32_t>(pivot), e->step_of[pivot] = static_cast<int32_t>(k + c);
      T* const row = e->panel + pivot * kPivotPanel;
      const T inverse = std::abs(row[c]) < e->least ? std::copysign(1 / e->least, row[c]) : 1 / row[c];
      row[c] = 1;
      e->factors[pivot * kPivotPanel + c] = inverse;
      for (int64_t j = 0; j < width; j += W) store(row + j, load<V>(row + j) * inverse);
      for (int64_t i = 0; i < n; ++i) {
        if (i == pivot) continue;
        T* const other = e->panel + i * kPivotPanel;
        const T factor = other[c];
        other[c] = 0;
        e->factors[i * kPivotPanel + c] = -factor;
        for (int64_t j = 0; j < width; j += W)
          store(other + j, load<V>(other + j) - factor * load<V>(row + j));
      }
    }
    for (int64_t i = 0; i < n; ++i)
      std::memcpy(e->S.row(i) + k, e->panel + i * kPivotPanel, width * sizeof(T));
  }
  // The row with the largest entry of a column among the rows that have not been pivots; the first of them
  // if the column is NaN.
  static FASTPARAM_INLINE int64_t find_pivot(const Exchanges<T>& e, int64_t c) {
    int64_t pivot = -1;
    T largest = 0;
    for (int64_t i = 0; i < e.n; ++i) {
      if (e.step_of[i] >= 0) continue;
      const T size = std::abs(e.panel[i * kPivotPanel + c]);
      if (pivot < 0 || size > largest) pivot = i, largest = size;
    }
    if (largest == 0) *e.singular = true;
    return pivot;
  }
};

template <class T>
struct ExchangedStripBody {
  template <int Bytes>
  static FASTPARAM_INLINE void run(const Exchanges<T>* e, int64_t k, int64_t begin, int64_t end) {
    const int64_t after = k + kPivotPanel;
    for (int64_t strip = begin; strip < end; ++strip) {
      const int64_t j = strip * kStrip, last = std::min(j + kStrip, e->S.width);
      columns<Bytes>(*e, k, j, std::min(last, k));
      columns<Bytes>(*e, k, std::max(j, after), last);
    }
  }
  template <int Bytes>
  static FASTPARAM_INLINE void columns(const Exchanges<T>& e, int64_t k, int64_t j, int64_t last) {
    if (j >= last) return;
    constexpr int W = Bytes / sizeof(T);
    using V = Vec<T, W>;
    alignas(64) T rows[kPivotPanel * kStrip], R[kPivotPanel * kStrip];
    const int64_t depth = std::min(kPivotPanel, e.n - k), bytes = (last - j) * sizeof(T);
    const int32_t* const order = e.order + k;
    for (int64_t c = 0; c < depth; ++c) std::memcpy(rows + c * kStrip, e.S.row(order[c]) + j, bytes);
    for (int64_t c = 0; c < depth; ++c) {
      T *const taken = R + c * kStrip, *const own = rows + c * kStrip;
      const T inverse = e.factors[order[c] * kPivotPanel + c];
      for (int64_t x = 0; x < last - j; x += W) store(taken + x, load<V>(own + x) * inverse);
      for (int64_t r = 0; r < depth; ++r) {
        const T factor = e.factors[order[r] * kPivotPanel + c];
        T* const row = rows + r * kStrip;
        for (int64_t x = 0; x < last - j; x += W)
          store(row + x, load<V>(row + x) + factor * load<V>(taken + x));
      }
      std::memcpy(own, taken, bytes);
    }
    Product<T, Bytes>{e.factors, kPivotPanel, R, kStrip, e.S.S + j, e.S.stride, depth, true}
        .template run<false>(0, e.n, 0, last - j);
    for (int64_t c = 0; c < depth; ++c) std::memcpy(e.S.row(order[c]) + j, rows + c * kStrip, bytes);
  }
};

// Replaces S, of order n, by its inverse with permuted rows and columns: entry (i, j) of the inverse is
// S[order[i]][step_of[j]].
template <class T>
void invert_with_exchanges(const Exchanges<T>& e) {
  std::fill_n(e.step_of, e.n, -1);
  for (int64_t k = 0; k < e.n; k += kPivotPanel) {
    run_simd<PanelBody<T>>(&e, k);
    parallel_tasks<ExchangedStripBody<T>>(e.n, strips_of(e.S.width), &e, k);
  }
}

// ---- one matrix -------------------------------------------------------------------------------------------

// Matrices with finite entries above 2^kScaleAbove are scaled by a power of two, so that no product
// overflows.
template <class T>
constexpr int kScaleAbove = std::numeric_limits<T>::max_exponent / 2 - 12;

// The work space is S, Q and E, each of order n.
template <class T, class In>
struct Pivoted {
  CayleyCall<In> call;
  int64_t m;
  Square<T> S;
  T *Q, *E;
  T scale;          // S is I + aA times this
  uint8_t* failed;  // one flag per strip
};

// aA of a whole matrix.
template <class T, class In>
struct SetWholeBody {
  template <int>
  static FASTPARAM_INLINE void run(const Pivoted<T, In>* p, int64_t begin, int64_t end) {
    const int64_t n = p->call.n;
    const In* const A = p->call.in + p->m * n * n;
    for (int64_t i = begin * kStrip; i < std::min(end * kStrip, p->S.rows); ++i)
      for (int64_t j = 0; j < p->S.width; ++j)
        p->S.row(i)[j] = i < n && j < n ? static_cast<T>(p->call.alpha) * static_cast<T>(A[i * n + j]) : T(0);
  }
};

// Q = 2 scale S^-1 - I, with rows and columns in order.
template <class T, class In>
struct ReadOutBody {
  template <int>
  static FASTPARAM_INLINE void run(const Pivoted<T, In>* p, const Exchanges<T>* e, int64_t begin,
                                   int64_t end) {
    const int64_t n = p->call.n;
    for (int64_t i = begin * kStrip; i < std::min(end * kStrip, n); ++i) {
      T* const q = p->Q + i * p->S.stride;
      const T* const row = e->S.row(e->order[i]);
      for (int64_t j = 0; j < n; ++j) q[j] = 2 * (p->scale * row[e->step_of[j]]) - (i == j);
      for (int64_t j = n; j < p->S.width; ++j) q[j] = 0;
    }
  }
};

// E = (3 I - Q^T Q) / 2. The flag of a strip is 0 if it is orthogonal, 1 if it is near enough to polish, and
// 2 if not.
template <class T, class In>
struct DefectBody {
  template <int Bytes>
  static FASTPARAM_INLINE void run(const Pivoted<T, In>* p, int64_t begin, int64_t end) {
    const int64_t n = p->call.n, stride = p->S.stride;
    for (int64_t strip = begin; strip < end; ++strip) {
      const int64_t j = strip * kStrip, last = std::min(j + kStrip, p->S.width);
      Product<T, Bytes>{p->Q, stride, p->Q + j, stride, p->E + j, stride, n, false}.template run<true>(
          0, n, 0, last - j);
      double far = 0;
      for (int64_t i = 0; i < n; ++i)
        for (int64_t c = j; c < std::min(last, n); ++c) {
          T& e = p->E[i * stride + c];
          far = std::max(far, static_cast<double>(std::abs(e - (i == c))));
          e = (i == c ? T(1.5) : T(0)) - e / 2;
        }
      p->failed[strip] = far <= kPolished * std::sqrt(static_cast<double>(n)) ? 0 : far < kNear ? 1 : 2;
    }
  }
};

// S = Q E, then Q = S.
template <class T, class In>
struct PolishBody {
  template <int Bytes>
  static FASTPARAM_INLINE void run(const Pivoted<T, In>* p, int64_t begin, int64_t end) {
    const int64_t n = p->call.n, stride = p->S.stride;
    for (int64_t i = begin * kStrip; i < std::min(end * kStrip, n); i += kRowMultiple) {
      const int64_t last = std::min<int64_t>(i + kRowMultiple, n);
      Product<T, Bytes>{p->Q, stride, p->E, stride, p->S.S, stride, n, false}.template run<false>(i, last, 0,
                                                                                                  p->S.width);
      std::memcpy(p->Q + i * stride, p->S.row(i), (last - i) * stride * sizeof(T));
    }
  }
};

// Replaces Q by the nearest orthogonal matrix or, if none is near, by the orthogonal factor of its QR
// decomposition.
template <class In>
void orthogonalize(const Pivoted<double, In>& p, int64_t strips) {
  const int64_t n = p.call.n, stride = p.S.stride;
  for (int step = 0; step < kPolishSteps; ++step) {
    parallel_tasks<DefectBody<double, In>>(n, strips, &p);
    const uint8_t worst = *std::max_element(p.failed, p.failed + strips);
    if (worst == 0) return;
    if (worst == 1) {
      parallel_tasks<PolishBody<double, In>>(n, strips, &p);
      continue;
    }
    double *const taus = p.S.S, *const line = p.S.row(1);  // S is no longer needed
    factor(p.Q, stride, n, n, taus, line);
    std::fill_n(p.E, n * stride, 0.0);
    for (int64_t i = 0; i < n; ++i) p.E[i * stride + i] = p.Q[i * stride + i] < 0 ? -1 : 1;
    reflect(p.Q, stride, taus, n, n, false, p.E, stride, line);
    std::memcpy(p.Q, p.E, n * stride * sizeof(double));
    return;
  }
}

template <class T, class In>
struct WriteBody {
  template <int>
  static FASTPARAM_INLINE void run(const Pivoted<T, In>* p, int64_t begin, int64_t end) {
    const int64_t n = p->call.n;
    const auto* const signs = p->call.signs_of(p->m);
    In* const out = p->call.out + p->m * n * n;
    for (int64_t i = begin * kStrip; i < std::min(end * kStrip, n); ++i)
      for (int64_t j = 0; j < n; ++j) {
        const In q = static_cast<In>(p->Q[i * p->S.stride + j]);
        out[i * n + j] = signs && signs[j] < 0 ? -q : q;
      }
  }
};

template <class T>
int64_t pivoted_scratch_bytes(int64_t n) {
  return (3 * (n + 4) * largest_stride(n + 4) + 2 * n * kPivotPanel) * sizeof(T) +
         n * (2 * sizeof(int32_t) + 1);
}

// Computes Q of matrix m by elimination with row exchanges: for whole matrices, which need not be skew, in
// their own type; for skew matrices in double, polished. Returns whether I + aA is invertible.
template <class T, class In>
bool pivoted_forward(const CayleyCall<In>& call, int64_t m, void* scratch) {
  const int64_t n = call.n;
  const Padded<T> padded(n, vector_bytes() / sizeof(T));
  const Square<T> S{static_cast<T*>(scratch), padded.rows, padded.width, padded.stride};
  const int64_t strips = strips_of(S.width);
  T *const Q = S.row(S.rows), *const E = Q + S.rows * S.stride, *const panel = E + S.rows * S.stride;
  T* const factors = panel + n * kPivotPanel;
  int32_t* const order = reinterpret_cast<int32_t*>(factors + n * kPivotPanel);
  uint8_t* const failed = reinterpret_cast<uint8_t*>(order + 2 * n);
  Pivoted<T, In> pivoted{call, m, S, Q, E, 1, failed};

  if (call.layout == Layout::whole) {
    parallel_tasks<SetWholeBody<T, In>>(n, strips, &pivoted);
  } else {
    const Forward<T, In> set{call, m, S, nullptr};
    parallel_tasks<SetBody<T, In>>(n, strips, &set);
  }
  T largest = 0;
  bool finite = true;
  for (int64_t i = 0; i < n; ++i)
    for (int64_t j = 0; j < n; ++j) {
      const T size = std::abs(S.row(i)[j]);
      finite &= size <= std::numeric_limits<T>::max();
      largest = std::max(largest, size);
    }
  if (!finite) {
    std::fill_n(call.out + m * n * n, n * n, std::numeric_limits<In>::quiet_NaN());
    return true;
  }
  if (largest > std::ldexp(T(1), kScaleAbove<T>)) {
    pivoted.scale = std::ldexp(T(1), -std::ilogb(largest));
    for (int64_t i = 0; i < n; ++i)
      for (int64_t j = 0; j < n; ++j) S.row(i)[j] *= pivoted.scale;
  }
  for (int64_t i = 0; i < n; ++i) S.row(i)[i] += pivoted.scale;

  bool singular = false;
  // For a skew A, the inverse of the remaining block is at every step a block of M and has norm at most 1.
  // So the columns of the remaining block have norm at least 1.
  const T least = call.layout == Layout::whole ? T(0) : pivoted.scale / (2 * std::sqrt(static_cast<T>(n)));
  const Exchanges<T> exchanges{S, n, panel, factors, order, order + n, &singular, least};
  invert_with_exchanges(exchanges);
  parallel_tasks<ReadOutBody<T, In>>(n, strips, &pivoted, &exchanges);
  if constexpr (std::is_same_v<T, double>)
    if (call.layout != Layout::whole) orthogonalize(pivoted, strips);
  parallel_tasks<WriteBody<T, In>>(n, strips, &pivoted);
  return !singular;
}

}  // namespace fastparam::cpu
