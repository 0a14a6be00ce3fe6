// Products of reflections in ATen operations. With V = [I; 0] + A, A = tril(X, -1), and U = triu(V^H V, 1) +
// diag(V^H V) / 2,
//   H_1 .. H_k [I; 0] = [I; 0] - V W,  W = U^-1 V_1^H,  V_1 the upper k rows of V.
// This is the compact form of Schreiber and Van Loan (1989), which does not process columns one after the
// other. The ones of V are not added to sums of small squares, which would lose their digits.
#include "householder.h"

#include <ATen/ATen.h>

namespace fastparam::expression {

namespace {

Tensor upper_rows(const Tensor& X) { return X.narrow_symint(-2, 0, X.sym_size(-1)); }

// Y with W added to its upper rows.
Tensor add_above(const Tensor& Y, const Tensor& W) {
  const c10::SymInt k = W.sym_size(-2);
  return at::cat({Y.narrow_symint(-2, 0, k) + W, Y.narrow_symint(-2, k, Y.sym_size(-2) - k)}, -2);
}

// The strict upper triangle of S, and half of its diagonal.
Tensor half_diagonal(const Tensor& S) { return S.triu() - at::diag_embed(S.diagonal(0, -2, -1) / 2); }

struct Compact {
  Tensor A, top, U, W;  // top = V_1^H - I

  explicit Compact(const Tensor& X) : A(X.tril(-1)), top(conj_transpose(upper_rows(A))) {
    const Tensor I = at::eye_symint(X.sym_size(-1), X.options());
    U = half_diagonal(at::matmul(conj_transpose(A), A) + I) + top;
    W = at::linalg_solve_triangular(U, top + I, /*upper=*/true);
  }
};

}  // namespace

Tensor householder(const Tensor& X) {
  const Tensor A = precise(X).tril(-1);
  const Tensor taus = 2 / (1 + A.abs().square().sum(-2));
  return at::linalg_householder_product(A, taus.to(A.scalar_type())).to(X.scalar_type()).contiguous();
}

Tensor householder_tangent(const Tensor& dX, const Tensor& X) {
  const Compact of(precise(X));
  const Tensor dA = precise(dX).tril(-1), dtop = conj_transpose(upper_rows(dA));
  const Tensor AdA = at::matmul(conj_transpose(of.A), dA);
  const Tensor dU = half_diagonal(AdA + conj_transpose(AdA)) + dtop;
  const Tensor dW = at::linalg_solve_triangular(of.U, dtop - at::matmul(dU, of.W), /*upper=*/true);
  return add_above(at::matmul(dA, of.W) + at::matmul(of.A, dW), dW).neg().to(X.scalar_type());
}

// Y = U^-H V^H G is minus U^-H times the gradient of W. The gradient of U is triu(Y W^H), real on its
// diagonal.
Tensor householder_backward(const Tensor& G, const Tensor& X) {
  const Compact of(precise(X));
  const Tensor g = precise(G);
  const Tensor Y =
      at::linalg_solve_triangular(conj_transpose(of.U), at::matmul(conj_transpose(of.A), g) + upper_rows(g),
                                  /*upper=*/false);
  const Tensor T = half_diagonal(at::matmul(Y, conj_transpose(of.W)));
  const Tensor M = T + conj_transpose(T);
  const Tensor D =
      add_above(at::matmul(of.A, M) - at::matmul(g, conj_transpose(of.W)), M - conj_transpose(Y));
  return D.tril(-1).to(X.scalar_type()).contiguous();
}

}  // namespace fastparam::expression
