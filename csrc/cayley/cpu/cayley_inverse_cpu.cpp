// The elimination behind the inverse of the Cayley map, Q = Cayley(A) D with signs D.
#include "../inverse.h"

#include <ATen/EmptyTensor.h>

#include <atomic>

#include "instances.h"

namespace fastparam {
namespace {

using namespace fastparam::cpu;

// Sizes of A up to which an elimination in float32 loses less than an assignment may, up to which one in
// double precision without exchanges of rows loses less than float32 rounds, and from which Q D counts as a
// matrix with the eigenvalue -1.
constexpr double kInSingle = 32, kWithoutExchanges = 1e3, kHopeless = 1e6;

// The bits of |x|, which are in the order of sizes, with NaN above infinity.
template <class T>
FASTPARAM_INLINE BitsOf<T> bits_of_size(T x) {
  BitsOf<T> bits;
  std::memcpy(&bits, &x, sizeof(T));
  return bits & (~BitsOf<T>(0) >> 1);
}

template <class T>
struct LargestBody {
  template <int Bytes>
  static FASTPARAM_INLINE BitsOf<T> run(const T* A, int64_t rows, int64_t columns, int64_t stride) {
    BitsOf<T> largest = 0;
    for (int64_t i = 0; i < rows; ++i)
      for (int64_t j = 0; j < columns; ++j) largest = std::max(largest, bits_of_size(A[i * stride + j]));
    return largest;
  }
};

template <class T>
struct LargestDifferenceBody {
  template <int Bytes>
  static FASTPARAM_INLINE BitsOf<T> run(const T* A, const T* B, int64_t size) {
    BitsOf<T> largest = 0;
    for (int64_t e = 0; e < size; ++e) largest = std::max(largest, bits_of_size(A[e] - B[e]));
    return largest;
  }
};

// The size of the largest entry, or infinity if one is not finite.
template <class T>
double largest_of(const T* A, int64_t rows, int64_t columns, int64_t stride) {
  const T largest = bit_cast<T>(run_simd<LargestBody<T>>(A, rows, columns, stride));
  return std::isfinite(largest) ? static_cast<double>(largest) : std::numeric_limits<double>::infinity();
}

// A = 2 D S - I.
template <class T>
struct MapBody {
  template <int Bytes>
  static FASTPARAM_INLINE void run(const Square<T>* S, const double* D, double* A, int64_t n) {
    for (int64_t i = 0; i < n; ++i) {
      const T *const s = S->row(i), scale = static_cast<T>(2 * D[i]);
      for (int64_t j = 0; j < n; ++j) A[i * n + j] = scale * s[j];
      A[i * n + i] -= 1;
    }
  }
};

// Computes S = (Q + D)^-1, from which the Cayley map of Q D is A = 2 D S - I, and calls each(S, D). The
// matrices are contiguous.
template <class In, class Each>
struct Elimination {
  const In *Q, *given;
  double* D;
  int64_t n;
  void* scratch;
  const Each& each;

  // Computes S in T. A sign that is 0 is chosen. Returns the size of the largest entry of A + I, and does no
  // more if it is beyond the limit.
  template <class T>
  double run(double limit) const {
    const Padded<T> padded(n, vector_bytes() / sizeof(T));
    const Square<T> S{static_cast<T*>(scratch), padded.rows, padded.width, padded.stride};
    T* const signs = S.row(S.rows);
    std::fill_n(S.S, S.rows * S.stride, T(0));
    for (int64_t i = 0; i < n; ++i) std::copy_n(Q + i * n, n, S.row(i));
    std::fill(std::copy_n(D, n, signs), signs + S.rows, T(1));
    invert(S, signs + S.rows, Prefetch(), signs);
    std::copy_n(signs, n, D);
    const double largest = 2 * largest_of(S.S, n, n, S.stride);
    if (largest <= limit) each(S, D);
    return largest;
  }
  // The same in double precision with exchanges of rows.
  double exchange(double limit) const {
    double* const QD = static_cast<double*>(scratch);
    for (int64_t i = 0; i < n; ++i)
      for (int64_t j = 0; j < n; ++j) QD[i * n + j] = Q[i * n + j] * D[j];
    const Scratch memory(n * n * sizeof(double));
    double* const A = memory.get<double>();
    uint8_t singular = 0;
    solve_batch(CayleyCall<double>{QD, A, nullptr, n, 1, 1.0, Layout::whole, &singular});
    if (singular) A[0] = std::numeric_limits<double>::infinity();
    const double largest = largest_of(A, n, n, n);
    if (largest > limit) return largest;
    for (int64_t i = 0; i < n; ++i) {
      A[i * n + i] += 1;
      for (int64_t j = 0; j < n; ++j) A[i * n + j] *= D[i] / 2;
    }
    each(Square<double>{A, n, n, n}, D);
    return largest;
  }
  // Returns whether the given signs serve.
  bool keep(double far, bool single) const {
    std::transform(given, given + n, D, [](In s) { return s < 0 ? -1.0 : 1.0; });
    if (std::is_same_v<In, float>) {
      const double small = std::min(kInSingle, far), hopeless = std::max(kHopeless, 100 * far);
      if (single && run<In>(small) <= small) return true;
      const double largest = run<double>(std::min(kWithoutExchanges, far));
      if (largest <= kWithoutExchanges) return largest <= far;
      if (largest > hopeless) return false;
    }
    return exchange(far) <= far;
  }
  void choose(bool single) const {
    std::fill_n(D, n, 0.0);
    constexpr double kAny = std::numeric_limits<double>::infinity();
    single ? run<In>(kAny) : run<double>(kAny);
  }
};

// Calls each(m, S, D) in parallel for all matrices of Q. Returns the signs, and whether they are not the
// given ones.
template <class In, class Each>
std::tuple<Tensor, bool> eliminate_each(const Tensor& Q, const Signs& signs, double far, bool single,
                                        const Each& each) {
  const int64_t n = Q.size(-1), batch = Q.numel() / (n * n);
  const Tensor given = dense(signs, Q);
  const Tensor D = at::detail::empty_cpu(Q.sizes().slice(0, Q.dim() - 1), Q.options().dtype(at::kDouble));
  const In *const q = Q.const_data_ptr<In>(), *const g = signs ? given.const_data_ptr<In>() : nullptr;
  double* const d = D.mutable_data_ptr<double>();
  std::atomic<bool> changed{false};
  const int64_t bytes = ((n + 5) * largest_stride(n + 4) + block_scratch(n + 4)) * sizeof(double);
  over_batch(batch, n, bytes, [&](int64_t begin, int64_t end, void* scratch) {
    const FlushDenormals flush;
    for (int64_t m = begin; m < end; ++m) {
      const auto each_of = [&](const auto& S, const double* used) { each(m, S, used); };
      const Elimination<In, decltype(each_of)> one{
          q + m * n * n, signs ? g + m * n : nullptr, d + m * n, n, scratch, each_of};
      if (signs && one.keep(far, single)) continue;
      changed = true;
      one.choose(single);
    }
  });
  return {D, changed.load()};
}

// Calls f(In()) for the type in which matrices are given to an elimination.
template <class F>
auto with_type_of(const Tensor& Q, const F& f) {
  return Q.scalar_type() == at::kDouble ? f(double{}) : f(float{});
}

Tensor widened(const Tensor& Q) { return Q.to(at::toOpMathType(Q.scalar_type())).contiguous(); }

}  // namespace

std::tuple<Tensor, Tensor, bool> eliminate(const Tensor& Q, const Signs& signs, double far, bool single) {
  const Tensor q = widened(Q), A = at::detail::empty_cpu(q.sizes(), q.options().dtype(at::kDouble));
  const int64_t n = Q.size(-1);
  double* const out = A.mutable_data_ptr<double>();
  const std::tuple<Tensor, bool> used = with_type_of(q, [&](auto zero) {
    return eliminate_each<decltype(zero)>(
        q, signs, far, single, [&](int64_t m, const auto& S, const double* D) {
          run_simd<MapBody<std::decay_t<decltype(*S.S)>>>(&S, D, out + m * n * n, n);
        });
  });
  return {A, std::get<0>(used), std::get<1>(used)};
}

namespace {

constexpr int64_t kProbes = 16;

// X with that map: the triangle of (D S - (D S)^T) / alpha. The rest is 0.
template <class T, class In>
struct ParameterBody {
  static constexpr int64_t kBlock = 16;
  template <int Bytes>
  static FASTPARAM_INLINE void run(const Square<T>* S, const double* D, In* X, int64_t n, double scale,
                                   bool lower) {
    std::fill_n(X, n * n, In(0));
    for (int64_t r = 0; r < n; r += kBlock)
      for (int64_t c = r; c < n; c += kBlock)
        for (int64_t i = r; i < std::min(r + kBlock, n); ++i)
          for (int64_t j = std::max(c, i + 1); j < std::min(c + kBlock, n); ++j) {
            const double d = D[i] * S->row(i)[j] - D[j] * S->row(j)[i];
            const In x = d == 0 ? In(0) : static_cast<In>(scale * d);  // the scale can be infinite
            if (lower) X[j * n + i] = -x;
            else X[i * n + j] = x;
          }
  }
};

// Which entries of a matrix can differ from 0.
enum class Part { whole, upper, lower };

// O = M V in double precision, or M^T V, for V with kProbes columns. M is converted kRows rows at a time,
// into `rows`.
template <class In, bool Transposed>
struct ProbeBody {
  static constexpr int64_t kRows = 24;
  template <int Bytes>
  static FASTPARAM_INLINE void run(const In* M, Part part, const double* V, double* O, int64_t n,
                                   double* rows) {
    std::fill_n(O, n * kProbes, 0.0);
    for (int64_t i = 0; i < n; i += kRows) {
      const int64_t here = std::min(kRows, n - i), j = part == Part::upper ? i : 0,
                    columns = (part == Part::lower ? i + here : n) - j;
      for (int64_t r = 0; r < here; ++r)
        for (int64_t c = 0; c < columns; ++c) rows[r * columns + c] = M[(i + r) * n + j + c];
      const double* const v = V + (Transposed ? i : j) * kProbes;
      double* const o = O + (Transposed ? j : i) * kProbes;
      const Product<double, Bytes> product{rows, columns, v, kProbes, o, kProbes, Transposed ? here : columns,
                                           true};
      product.template run<Transposed>(0, Transposed ? columns : here, 0, kProbes);
    }
  }
};

// A number for each index, nearly normal, of variance 1: the sum of four uniform ones, cut out of the hashed
// index (Steele, Lea and Flood, Fast splittable pseudorandom number generators, 2014).
inline double probe(uint64_t index) {
  uint64_t z = (index + 1) * 0x9E3779B97F4A7C15;
  z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9;
  z = (z ^ (z >> 27)) * 0x94D049BB133111EB;
  z ^= z >> 31;
  const uint64_t sum = (z & 0xFFFF) + (z >> 16 & 0xFFFF) + (z >> 32 & 0xFFFF) + (z >> 48);
  return (static_cast<double>(sum) - 2 * 0xFFFF) * (std::sqrt(3.0) / 0x10000);
}

template <class In>
double estimated_loss(const In* Q, const double* D, const In* X, double alpha, Part part, int64_t n) {
  const int64_t size = n * kProbes;
  const Scratch scratch((4 * size + ProbeBody<In, false>::kRows * n) * sizeof(double));
  double *const V = scratch.get<double>(), *const R = V + size, *const Z = R + size, *const other = Z + size;
  for (int64_t l = 0; l < size; ++l) {
    V[l] = probe(l);
    R[l] = D[l / kProbes] * V[l];
  }
  run_simd<ProbeBody<In, false>>(Q, Part::whole, R, other, n, other + size);
  for (int64_t l = 0; l < size; ++l) Z[l] = (V[l] + other[l]) / 2;     // (I + alpha A)^-1 V, nearly
  run_simd<ProbeBody<In, false>>(X, part, Z, other, n, other + size);  // A = X - X^T, as the rest of X is 0
  for (int64_t l = 0; l < size; ++l) R[l] = V[l] - Z[l] - alpha * other[l];
  run_simd<ProbeBody<In, true>>(X, part, Z, other, n, other + size);
  double squares = 0, largest = 0;
  for (int64_t l = 0; l < size; ++l) {
    R[l] += alpha * other[l];
    squares += R[l] * R[l];
    Z[l] = D[l / kProbes] * R[l];
  }
  run_simd<ProbeBody<In, false>>(Q, Part::whole, Z, other, n, other + size);
  for (int64_t i = 0; i < n; ++i) {
    double row = 0;
    for (int64_t l = i * kProbes; l < (i + 1) * kProbes; ++l) row += (R[l] + other[l]) * (R[l] + other[l]);
    largest = std::max(largest, row);
  }
  return 5 * std::sqrt(largest / (kProbes * n)) + squares / kProbes;
}

}  // namespace

std::tuple<Tensor, Tensor, bool> eliminate_to_parameter(const Tensor& Q, const Signs& signs, double far,
                                                        bool single, double alpha, bool lower) {
  const int64_t n = Q.size(-1);
  const Tensor q = widened(Q), X = at::detail::empty_cpu(q.sizes(), q.options());
  const std::tuple<Tensor, bool> used = with_type_of(q, [&](auto zero) {
    using In = decltype(zero);
    In* const x = X.mutable_data_ptr<In>();
    return eliminate_each<In>(q, signs, far, single, [&](int64_t m, const auto& S, const double* D) {
      run_simd<ParameterBody<std::decay_t<decltype(*S.S)>, In>>(&S, D, x + m * n * n, n, 1 / alpha, lower);
    });
  });
  return {X.to(Q.scalar_type()), std::get<0>(used), std::get<1>(used)};
}

Tensor estimated_loss(const Tensor& Q, const Tensor& D, const Tensor& X, double alpha, bool lower) {
  const int64_t n = Q.size(-1);
  const Tensor q = widened(Q), x = widened(X), loss = D.new_empty(D.sizes().slice(0, D.dim() - 1));
  with_type_of(q, [&](auto zero) {
    using In = decltype(zero);
    for (int64_t m = 0; m < loss.numel(); ++m)
      loss.mutable_data_ptr<double>()[m] =
          estimated_loss(q.const_data_ptr<In>() + m * n * n, D.const_data_ptr<double>() + m * n,
                         x.const_data_ptr<In>() + m * n * n, alpha, lower ? Part::lower : Part::upper, n);
  });
  return loss;
}

Tensor largest_differences(const Tensor& Q, const Tensor& other) {
  const int64_t size = Q.size(-1) * Q.size(-1);
  const Tensor q = widened(Q), o = widened(other),
               differences =
                   at::detail::empty_cpu(Q.sizes().slice(0, Q.dim() - 2), Q.options().dtype(at::kDouble));
  with_type_of(q, [&](auto zero) {
    using In = decltype(zero);
    for (int64_t m = 0; m < differences.numel(); ++m)
      differences.mutable_data_ptr<double>()[m] = bit_cast<In>(run_simd<LargestDifferenceBody<In>>(
          q.const_data_ptr<In>() + m * size, o.const_data_ptr<In>() + m * size, size));
  });
  return differences;
}

double largest_entry(const Tensor& X) {
  const Tensor x = widened(X);
  const int64_t n = X.size(-1);
  return with_type_of(
      x, [&](auto zero) { return largest_of(x.const_data_ptr<decltype(zero)>(), X.numel() / n, n, n); });
}

}  // namespace fastparam
