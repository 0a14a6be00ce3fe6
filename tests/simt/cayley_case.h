// Shared by the tests of the Cayley kernels: inputs of every layout and family, the reference, and the
// accuracy rule.
#pragma once
#include "simt.h"  // before the device code

#include "../../csrc/cayley/cuda/given.cuh"
#include "check.h"
#include "draw.h"

using namespace fastparam;
using namespace fastparam::cuda;
using simt::Buffer;
using Matrix = std::vector<double>;

// ---- reference --------------------------------------------------------------------------------------------

// (I + aA)^-1 (I - aA) by LU with partial pivoting in type R. With more digits it is the expected result,
// and in the type itself it gives the allowed error.
template <class R>
std::vector<R> cayley_reference(const Matrix& aA, int n) {
  std::vector<R> m(n * n), q(n * n);
  for (int i = 0; i < n * n; ++i) m[i] = static_cast<R>(aA[i]), q[i] = -m[i];
  for (int i = 0; i < n; ++i) m[i * n + i] += 1, q[i * n + i] += 1;
  for (int k = 0; k < n; ++k) {
    int p = k;
    for (int i = k + 1; i < n; ++i)
      if (std::abs(m[i * n + k]) > std::abs(m[p * n + k])) p = i;
    for (int j = 0; j < n && p != k; ++j)
      std::swap(m[p * n + j], m[k * n + j]), std::swap(q[p * n + j], q[k * n + j]);
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

// A bound of ||Q^T Q - I||_2.
template <class X>
double loss_of_orthogonality(const X& q, int n) {
  double sum = 0;
  for (int i = 0; i < n; ++i)
    for (int j = 0; j < n; ++j) {
      double e = i == j ? -1 : 0;
      for (int k = 0; k < n; ++k) e += static_cast<double>(q[k * n + i]) * static_cast<double>(q[k * n + j]);
      sum += e * e;
    }
  return std::sqrt(sum);
}
// ---- inputs -----------------------------------------------------------------------------------------------

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
      if (family == 3)
        x = (i + j + shift) % n == 0 ? 1 + 0.1 * x : 1e-3 * x;  // pairs far from the diagonal: tiny pivots
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

constexpr Layout kLayouts[] = {Layout::upper, Layout::lower, Layout::packed, Layout::whole};

// A batch in memory. Entries that no layout reads stay NaN, and are inaccessible under the address
// sanitizer.
template <class T>
struct Input {
  const int n, batch;
  const Layout layout;
  const double alpha;
  const long long row_stride, batch_stride;
  Buffer<T> x;
  Buffer<acc_t<T>> signs;
  bool has_signs = false;
  std::vector<Matrix> aA;  // as the kernel sees it: rounded

  Input(int n, int batch, Layout layout, double alpha, int pad = 0)
      : n(n),
        batch(batch),
        layout(layout),
        alpha(alpha),
        row_stride(layout == Layout::packed ? 0 : n + pad),
        batch_stride((layout == Layout::packed ? n * (n - 1LL) / 2 : n * row_stride) + pad),
        x(batch * batch_stride, pad % 4),
        signs(static_cast<size_t>(batch) * n),
        aA(batch) {
    for (size_t i = 0; i < x.size(); ++i) forbid(i, true);
  }
  ~Input() {
    for (size_t i = 0; i < x.size(); ++i) forbid(i, false);
  }
  Given<T> given() {
    return {x.data(),
            batch_stride,
            row_stride,
            n,
            layout,
            static_cast<acc_t<T>>(alpha),
            has_signs ? signs.data() : nullptr};
  }
  // Signs are negative, positive or 0, which counts as positive.
  void draw_signs() {
    has_signs = true;
    for (size_t i = 0; i < signs.size(); ++i)
      signs[i] = static_cast<acc_t<T>>(static_cast<int>(generator() % 3) - 1);
  }
  // Q of the reference in type R, including signs.
  template <class R>
  std::vector<R> reference(int b) {
    auto q = cayley_reference<R>(aA[b], n);
    for (int i = 0; has_signs && i < n * n; ++i)
      if (signs[b * n + i % n] < 0) q[i] = -q[i];
    return q;
  }
  void put(int b, const Matrix& matrix) {
    aA[b].assign(n * n, 0);
    for (int i = 0; i < n; ++i)
      for (int j = 0; j < n; ++j) {
        if (layout == Layout::lower ? i <= j : layout == Layout::whole ? false : i >= j) continue;
        const long long at =
            b * batch_stride +
            (layout == Layout::packed ? i * n - i * (i + 1) / 2 + j - i - 1 : i * row_stride + j);
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

// ---- the accuracy rule ------------------------------------------------------------------------------------

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
  if (norm <= 0.1 && n > 2)
    // the accuracy that storing the difference from 1 on the diagonal gives
    return 0.4 * std::sqrt(n) * kEpsilon<A>;
  return 2 * eager + 8 * std::sqrt(n) * kEpsilon<A>;
}
