// What the tests of the Cayley kernels share: inputs of every layout and family, the reference, the accuracy rule.
#pragma once
#include "simt.h"  // before the device code

#include <array>

#include "../../csrc/cuda/cayley.cuh"
#include "check.h"

using namespace fastparam::cuda;
using simt::Buffer;
using Matrix = std::vector<double>;

inline std::mt19937 generator(1);
inline double normal() {
  static std::normal_distribution<double> distribution;
  return distribution(generator);
}

// ---- reference ----------------------------------------------------------------------------------------------------------------

// (I + aA)^-1 (I - aA) by LU with partial pivoting in type R: the judge in more digits, the yardstick in the type itself.
template <class R>
std::vector<R> cayley_reference(const Matrix& aA, int n) {
  std::vector<R> m(n * n), q(n * n);
  for (int i = 0; i < n * n; ++i) m[i] = static_cast<R>(aA[i]), q[i] = -m[i];
  for (int i = 0; i < n; ++i) m[i * n + i] += 1, q[i * n + i] += 1;
  for (int k = 0; k < n; ++k) {
    int p = k;
    for (int i = k + 1; i < n; ++i)
      if (std::abs(m[i * n + k]) > std::abs(m[p * n + k])) p = i;
    for (int j = 0; j < n && p != k; ++j) std::swap(m[p * n + j], m[k * n + j]), std::swap(q[p * n + j], q[k * n + j]);
    for (int i = k + 1; i < n; ++i) {
      const R f = m[i * n + k] / m[k * n + k];
      for (int j = k + 1; j < n; ++j) m[i * n + j] -= f * m[k * n + j];
      for (int j = 0; j < n; ++j) q[i * n + j] -= f * q[k * n + j];
    }
  }
  for (int k = n - 1; k >= 0; --k) {
    for (int j = 0; j < n; ++j) q[k * n + j] /= m[k * n + k];
    for (int i = 0; i < k; ++i)
      for (int j = 0; j < n; ++j) q[i * n + j] -= m[i * n + k] * q[k * n + j];
  }
  return q;
}

template <class X, class Y>
double distance(const X& x, const Y& y, int count) {
  double sum = 0;
  for (int i = 0; i < count; ++i) sum += std::pow(static_cast<double>(x[i]) - static_cast<double>(y[i]), 2);
  return std::sqrt(sum);
}
template <class X>
bool all_finite(const X& x, int count) {
  for (int i = 0; i < count; ++i)
    if (!std::isfinite(static_cast<double>(x[i]))) return false;
  return true;
}

// ---- inputs -------------------------------------------------------------------------------------------------------------------

inline const char* const kFamilies[] = {"gauss", "arrow", "rank2", "block", "graded", "plane"};
constexpr int kFamilyCount = 6;

inline Matrix skew_shape(int family, int n) {
  Matrix a(n * n);
  std::vector<double> u(n), v(n);
  for (int i = 0; i < n; ++i) u[i] = normal(), v[i] = normal();
  const int shift = static_cast<int>(generator() % n);
  for (int i = 0; i < n; ++i)
    for (int j = i + 1; j < n; ++j) {
      double x = normal();
      if (family == 1) x *= i == shift || j == shift ? 1e3 : 1;
      if (family == 2) x = u[i] * v[j] - v[i] * u[j];
      if (family == 3) x = (i + j + shift) % n == 0 ? 1 + 0.1 * x : 1e-3 * x;  // pairs far from the diagonal: tiny pivots
      if (family == 4) x *= std::pow(10., -4. * (i + j) / n);
      if (family == 5) x = 1e-2 * x + 10 * (u[i] * v[j] - v[i] * u[j]);
      a[i * n + j] = x;
      a[j * n + i] = -x;
    }
  return a;
}
// A skew matrix of a family with spectral norm `norm`.
inline Matrix skew_of(int family, int n, double norm) {
  Matrix a = skew_shape(family, n);
  std::vector<double> w(n), next(n);
  double size = 0;
  for (int i = 0; i < n; ++i) w[i] = normal();
  for (int round = 0; round < 30; ++round) {
    double sum = 0;
    for (int i = 0; i < n; ++i) {
      next[i] = 0;
      for (int j = 0; j < n; ++j) next[i] += a[i * n + j] * w[j];
      sum += next[i] * next[i];
    }
    size = std::sqrt(sum);
    for (int i = 0; i < n; ++i) w[i] = size > 0 ? next[i] / size : 0;
  }
  for (double& x : a) x *= size > 0 ? norm / size : 0;
  return a;
}

// A batch in memory. What no layout reads of it stays NaN, and is forbidden under the address sanitizer.
template <class T>
struct Input {
  const int n, batch;
  const Layout layout;
  const double alpha;
  const long long row_stride, batch_stride;
  Buffer<T> x;
  std::vector<Matrix> aA;  // as the kernel sees it: rounded

  Input(int n, int batch, Layout layout, double alpha, int pad = 0)
      : n(n),
        batch(batch),
        layout(layout),
        alpha(alpha),
        row_stride(layout == Layout::packed ? 0 : n + pad),
        batch_stride((layout == Layout::packed ? n * (n - 1LL) / 2 : n * row_stride) + pad),
        x(batch * batch_stride, pad % 4),
        aA(batch) {
    for (size_t i = 0; i < x.size(); ++i) forbid(i, true);
  }
  ~Input() {
    for (size_t i = 0; i < x.size(); ++i) forbid(i, false);
  }
  Given<T> given() { return {x.data(), batch_stride, row_stride, n, layout, static_cast<acc_t<T>>(alpha)}; }
  void put(int b, const Matrix& matrix) {
    aA[b].assign(n * n, 0);
    for (int i = 0; i < n; ++i)
      for (int j = 0; j < n; ++j) {
        if (layout == Layout::lower ? i <= j : layout == Layout::whole ? false : i >= j) continue;
        const long long at = b * batch_stride + (layout == Layout::packed ? i * n - i * (i + 1) / 2 + j - i - 1 : i * row_stride + j);
        forbid(at, false);
        x[at] = static_cast<T>(static_cast<acc_t<T>>(matrix[i * n + j] / alpha));
        aA[b][i * n + j] = alpha * static_cast<double>(static_cast<acc_t<T>>(x[at]));
        if (layout != Layout::whole) aA[b][j * n + i] = -aA[b][i * n + j];
      }
  }

 private:
  void forbid([[maybe_unused]] long long i, [[maybe_unused]] bool forbidden) {
#ifdef __SANITIZE_ADDRESS__
    if (forbidden) __asan_poison_memory_region(&x[i], sizeof(T));
    else __asan_unpoison_memory_region(&x[i], sizeof(T));
#endif
  }
};

// ---- the accuracy rule --------------------------------------------------------------------------------------------------------

// The largest error of the eager expression, in the accumulator's type, on a few matrices of a family.
template <class A, class R>
double eager_error(int family, int n, double norm) {
  double worst = 0;
  for (int i = 0; i < (n <= 32 ? 8 : 4); ++i) {
    const Matrix a = skew_of(family, n, norm);
    worst = std::max(worst, distance(cayley_reference<A>(a, n), cayley_reference<R>(a, n), n * n));
  }
  return worst;
}
template <class A>
double allowed_error(int n, double norm, double eager) {
  if (norm <= 0.1 && n > 2) return 0.4 * std::sqrt(n) * kEpsilon<A>;  // the digits that the delta diagonal keeps
  return 2 * eager + 8 * std::sqrt(n) * kEpsilon<A>;
}

// One schedule of three in turn; all of them unless quick.
template <class F>
void each_schedule(bool quick, int turn, F run) {
  constexpr std::array orders = {simt::Order::forward, simt::Order::reverse, simt::Order::random};
  for (int s = 0; s < 3; ++s) {
    if (quick && s != turn % 3) continue;
    simt::schedule(orders[s], static_cast<unsigned>(turn + 1));
    run();
  }
}

// ---- forward, whatever the kernel ---------------------------------------------------------------------------------------------

constexpr Layout kLayouts[] = {Layout::upper, Layout::lower, Layout::packed, Layout::whole};

// Launch: a type with run<T>(given, Q, batch, limits).
template <class Launch>
struct ForwardTests {
  const bool quick;
  int turn = 0;  // walks through the combinations that need not all meet

  // norms[b % size] for matrix b, R judges.
  template <class T, class R>
  int failures_of(int family, int n, int batch, std::vector<double> norms, Limits<acc_t<T>> limits = {}) {
    using A = acc_t<T>;
    const double alphas[] = {1, -1, -0.5};
    Input<T> input(n, batch, kLayouts[turn % 4], alphas[turn / 4 % 3], turn / 2 % 3);
    std::vector<std::vector<R>> exact(batch);
    std::vector<double> eager;
    for (double norm : norms) eager.push_back(norm > 0.1 ? eager_error<A, R>(family, n, norm) : 0);
    for (int b = 0; b < batch; ++b) {
      input.put(b, skew_of(family, n, norms[b % norms.size()]));
      exact[b] = cayley_reference<R>(input.aA[b], n);
      double& worst = eager[b % norms.size()];
      worst = std::max(worst, distance(cayley_reference<A>(input.aA[b], n), exact[b], n * n));
    }
    int wrong = 0;
    each_schedule(quick, turn++, [&] {
      Buffer<T> q(static_cast<size_t>(batch) * n * n, turn % 2);
      Launch::template run<T>(input.given(), q.data(), batch, limits);
      for (int b = 0; b < batch; ++b) {
        const int which = b % norms.size();
        wrong += !(distance(&q[static_cast<size_t>(b) * n * n], exact[b], n * n) <= allowed_error<A>(n, norms[which], eager[which]));
      }
      CHECK(q.intact() && input.x.intact(), "n=%d batch=%d: wrote outside", n, batch);
    });
    return wrong;
  }
  template <class T, class R>
  void accurate(int family, int n, int batch, std::vector<double> norms, Limits<acc_t<T>> limits = {}) {
    const int wrong = failures_of<T, R>(family, n, batch, norms, limits);
    CHECK(wrong == 0, "size %zu %s n=%d batch=%d norm=%g layout=%d limits %g %g: %d too far off", sizeof(T), kFamilies[family], n, batch,
          norms[0], (turn - 1) % 4, static_cast<double>(limits.row), static_cast<double>(limits.column), wrong);
  }

  // Rows in their limit are enough; the check of the columns alone finds nearly all of what goes wrong without either.
  void limits(std::initializer_list<int> orders) {
    constexpr float none = INFINITY;
    int unguarded = 0, by_columns = 0;
    for (int n : orders)
      for (int family = 0; family < kFamilyCount; ++family)
        for (double norm : {10., 1e2, 1e4}) {
          by_columns += failures_of<float, double>(family, n, 2, {norm}, {none, Limits<float>{}.column});
          accurate<float, double>(family, n, 2, {norm}, {Limits<float>{}.row, none});
          unguarded += failures_of<float, double>(family, n, 2, {norm}, {none, none});
        }
    CHECK(unguarded > 4 && 4 * by_columns < unguarded, "unguarded %d failures, with checked columns %d", unguarded, by_columns);
  }

  // Of half types: as good as the rounding of the result.
  template <class T>
  void rounded(int n, double ulp) {
    for (Layout layout : kLayouts) {
      Input<T> input(n, 3, layout, 1, 1);
      for (int b = 0; b < 3; ++b) input.put(b, skew_of(0, n, b == 1 ? 100 : 1));
      Buffer<T> q(static_cast<size_t>(3) * n * n, 1);
      Launch::template run<T>(input.given(), q.data(), 3, {});
      for (int b = 0; b < 3; ++b) {
        const auto exact = cayley_reference<double>(input.aA[b], n);
        bool close = true;
        for (int i = 0; i < n * n; ++i)
          close = close && std::fabs(static_cast<float>(q[b * n * n + i]) - exact[i]) <= std::fabs(exact[i]) * ulp + 2e-5;
        CHECK(close, "half type n=%d layout=%d matrix=%d", n, static_cast<int>(layout), b);
      }
    }
  }

  // A matrix with an element that is not finite is NaN throughout, and no other is touched; of finite ones 1e20 does no harm.
  void special(int n, int batch) {
    for (Layout layout : kLayouts)
      for (double value : {NAN, INFINITY, -INFINITY}) {
        Input<float> input(n, batch, layout, 1);
        for (int b = 0; b < batch; ++b) input.put(b, skew_of(0, n, b % 3 == 0 ? 1e20 : 0.5));
        Matrix spoilt = input.aA[1];
        const int r = turn % (n - 1), c = r + 1 + turn / 2 % (n - 1 - r);  // r < c
        spoilt[r * n + c] = value;
        if (layout != Layout::whole || turn % 2) spoilt[c * n + r] = -value;
        input.put(1, spoilt);
        each_schedule(true, turn++, [&] {
          Buffer<float> q(static_cast<size_t>(batch) * n * n);
          Launch::template run<float>(input.given(), q.data(), batch, {});
          for (int b = 0; b < batch; ++b) {
            const float* here = &q[static_cast<size_t>(b) * n * n];
            if (b == 1) CHECK(std::all_of(here, here + n * n, [](float x) { return std::isnan(x); }), "n=%d: not NaN throughout", n);
            else if (b % 3 == 0) CHECK(n % 2 || all_finite(here, n * n), "1e20, n=%d matrix=%d", n, b);
            else
              CHECK(distance(here, cayley_reference<double>(input.aA[b], n), n * n) <= 8 * std::sqrt(n) * kEpsilon<float>,
                    "neighbour, n=%d matrix=%d", n, b);
          }
        });
      }
  }

  // Whole matrices: skew ones give the bits of their upper triangle, others take row exchanges, singular ones are not finite.
  void whole(int n, int batch) {
    Input<float> upper(n, batch, Layout::upper, 1), skew(n, batch, Layout::whole, 1), any(n, batch, Layout::whole, 1);
    for (int b = 0; b < batch; ++b) {
      const Matrix a = skew_of(0, n, 2);
      upper.put(b, a), skew.put(b, a);
      Matrix other = a;
      const int kind = b % 4, i = b % n, j = (b / 2 + turn) % n;
      if (kind == 0) other[i * n + j] += 1;                                                   // one element off, diagonal included
      if (kind == 1) for (double& x : other) x = normal();                                    // anything
      if (kind == 2) for (int k = 0; k < n; ++k) other[k * n + k] = -1, other[k * n + (k + 1) % n] += 5;  // needs exchanges
      if (kind == 3) other.assign(n * n, 0), other[i * n + i] = -1;                           // singular
      any.put(b, other);
    }
    each_schedule(quick, turn++, [&] {
      Buffer<float> p(static_cast<size_t>(batch) * n * n), q(p.size()), r(p.size());
      Launch::template run<float>(upper.given(), p.data(), batch, {});
      Launch::template run<float>(skew.given(), q.data(), batch, {});
      Launch::template run<float>(any.given(), r.data(), batch, {});
      CHECK(std::equal(p.data(), p.data() + p.size(), q.data()), "whole and triangle differ, n=%d", n);
      for (int b = 0; b < batch; ++b) {
        const float* here = &r[static_cast<size_t>(b) * n * n];
        const auto exact = cayley_reference<double>(any.aA[b], n);
        double size = 0;
        for (double x : exact) size = std::max(size, std::fabs(x));
        if (b % 4 == 3) CHECK(!all_finite(here, n * n), "singular, n=%d matrix=%d", n, b);
        else CHECK(size > 1e3 || distance(here, exact, n * n) <= 8 * n * size * size * kEpsilon<float>, "whole, n=%d matrix=%d", n, b);
      }
    });
  }
};
