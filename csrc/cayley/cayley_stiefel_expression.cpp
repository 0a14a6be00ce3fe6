// stiefel_cayley, its gradient and its tangent in ATen operations, differentiable, in double precision
// whatever the dtype. With
//   W = C^-1, C = I + alpha A1 + alpha^2 B^H B, A1 = skew(X[:k]), B = X[k:]:  Q1 = 2 W - I, Q2 = -2 alpha B
//   W.
// B^H B squares the condition of B, which double precision allows single precision up to norms of about 1e5.
// What is in double itself, and complex, takes B = Q_b R instead: the square problem of [A1 -R^H; R 0], and
// Q_b times its lower half.
//
// With dC = alpha dA1 + alpha^2 (dB^H B + B^H dB):
//   tangent   dQ1 = -2 W dC W, dQ2 = -2 alpha (dB - B W dC) W
//   gradient  dC = -2 W^H (G1 - alpha B^H G2) W^H, dA1 = alpha dC, dB = -2 alpha G2 W^H + alpha^2 B (dC +
//   dC^H)
// Of a wide X all is done on the transpose.
#include "../ops.h"
#include "cayley.h"

namespace fastparam::expression {

namespace {

// NaN all over where C is not finite somewhere.
Tensor inverse_of(const Tensor& C) {
  return std::get<0>(at::linalg_inv_ex(C)) + (C * 0).sum({-2, -1}, /*keepdim=*/true);
}

// X, tall, as A1 and B in double precision.
struct Blocks {
  Tensor A1, B;

  Blocks(const Tensor& X, bool lower) {
    const c10::SymInt k = X.sym_size(-1);
    const Tensor wide = X.to(X.is_complex() ? at::kComplexDouble : at::kDouble);
    A1 = Triangle::expand(wide.slice_symint(-2, 0, k), lower);
    B = wide.slice_symint(-2, k);
  }
  Tensor W(double alpha) const {
    const Tensor I = at::eye_symint(A1.sym_size(-1), A1.options());
    return inverse_of(I + alpha * A1 + (alpha * alpha) * at::matmul(conj_transpose(B), B));
  }
};

Tensor closed_form(const Blocks& X, double alpha) {
  const Tensor W = X.W(alpha);
  return at::cat({2 * W - at::eye_symint(W.sym_size(-1), W.options()), at::matmul(X.B, (-2 * alpha) * W)},
                 -2);
}

Tensor by_qr(const Blocks& X, double alpha) {
  const auto [Qb, R] = at::linalg_qr(X.B);
  const int64_t k = R.size(-1), r = R.size(-2);
  std::vector<int64_t> corner(R.sizes().begin(), R.sizes().end() - 1);
  corner.push_back(r);
  const Tensor A = at::cat(
      {at::cat({X.A1, -conj_transpose(R)}, -1), at::cat({R, at::zeros(corner, R.options())}, -1)}, -2);
  const Tensor Q = Cayley::call(A, alpha, std::nullopt).narrow(-1, 0, k);
  return at::cat({Q.narrow(-2, 0, k), at::matmul(Qb, Q.narrow(-2, k, r))}, -2);
}

bool is_square(const Tensor& X) { return X.sym_size(-2) == X.sym_size(-1); }

}  // namespace

Tensor stiefel_cayley(const Tensor& X, double alpha, bool lower, const Signs& signs) {
  if (is_square(X)) return SkewCayley::call(X, alpha, lower, signs);
  if (X.sym_numel() == 0) return at::empty_symint(X.sym_sizes(), X.options());
  if (is_wide(X)) return stiefel_cayley(X.mT(), alpha, lower, signs).mT().contiguous();
  const Blocks blocks(X, lower);
  const Tensor Q =
      X.is_complex() || X.scalar_type() == at::kDouble ? by_qr(blocks, alpha) : closed_form(blocks, alpha);
  return signed_by(Q, signs).to(X.scalar_type()).contiguous();
}

Tensor stiefel_cayley_tangent(const Tensor& dX, const Tensor& X, double alpha, bool lower,
                              const Signs& signs) {
  if (is_wide(X)) return stiefel_cayley_tangent(dX.mT(), X.mT(), alpha, lower, signs).mT();
  const Blocks blocks(X, lower), d(dX, lower);
  const Tensor W = blocks.W(alpha), cross = at::matmul(conj_transpose(d.B), blocks.B);
  const Tensor dC = alpha * d.A1 + (alpha * alpha) * (cross + conj_transpose(cross)), WdC = at::matmul(W, dC);
  const Tensor dQ2 = at::matmul(d.B - at::matmul(blocks.B, WdC), (-2 * alpha) * W);
  return signed_by(at::cat({-2 * at::matmul(WdC, W), dQ2}, -2), signs).to(X.scalar_type());
}

Tensor square_gradient(const Tensor& G, const Tensor& Q, double alpha, bool lower, const Signs& signs) {
  return SkewCayleyBackward::call(G, Q, alpha, lower, signs);
}

Tensor stiefel_cayley_backward(const Tensor& G, const Tensor& X, const Tensor& Q, double alpha, bool lower,
                               const Signs& signs) {
  if (is_square(X)) return square_gradient(G, SkewCayley::call(X, alpha, lower, signs), alpha, lower, signs);
  if (is_wide(X))
    return stiefel_cayley_backward(G.mT(), X.mT(), Q.mT(), alpha, lower, signs).mT().contiguous();
  const c10::SymInt k = X.sym_size(-1);
  const Blocks blocks(X, lower);
  const Tensor WH = conj_transpose(blocks.W(alpha)), wide = signed_by(G.to(WH.scalar_type()), signs);
  const Tensor G1 = wide.slice_symint(-2, 0, k), G2 = wide.slice_symint(-2, k);
  const Tensor R = G1 - alpha * at::matmul(conj_transpose(blocks.B), G2);
  const Tensor dC = -2 * at::matmul(at::matmul(WH, R), WH);
  const Tensor dB =
      at::matmul(G2, (-2 * alpha) * WH) + at::matmul(blocks.B, (alpha * alpha) * (dC + conj_transpose(dC)));
  return at::cat({Triangle::collapse(alpha * dC, lower), dB}, -2).to(X.scalar_type()).contiguous();
}

}  // namespace fastparam::expression
