// Tall matrices that fail the guard, in double. With B = H [R; 0] and an orthogonal H, let Q' be the map of
// the skew matrix
//   A = [A1 -R^T; R 0]
// of order 2k, and P' = Q' + I. Then Q = [Q'_1; H [Q'_2; 0]], from the first k columns of Q'. The condition
// number of B is not squared, and the square problem has its own guard, row exchanges and polishing.
// If n - k <= k, there is nothing to factor and R = B. With H^T G2 = [G'_2; G''] and L' = P'^T [G1; G'_2] the
// gradient is
//   dA1 = -(a/2) (N - N^T), N = L'_1 P'_1^T,  dB = -(a/2) H [L'_2 P'_1^T - P'_2 L'_1^T; 2 G'' P'_1^T].
// The loops are plain, because few matrices get here.
#pragma once

#include "batch.h"
#include "tall_gradient.h"

namespace fastparam::cpu {

// O = scale A B, or O += scale A B. O is rows x columns, A is rows x depth (transposed: depth x rows), and B
// is depth x columns (transposed: columns x depth).
struct Small {
  const double* data;
  int64_t stride;
  bool transposed = false;
  double at(int64_t i, int64_t j) const { return transposed ? data[j * stride + i] : data[i * stride + j]; }
};
inline void small_product(const Small& A, const Small& B, int64_t rows, int64_t depth, int64_t columns,
                          double scale, bool add, double* O, int64_t o_stride) {
  for (int64_t i = 0; i < rows; ++i) {
    double* const o = O + i * o_stride;
    if (!add) std::fill_n(o, columns, 0.0);
    for (int64_t d = 0; d < depth; ++d) {
      const double a = scale * A.at(i, d);
      for (int64_t j = 0; j < columns; ++j) o[j] += a * B.at(d, j);
    }
  }
}

template <class In>
struct Accurate {
  const TallCall<In>& call;
  const int64_t m, n, k, r, low, order;  // low: the number of rows of R
  const In *X, *G;
  Scratch memory;
  double *A, *Q, *B, *Z, *small, *taus, *line;

  Accurate(const TallCall<In>& call, int64_t m)
      : call(call),
        m(m),
        n(call.n),
        k(call.k),
        r(n - k),
        low(std::min(k, r)),
        order(k + low),
        X(call.X + m * n * k),
        G(call.G ? call.G + m * n * k : nullptr),
        memory((2 * order * order + 2 * r * k + 3 * order * k + 2 * k) * sizeof(double)) {
    A = memory.get<double>();
    Q = A + order * order, B = Q + order * order, Z = B + r * k, small = Z + r * k,
    taus = small + 3 * order * k, line = taus + k;
  }
  In read(const In* x, int64_t i, int64_t j) const { return call.wide ? x[j * n + i] : x[i * k + j]; }
  double sign(int64_t j) const { return call.signs && call.signs[m * k + j] < 0 ? -1 : 1; }
  bool factored() const { return r > k; }

  // Computes Q', of order `order`. It is NaN if X is not finite.
  void solve() {
    bool finite = true;
    for (int64_t i = 0; i < r; ++i)
      for (int64_t j = 0; j < k; ++j) B[i * k + j] = static_cast<double>(read(X, k + i, j));
    for (int64_t e = 0; e < r * k; ++e) finite &= std::abs(B[e]) <= std::numeric_limits<double>::max();
    if (factored()) factor(B, k, r, k, taus, line);
    std::fill_n(A, order * order, 0.0);
    for (int64_t i = 0; i < k; ++i)  // the lower triangle of A
      for (int64_t j = 0; j < i; ++j)
        A[i * order + j] =
            call.lower ? static_cast<double>(read(X, i, j)) : -static_cast<double>(read(X, j, i));
    for (int64_t i = 0; i < low; ++i)
      for (int64_t j = factored() ? i : 0; j < k; ++j) A[(k + i) * order + j] = B[i * k + j];
    if (!finite) A[k * order] = std::numeric_limits<double>::quiet_NaN();
    uint8_t failed = 0;
    forward_batch(CayleyCall<double>{A, Q, nullptr, order, 1, call.alpha, Layout::lower, &failed});
  }

  void write(int64_t i, int64_t j, double value) const {
    call.out[m * n * k + (call.wide ? j * n + i : i * k + j)] = static_cast<In>(value);
  }
};

template <class In>
void accurate_forward(const TallCall<In>& call, int64_t m) {
  Accurate<In> a(call, m);
  a.solve();
  const int64_t k = a.k;
  std::fill_n(a.Z, a.r * k, 0.0);
  for (int64_t i = 0; i < a.low; ++i) std::copy_n(a.Q + (k + i) * a.order, k, a.Z + i * k);
  if (a.factored()) reflect(a.B, k, a.taus, a.r, k, false, a.Z, k, a.line);
  for (int64_t j = 0; j < k; ++j) {
    for (int64_t i = 0; i < k; ++i) a.write(i, j, a.sign(j) * a.Q[i * a.order + j]);
    for (int64_t i = 0; i < a.r; ++i) a.write(k + i, j, a.sign(j) * a.Z[i * k + j]);
  }
}

template <class In>
void accurate_backward(const TallCall<In>& call, int64_t m) {
  Accurate<In> a(call, m);
  a.solve();
  const int64_t k = a.k, order = a.order, low = a.low;
  for (int64_t i = 0; i < order; ++i) a.Q[i * order + i] += 1;  // P'
  for (int64_t i = 0; i < a.r; ++i)
    for (int64_t j = 0; j < k; ++j) a.Z[i * k + j] = a.sign(j) * static_cast<double>(a.read(a.G, k + i, j));
  if (a.factored()) reflect(a.B, k, a.taus, a.r, k, true, a.Z, k, a.line);
  double *const H = a.small, *const L = H + order * k, *const N = L + order * k;  // [G1; G'_2], L', L' P'_1^T
  for (int64_t i = 0; i < k; ++i)
    for (int64_t j = 0; j < k; ++j) H[i * k + j] = a.sign(j) * static_cast<double>(a.read(a.G, i, j));
  std::copy_n(a.Z, low * k, H + k * k);
  small_product({a.Q, order, true}, {H, k}, order, order, k, 1, false, L, k);
  small_product({L, k}, {a.Q, order, true}, order, k, k, 1, false, N, k);
  for (int64_t i = 0; i < a.r; ++i)  // 2 G'' P'_1^T
    if (i >= low) {
      std::copy_n(a.Z + i * k, k, a.line);
      small_product({a.line, k}, {a.Q, order, true}, 1, k, k, 2, false, a.Z + i * k, k);
    }
  std::copy_n(N + k * k, low * k, a.Z);
  small_product({a.Q + k * order, order}, {L, k, true}, low, k, k, -1, true, a.Z, k);
  if (a.factored()) reflect(a.B, k, a.taus, a.r, k, false, a.Z, k, a.line);
  const double half = -call.alpha / 2;
  for (int64_t i = 0; i < k; ++i)
    for (int64_t j = 0; j < k; ++j)
      a.write(i, j, (call.lower ? i > j : i < j) ? half * (N[i * k + j] - N[j * k + i]) : 0);
  for (int64_t i = 0; i < a.r; ++i)
    for (int64_t j = 0; j < k; ++j) a.write(k + i, j, half * a.Z[i * k + j]);
}

}  // namespace fastparam::cpu
