// Batches of exponentials of every structure, their reference in long double, and the accuracy rule.
#pragma once
#include "simt.h"  // before the device code

#include "../../csrc/exponential/cuda/batch.cuh"
#include "check.h"
#include "draw.h"

using namespace fastparam;
using namespace fastparam::cuda;
using simt::Buffer;
using Numbers = std::vector<long double>;  // a matrix

inline Numbers times(const Numbers& a, const Numbers& b, int n) {
  Numbers c(n * n);
  for (int i = 0; i < n; ++i)
    for (int k = 0; k < n; ++k)
      if (a[i * n + k] != 0)
        for (int j = 0; j < n; ++j) c[i * n + j] += a[i * n + k] * b[k * n + j];
  return c;
}
inline long double size_of(const Numbers& a) {
  long double sum = 0;
  for (long double x : a) sum += x * x;
  return std::sqrt(sum);
}

// exp(A) by the Taylor polynomial of degree 24 and repeated squaring.
inline Numbers exp_reference(Numbers a, int n) {
  const long double size = size_of(a);
  const int s = size > 0.5L ? std::max(0, std::ilogb(size) + 2) : 0;
  for (long double& x : a) x = std::ldexp(x, -s);
  Numbers p(n * n);
  for (int i = 0; i < n; ++i) p[i * n + i] = 1;
  for (int degree = 24; degree > 0; --degree) {
    p = times(a, p, n);
    for (long double& x : p) x /= degree;
    for (int i = 0; i < n; ++i) p[i * n + i] += 1;
  }
  for (int i = 0; i < s; ++i) p = times(p, p, n);
  return p;
}
// The upper right block of exp [[A, E], [0, A]]. E is made small, so that the squarings depend on A alone.
inline Numbers frechet_reference(const Numbers& a, const Numbers& e, int n) {
  const long double small = std::ldexp(1.0L, -30);
  Numbers block(4 * n * n), l(n * n);
  for (int i = 0; i < n; ++i)
    for (int j = 0; j < n; ++j) {
      block[i * 2 * n + j] = block[(n + i) * 2 * n + n + j] = a[i * n + j];
      block[i * 2 * n + n + j] = small * e[i * n + j];
    }
  block = exp_reference(block, 2 * n);
  for (int i = 0; i < n; ++i)
    for (int j = 0; j < n; ++j) l[i * n + j] = block[i * 2 * n + n + j] / small;
  return l;
}

template <class T>
struct ExponentialCase {
  using A = acc_t<T>;
  const int n, batch;
  const Structure structure;
  const bool lower, dual, transposed;  // transposed: a general X of even order
  Buffer<T> x, g;
  std::vector<Numbers> want;  // the expected output; empty if it is NaN wherever X is given
  std::vector<double> norms, sizes;

  // A matrix with a negative norm has an entry that is NaN or infinite.
  ExponentialCase(int n, Structure structure, bool lower, bool dual, const std::vector<double>& norms)
      : n(n),
        batch(static_cast<int>(norms.size())),
        structure(structure),
        lower(lower),
        dual(dual),
        transposed(structure == Structure::general && n % 2 == 0),
        x(norms.size() * n * n),
        g(norms.size() * n * n, 1),
        want(batch),
        norms(norms),
        sizes(batch) {
    for (size_t i = 0; i < x.size(); ++i) forbid(i, true);
    for (int b = 0; b < batch; ++b) fill(b);
  }
  ~ExponentialCase() {
    for (size_t i = 0; i < x.size(); ++i) forbid(i, false);
  }

  Batch<T> of(T* out, int first, int count) {
    const long long skipped = static_cast<long long>(first) * n * n;
    return {x.data() + skipped, dual ? g.data() + skipped : nullptr, out, count, n, structure, lower,
            transposed};
  }
  Program<A> program() const { return Program<A>::of(structure, dual); }
  bool is_given(int r, int c) const {
    if (structure == Structure::general) return true;
    return (lower ? r > c : r < c) || (r == c && structure == Structure::symmetric);
  }
  bool has_given() const { return n > 1 || structure != Structure::skew; }

  // launch(batch, program) runs a kernel.
  template <class Launch>
  void verify(Launch launch) {
    const size_t size = static_cast<size_t>(n) * n;
    Buffer<T> out(batch * size, batch % 3), alone(size);
    launch(of(out.data(), 0, batch), program());
    CHECK(out.intact() && x.intact() && g.intact(), "%s: wrote outside", name(0).c_str());
    for (int b = 0; b < batch; ++b) {
      const T* const here = &out[b * size];
      if (want[b].empty()) check_nan(here, b);
      else check_near(here, b);
      launch(of(alone.data(), b, 1), program());
      CHECK(std::memcmp(here, alone.data(), size * sizeof(T)) == 0, "%s: neighbours count", name(b).c_str());
    }
  }

 private:
  std::string name(int b) const {
    char text[120];
    std::snprintf(text, sizeof(text), "size %zu n=%d structure=%d lower=%d dual=%d norm=%g matrix=%d of %d",
                  sizeof(T), n, static_cast<int>(structure), lower, dual, norms[b], b, batch);
    return text;
  }
  void check_nan(const T* here, int b) const {
    bool right = true;
    for (int i = 0; i < n * n; ++i) {
      const A y = static_cast<A>(here[i]);
      right = right && (!dual || is_given(i / n, i % n) ? std::isnan(y) : y == 0);
    }
    CHECK(right, "%s: not NaN where X is given", name(b).c_str());
  }
  void check_near(const T* here, int b) const {
    std::vector<double> y(n * n);
    bool zeros = true, symmetric = true;
    for (int i = 0; i < n * n; ++i) {
      y[i] = static_cast<A>(here[i]);
      zeros = zeros && (!dual || is_given(i / n, i % n) || y[i] == 0);
      symmetric = symmetric && (dual || static_cast<A>(here[i % n * n + i / n]) == static_cast<A>(here[i]));
    }
    const double epsilon = std::numeric_limits<A>::epsilon(), ulp = sizeof(T) == 2 ? 1. / 128 : 0;
    const double error = distance(y, want[b], n * n) / sizes[b];
    const double allowed =
        (8 * std::sqrt(n) + 12 * std::max(norms[b], 0.) * (dual ? std::sqrt(n) : 1)) * epsilon + ulp;
    CHECK(error <= allowed || allowed > 1, "%s: error %.2e, allowed %.2e", name(b).c_str(), error, allowed);
    CHECK(zeros, "%s: not zero outside the triangle", name(b).c_str());
    CHECK(structure != Structure::symmetric || symmetric, "%s: not symmetric", name(b).c_str());
    if (structure == Structure::skew && !dual && sizeof(T) >= 4)
      CHECK(defect(y) <= (sizeof(T) == 4 ? 6e-5 : 6e-13), "%s: defect %.1e", name(b).c_str(), defect(y));
  }
  double defect(const std::vector<double>& q) const {
    double sum = 0;
    for (int i = 0; i < n; ++i)
      for (int j = 0; j < n; ++j) {
        double e = i == j ? -1 : 0;
        for (int k = 0; k < n; ++k) e += q[k * n + i] * q[k * n + j];
        sum += e * e;
      }
    return std::sqrt(sum);
  }

  void fill(int b) {
    const bool finite = norms[b] >= 0, known = structure != Structure::general;
    std::vector<double> a(n * n);
    double squares = 0;
    for (int r = 0; r < n; ++r)
      for (int c = 0; c < n; ++c)
        if (is_given(r, c)) squares += std::pow(a[r * n + c] = normal(), 2) * (known && r != c ? 2 : 1);
    // the spectral norm of a Gaussian matrix is about 2 / sqrt(n) times this one
    const double norm = std::sqrt(squares) * (n > 4 ? 2 / std::sqrt(n) : 1);
    const int bad = static_cast<int>(generator() % (n * n));
    for (int i = 0; i < n * n; ++i) {
      const size_t at = static_cast<size_t>(b) * n * n + i;
      g[at] = static_cast<T>(static_cast<A>(normal()));
      if (!is_given(i / n, i % n)) continue;
      forbid(at, false);
      const bool spoilt = !finite && (i == bad || !is_given(bad / n, bad % n));
      x[at] = static_cast<T>(static_cast<A>(spoilt    ? (b % 2 ? INFINITY : NAN)
                                            : !finite ? a[i]
                                                      : a[i] * (norm > 0 ? norms[b] / norm : 0)));
    }
    if (finite || !has_given()) want[b] = reference(b);
  }
  long double given(const Buffer<T>& from, int b, int r, int c) {
    return static_cast<A>(const_cast<Buffer<T>&>(from)[(static_cast<size_t>(b) * n + r) * n + c]);
  }
  Numbers reference(int b) {
    Numbers a(n * n), e(n * n), y;
    const bool skew = structure == Structure::skew;
    for (int r = 0; r < n; ++r)
      for (int c = 0; c < n; ++c) {
        a[r * n + c] = transposed       ? given(x, b, c, r)
                       : is_given(r, c) ? given(x, b, r, c)
                       : skew && r == c ? 0
                                        : (skew ? -1 : 1) * given(x, b, c, r);
        e[r * n + c] = given(g, b, r, c);
      }
    if (dual && skew)
      for (long double& entry : a) entry = -entry;
    y = dual ? frechet_reference(a, e, n) : exp_reference(a, n);
    sizes[b] = static_cast<double>(size_of(y));
    if (!dual || structure == Structure::general) return y;
    Numbers folded(n * n);
    for (int r = 0; r < n; ++r)
      for (int c = 0; c < n; ++c)
        if (is_given(r, c)) folded[r * n + c] = y[r * n + c] + (r == c ? 0 : (skew ? -1 : 1) * y[c * n + r]);
    return folded;
  }
  void forbid([[maybe_unused]] size_t i, [[maybe_unused]] bool forbidden) {
#ifdef __SANITIZE_ADDRESS__
    if (forbidden) __asan_poison_memory_region(&x[i], sizeof(T));
    else __asan_unpoison_memory_region(&x[i], sizeof(T));
#endif
  }
};

// Runs every structure and triangle, values and derivatives. If quick, it runs some of them, chosen by
// `turn`.
template <class F>
void each_kind(bool quick, int turn, F run) {
  for (int kind = 0; kind < 10; ++kind) {
    if (quick && kind % 5 != turn % 5) continue;
    const int which = kind / 2;  // general, skew upper, skew lower, symmetric upper, symmetric lower
    run(which == 0  ? Structure::general
        : which < 3 ? Structure::skew
                    : Structure::symmetric,
        which % 2 == 0, kind % 2 == 1);
  }
}
