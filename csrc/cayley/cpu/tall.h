// n x k matrices, n > k, with orthonormal columns, and wide matrices with orthonormal rows, in O(n k^2).
//
// Let A1 be the skew matrix of a triangle of the first k rows of X, and let B be the other rows times alpha.
// Then
//   Q1 = 2 W - I,  Q2 = -2 B W,  W = C^-1,  C = I + alpha A1 + B^T B
// are the first k columns of the Cayley map of the skew matrix of order n. The symmetric part of C is at
// least I, so elimination needs no row exchanges (blocks.h). The stored matrices are S = C - I and W - I.
// For a wide matrix, the transpose is used: its rows are read and written as columns.
#pragma once

#include "blocks.h"

namespace fastparam::cpu {

template <class In>
struct TallCall {
  const In *X, *G, *Q;  // the map reads X; its gradient also reads the gradient of Q, and Q
  In* out;
  const In* signs;
  int64_t n, k, batch;
  double alpha;
  bool wide, lower;
  uint8_t* failed;  // one flag per matrix

  FASTPARAM_INLINE const In* signs_of(int64_t m) const { return signs ? signs + m * k : nullptr; }
  int64_t order() const { return k + std::min(k, n - k); }  // of the square problem with the same columns
  bool shared() const { return n * k * k >= kParallelOrder * kParallelOrder * kParallelOrder; }
};

constexpr int64_t kTallRows = 256;   // rows of B per task
constexpr int64_t kGramRows = 1024;  // rows of B whose products are summed in one piece

// ---- rows of the tall matrix, as they lie in memory -------------------------------------------------------

template <class In, int W>
FASTPARAM_INLINE Vec<In, W> load_some(const In* p, int64_t count) {
  Vec<In, W> v{};
  if (count >= W) v = load<Vec<In, W>>(p);
  else if (count > 0) std::memcpy(&v, p, count * sizeof(In));
  return v;
}
template <class In, int W>
FASTPARAM_INLINE void store_some(In* p, const Vec<In, W>& v, int64_t count) {
  if (count >= W) store(p, v);
  else if (count > 0) std::memcpy(p, &v, count * sizeof(In));
}

// Reads the rows [begin, end) of matrix m, times `scale` and the signs. The results are rows of whole
// vectors, `stride` apart, with 0 beyond k.
template <class T, int W, class In>
FASTPARAM_INLINE void read_rows(const TallCall<In>& call, const In* from, int64_t m, int64_t begin,
                                int64_t end, T scale, const In* signs, T* to, int64_t stride) {
  const int64_t n = call.n, k = call.k, columns = (k + kRowMultiple - 1) / kRowMultiple * kRowMultiple;
  from += m * n * k;
  for (int64_t j = 0; j < columns; j += W) {
    const auto flips = signs ? flips_at<In, W>(signs, j, k) : MaskOf<In, W>{};
    if (!call.wide) {
      for (int64_t i = begin; i < end; ++i) {
        const auto v = flipped(load_some<In, W>(from + i * k + j, k - j), flips);
        store(to + (i - begin) * stride + j, __builtin_convertvector(v, Vec<T, W>) * scale);
      }
      continue;
    }
    for (int64_t i = begin; i < end; i += W) {
      Vec<In, W> t[W];
      for (int l = 0; l < W; ++l) t[l] = load_some<In, W>(from + (j + l) * n + i, j + l < k ? end - i : 0);
      transpose<In, W>(t);
      for (int l = 0; l < W; ++l)
        if (i + l < end)
          store(to + (i + l - begin) * stride + j,
                __builtin_convertvector(flipped(t[l], flips), Vec<T, W>) * scale);
    }
  }
}

// The inverse of read_rows.
template <class T, int W, class In>
FASTPARAM_INLINE void write_rows(const TallCall<In>& call, int64_t m, int64_t begin, int64_t end,
                                 const In* signs, const T* from, int64_t stride) {
  const int64_t n = call.n, k = call.k;
  In* const to = call.out + m * n * k;
  for (int64_t j = 0; j < k; j += W) {
    const auto flips = signs ? flips_at<In, W>(signs, j, k) : MaskOf<In, W>{};
    const auto read = [&](int64_t i) __attribute__((always_inline)) {
      return flipped(__builtin_convertvector(load<Vec<T, W>>(from + (i - begin) * stride + j), Vec<In, W>),
                     flips);
    };
    if (!call.wide) {
      for (int64_t i = begin; i < end; ++i) store_some<In, W>(to + i * k + j, read(i), k - j);
      continue;
    }
    for (int64_t i = begin; i < end; i += W) {
      Vec<In, W> t[W];
      for (int l = 0; l < W; ++l) t[l] = i + l < end ? read(i + l) : Vec<In, W>{};
      transpose<In, W>(t);
      for (int l = 0; l < W; ++l)
        if (j + l < k) store_some<In, W>(to + (j + l) * n + i, t[l], end - i);
    }
  }
}

// aA1. A wide matrix is read transposed, so the other triangle is given.
template <class T, int W, class In>
FASTPARAM_INLINE void set_skew(const TallCall<In>& call, int64_t m, const Square<T>& S) {
  const int64_t size = call.n * call.k;
  const Layout layout = call.lower != call.wide ? Layout::lower : Layout::upper;
  const T alpha = static_cast<T>(call.wide ? -call.alpha : call.alpha);
  const Source<In> source(call.X + m * size, call.X + call.batch * size, call.k, call.wide ? call.n : call.k,
                          layout);
  const SkewTiles<T, W, In> tiles{source, S.S, S.rows, S.width, S.stride, alpha};
  for (int64_t r = 0; r < S.width; r += W) tiles.tile_row(r);
}

// ---- C ----------------------------------------------------------------------------------------------------

// The work space of one matrix: S, of order k; B and O, of n - k rows each; one product of order k per
// kGramRows rows; and the sums of columns, one row per task.
template <class T, class In>
struct Tall {
  TallCall<In> call;
  int64_t m;
  Square<T> S;
  T *B, *O, *gram, *sums, *rest;

  static int64_t rows_of(const TallCall<In>& call) { return call.n - call.k; }
  static int64_t groups_of(const TallCall<In>& call) { return (rows_of(call) + kGramRows - 1) / kGramRows; }
  static int64_t tasks_of(const TallCall<In>& call) { return (rows_of(call) + kTallRows - 1) / kTallRows; }
  static int64_t scratch_bytes(const TallCall<In>& call) {
    const int64_t stride = largest_stride(call.k + 4);
    const int64_t lines =
        (call.k + 4) * (1 + groups_of(call)) + 2 * rows_of(call) + 2 * (tasks_of(call) + 1) + 1;
    return (lines * stride + block_scratch(call.k + 4)) * sizeof(T);
  }

  Tall(const TallCall<In>& call, int64_t m, void* scratch) : call(call), m(m) {
    const Padded<T> padded(call.k, vector_bytes() / sizeof(T));
    S = {static_cast<T*>(scratch), padded.rows, padded.width, padded.stride};
    B = S.row(S.rows);
    O = B + rows_of(call) * S.stride;
    gram = O + rows_of(call) * S.stride;
    sums = gram + groups_of(call) * S.rows * S.stride;
    rest = trial_vector() + S.stride;
  }
  T* trial_vector() const { return sums + 2 * (tasks_of(call) + 1) * S.stride; }
  int64_t rows() const { return rows_of(call); }
  int64_t tasks() const { return tasks_of(call); }
};

// Loads aA1 and, by tasks, B with the sums of squares of its columns.
template <class T, class In>
struct TallLoadBody {
  template <int Bytes>
  static FASTPARAM_INLINE void run(const Tall<T, In>* t, int64_t begin, int64_t end) {
    constexpr int W = Bytes / sizeof(T);
    const int64_t stride = t->S.stride;
    if (begin == 0) {
      set_skew<T, W>(t->call, t->m, t->S);
      add_squares<W>(t->S.S, t->call.k, t->S, t->sums + t->tasks() * stride);
    }
    for (int64_t task = begin; task < end; ++task) {
      const int64_t first = task * kTallRows, last = std::min(first + kTallRows, t->rows());
      read_rows<T, W>(t->call, t->call.X, t->m, t->call.k + first, t->call.k + last,
                      static_cast<T>(t->call.alpha), static_cast<const In*>(nullptr), t->B + first * stride,
                      stride);
      add_squares<W>(t->B + first * stride, last - first, t->S, t->sums + task * stride);
    }
  }
  template <int W>
  static FASTPARAM_INLINE void add_squares(const T* x, int64_t rows, const Square<T>& S, T* sums) {
    for (int64_t j = 0; j < S.width; j += W) {
      Vec<T, W> sum{};
      for (int64_t i = 0; i < rows; ++i) {
        const auto v = load<Vec<T, W>>(x + i * S.stride + j);
        sum += v * v;
      }
      store(sums + j, sum);
    }
  }
};

// Returns whether the sum of squares of every column of aA is small. NaN is not small.
template <class T, class In>
bool is_small(const Tall<T, In>& t) {
  bool small = true;
  for (int64_t j = 0; j < t.call.k; ++j) {
    T sum = 0;
    for (int64_t task = 0; task <= t.tasks(); ++task) sum += t.sums[task * t.S.stride + j];
    small &= sum <= static_cast<T>(kLargestSquares);
  }
  return small;
}

// The upper triangle of B^T B, by groups of rows and strips of columns.
template <class T, class In>
struct GramBody {
  template <int Bytes>
  static FASTPARAM_INLINE void run(const Tall<T, In>* t, int64_t begin, int64_t end) {
    const int64_t stride = t->S.stride, strips = strips_of(t->S.width);
    for (int64_t task = begin; task < end; ++task) {
      const int64_t group = task / strips, j = task % strips * kStrip;
      const int64_t first = group * kGramRows, depth = std::min(kGramRows, t->rows() - first);
      const int64_t columns = std::min<int64_t>(kStrip, t->S.width - j);
      const T* const B = t->B + first * stride;
      multiply<T, Bytes, true>(B, stride, B + j, stride, t->gram + group * t->S.rows * stride + j, stride,
                               std::min(j + columns, t->call.k), depth, columns, false);
    }
  }
};

// Sets S to C - I. Returns the largest sum of absolute values of a row, which bounds the square of the norm
// of B. The sum is not finite if an entry is not.
template <class T, class In>
T add_gram(const Tall<T, In>& t) {
  const int64_t k = t.call.k, groups = Tall<T, In>::groups_of(t.call);
  run_tasks<GramBody<T, In>>(t.call.shared(), groups * strips_of(t.S.width), &t);
  for (int64_t i = 0; i < k; ++i)
    for (int64_t j = i; j < k; ++j) {
      T sum = 0;
      for (int64_t group = 0; group < groups; ++group) sum += t.gram[(group * t.S.rows + i) * t.S.stride + j];
      t.S.row(i)[j] += sum;
      if (i != j) t.S.row(j)[i] += sum;
    }
  T largest = 0;
  for (int64_t i = 0; i < k; ++i) {
    T sum = 0;
    for (int64_t j = 0; j < k; ++j) sum += std::abs(t.S.row(i)[j]);
    if (!std::isfinite(sum)) return sum;
    largest = std::max(largest, sum);
  }
  return largest;
}

// ---- Q ----------------------------------------------------------------------------------------------------

// Entry j, 1 or -1, of the vector used to test Q^T Q.
inline double trial(int64_t j) {
  return (static_cast<uint64_t>(j) * 0x9E3779B97F4A7C15u >> 40 & 1) != 0 ? 1 : -1;
}

// Computes Q2 from W - I, and the quantities for the guard: the sums of squares of columns, and Q^T Q v for
// the trial vector v, which shows whether columns are orthogonal to each other.
template <class T, class In>
struct TallApplyBody {
  template <int Bytes>
  static FASTPARAM_INLINE void run(const Tall<T, In>* t, int64_t begin, int64_t end) {
    constexpr int W = Bytes / sizeof(T);
    const int64_t stride = t->S.stride, k = t->call.k;
    for (int64_t task = begin; task < end; ++task) {
      const int64_t first = task * kTallRows, last = std::min(first + kTallRows, t->rows());
      T *const B = t->B + first * stride, *const O = t->O + first * stride;
      std::memcpy(O, B, (last - first) * stride * sizeof(T));
      multiply<T, Bytes, false>(B, stride, t->S.S, stride, O, stride, last - first, k, t->S.width, true);
      for (int64_t e = 0; e < (last - first) * stride; e += W) store(O + e, load<Vec<T, W>>(O + e) * T(-2));
      finish<W>(*t, O, last - first, k + first, t->sums + 2 * task * stride);
    }
  }
  template <int W>
  static FASTPARAM_INLINE void finish(const Tall<T, In>& t, const T* Q, int64_t rows, int64_t at, T* sums) {
    using V = Vec<T, W>;
    const int64_t stride = t.S.stride, width = t.S.width;
    const T* const v = t.trial_vector();
    T *const squares = sums, *const products = sums + stride;
    std::memset(sums, 0, 2 * stride * sizeof(T));
    for (int64_t i = 0; i < rows; ++i) {
      const T* const q = Q + i * stride;
      V along{};
      for (int64_t j = 0; j < width; j += W) along += load<V>(q + j) * load<V>(v + j);
      T z = 0;
      for (int l = 0; l < W; ++l) z += along[l];
      for (int64_t j = 0; j < width; j += W) {
        const V x = load<V>(q + j);
        store(squares + j, load<V>(squares + j) + x * x);
        store(products + j, load<V>(products + j) + z * x);
      }
    }
    write_rows<T, W>(t.call, t.m, at, at + rows, t.call.signs_of(t.m), Q, stride);
  }
};

// Q1 = 2 (W - I) + I.
template <class T, class In>
struct TallTopBody {
  template <int Bytes>
  static FASTPARAM_INLINE void run(const Tall<T, In>* t) {
    constexpr int W = Bytes / sizeof(T);
    for (int64_t i = 0; i < t->call.k; ++i) {
      T* const row = t->S.row(i);
      for (int64_t j = 0; j < t->S.width; j += W) store(row + j, load<Vec<T, W>>(row + j) * T(2));
      row[i] += 1;
    }
    TallApplyBody<T, In>::template finish<W>(*t, t->S.S, t->call.k, 0,
                                             t->sums + 2 * t->tasks() * t->S.stride);
  }
};

// Returns whether the columns of Q have norm 1 and are orthogonal to each other.
template <class T, class In>
bool is_orthonormal(const Tall<T, In>& t) {
  const double tolerance = column_tolerance<In>(t.call.n),
               beside = tolerance * std::sqrt(static_cast<double>(t.call.k));
  bool good = true;
  for (int64_t j = 0; j < t.call.k; ++j) {
    double squares = 0, product = 0;
    for (int64_t task = 0; task <= t.tasks(); ++task) {
      squares += t.sums[2 * task * t.S.stride + j];
      product += t.sums[(2 * task + 1) * t.S.stride + j];
    }
    good &= std::abs(squares - 1) <= tolerance && std::abs(product - t.trial_vector()[j]) <= beside;
  }
  return good;
}

// Sets S to W - I, for a matrix that is loaded. Returns the result of add_gram.
template <class T, class In>
T invert_gram(const Tall<T, In>& t) {
  const T largest = add_gram(t);
  invert(t.S, t.rest, Prefetch());
  return largest;
}

template <class T, class In>
void load_tall(const Tall<T, In>& t) {
  run_tasks<TallLoadBody<T, In>>(t.call.shared(), t.tasks(), &t);
}

// The largest row sum of C - I, that is b^2 where b is the norm of B, for which the error in double stays
// below the rounding of float. The error grows as b^3 in Q2 = -2 B W, and as b^6 in the gradient
// if n - k < k.
constexpr double kLargestGram = 1 << 17, kLargestGradientGram = 1 << 14;

// Returns whether the guard holds. The computation is in the type of X if its columns are small, and in
// double if the result is float.
template <class T, class In>
bool tall_forward(const TallCall<In>& call, int64_t m, void* scratch) {
  const Tall<T, In> t(call, m, scratch);
  load_tall(t);
  if (std::is_same_v<T, In> && !is_small(t)) return false;
  if (!(invert_gram(t) <= (std::is_same_v<T, In> ? kLargestSquares : kLargestGram))) return false;
  for (int64_t j = 0; j < t.S.width; ++j) t.trial_vector()[j] = j < call.k ? static_cast<T>(trial(j)) : T(0);
  run_tasks<TallApplyBody<T, In>>(call.shared(), t.tasks(), &t);
  run_simd<TallTopBody<T, In>>(&t);
  return is_orthonormal(t);
}

}  // namespace fastparam::cpu
