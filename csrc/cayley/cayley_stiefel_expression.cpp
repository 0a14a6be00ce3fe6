// stiefel_cayley, its gradient and its tangent in differentiable ATen operations, in double precision for
// every dtype. With A1 = skew(X[:k]), B = X[k:] and
//   C = I + alpha A1 + alpha^2 B^H B,  W = C^-1
// the result is
//   Q1 = 2 W - I,  Q2 = -2 alpha B W.
// B^H B squares the condition number of B. Double precision makes up for that in single-precision inputs up
// to norms of about 1e5. Inputs in double use B = H R and M = (I + alpha A)^-1 of A = [A1 -R^H; R 0]
// instead: this is the square problem, and H maps its solution to the whole result.
//
// With dC = alpha dA1 + alpha^2 (dB^H B + B^H dB):
//   tangent   dQ1 = -2 W dC W, dQ2 = -2 alpha (dB - B W dC) W
//   gradient  dC = -2 W^H (G1 - alpha B^H G2) W^H, dA1 = alpha dC
//             dB = -2 alpha G2 W^H + alpha^2 B (dC + dC^H)
// With [W; N], the first columns of M:
//   tangent   dQ = -2 alpha M [dA1 W - dB^H N; dB W]
//   gradient  dA1 = -2 alpha Y1 W^H, dB = -2 alpha (Y2 W^H - N Y1^H), Y = M^H G
// A wide X is transposed first.
#include <ATen/TensorOperators.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/eye.h>
#include <ATen/ops/linalg_inv_ex.h>
#include <ATen/ops/linalg_qr.h>
#include <ATen/ops/matmul.h>
#include <ATen/ops/zeros.h>
#include <ATen/ops/zeros_like.h>

#include "../ops.h"
#include "cayley.h"

namespace fastparam::expression {

namespace {

// All entries of the result are NaN if C is not finite.
Tensor inverse_of(const Tensor& C) {
  return std::get<0>(at::linalg_inv_ex(C)) + (C * 0).sum({-2, -1}, /*keepdim=*/true);
}

// A tall X as A1 and B in double precision.
struct Blocks {
  Tensor A1, B;

  Blocks(const Tensor& X, bool lower) {
    const c10::SymInt k = X.sym_size(-1);
    const Tensor precise = X.to(X.is_complex() ? at::kComplexDouble : at::kDouble);
    A1 = Triangle::expand(precise.slice_symint(-2, 0, k), lower);
    B = precise.slice_symint(-2, k);
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

// [A1 -R^H; R 0]
Tensor skew_of(const Tensor& A1, const Tensor& R) {
  const c10::SymInt r = R.sym_size(-2);
  c10::SymDimVector corner(R.sym_sizes().begin(), R.sym_sizes().end());
  corner.back() = r;
  return at::cat(
      {at::cat({A1, -conj_transpose(R)}, -1), at::cat({R, at::zeros_symint(corner, R.options())}, -1)}, -2);
}

Tensor by_qr(const Blocks& X, double alpha) {
  const auto [H, R] = at::linalg_qr(X.B);
  const c10::SymInt k = R.sym_size(-1);
  const Tensor Q = Cayley::call(skew_of(X.A1, R), alpha, std::nullopt).slice_symint(-1, 0, k);
  return at::cat({Q.slice_symint(-2, 0, k), at::matmul(H, Q.slice_symint(-2, k))}, -2);
}

// M = (I + alpha A)^-1 of the whole A = [A1 -B^H; B 0], for a product with M or M^H. If B has more rows than
// columns, it is written as B = H R + B' with a constant H, because QR has no derivative if B does not have
// full rank. B' is zero, and its derivatives are those that H leaves out. With E = I + alpha^2 M11 B'^H B':
//   M [V1; V2] = [Z1 + D; V2 - H H^H V2 + H (Z2 - alpha R D) - alpha B' (Z1 + D)],
//   Z = M' [V1; H^H V2],  M' = (I + alpha [A1 -R^H; R 0])^-1,  D = alpha E^-1 M'11 B'^H (V2 - alpha B' Z1).
class Resolvent {
 public:
  Resolvent(const Blocks& X, double alpha) : k_(X.A1.sym_size(-1)), alpha_(alpha), R_(X.B) {
    if (X.B.sym_size(-2) > k_) {
      const Tensor constant = X.B.detach();
      H_ = std::get<0>(at::linalg_qr(constant));
      R_ = at::matmul(conj_transpose(H_), X.B);
      rest_ = X.B - constant;
      rest_ = rest_ - at::matmul(H_, at::matmul(conj_transpose(H_), rest_));
    }
    const Tensor A = skew_of(X.A1, R_);
    M_ = inverse_of(at::eye_symint(A.sym_size(-1), A.options()) + alpha * A);
  }
  Tensor times(const Tensor& V) const { return product(M_, V, alpha_); }
  Tensor adjoint_times(const Tensor& V) const { return product(conj_transpose(M_), V, -alpha_); }
  Tensor top(const Tensor& V) const { return V.slice_symint(-2, 0, k_); }
  Tensor bottom(const Tensor& V) const { return V.slice_symint(-2, k_); }
  Tensor first_columns() const {
    if (!H_.defined()) return M_.slice_symint(-1, 0, k_);
    const Tensor I = at::zeros_like(top(M_).slice_symint(-1, 0, k_)) + at::eye_symint(k_, R_.options());
    return times(at::cat({I, at::zeros_like(rest_)}, -2));
  }

 private:
  Tensor product(const Tensor& M, const Tensor& V, double alpha) const {
    if (!H_.defined()) return at::matmul(M, V);
    const Tensor HH = conj_transpose(H_), restH = conj_transpose(rest_);
    const Tensor V2 = bottom(V), W = top(M).slice_symint(-1, 0, k_);
    const Tensor small = at::matmul(HH, V2), Z = at::matmul(M, at::cat({top(V), small}, -2)), Z1 = top(Z);
    const Tensor E =
        at::eye_symint(k_, W.options()) + (alpha * alpha) * at::matmul(W, at::matmul(restH, rest_));
    const Tensor D = alpha * at::matmul(at::matmul(inverse_of(E), W),
                                        at::matmul(restH, V2 - alpha * at::matmul(rest_, Z1)));
    const Tensor change = bottom(Z) - small - alpha * at::matmul(R_, D);
    return at::cat({Z1 + D, V2 + at::matmul(H_, change) - alpha * at::matmul(rest_, Z1 + D)}, -2);
  }

  c10::SymInt k_;
  double alpha_;
  Tensor R_, H_, rest_, M_;
};

bool is_double(const Tensor& X) { return toRealValueType(X.scalar_type()) == at::kDouble; }

bool is_square(const Tensor& X) { return X.sym_size(-2) == X.sym_size(-1); }

}  // namespace

Tensor stiefel_cayley(const Tensor& X, double alpha, bool lower, const Signs& signs) {
  if (is_square(X)) return SkewCayley::call(X, alpha, lower, signs);
  if (X.sym_numel() == 0) return at::empty_symint(X.sym_sizes(), X.options());
  if (is_wide(X)) return stiefel_cayley(X.mT(), alpha, lower, signs).mT().contiguous();
  const Blocks blocks(X, lower);
  const Tensor Q = X.is_complex() || is_double(X) ? by_qr(blocks, alpha) : closed_form(blocks, alpha);
  return signed_by(Q, signs).to(X.scalar_type()).contiguous();
}

Tensor stiefel_cayley_tangent(const Tensor& dX, const Tensor& X, double alpha, bool lower,
                              const Signs& signs) {
  if (is_wide(X)) return stiefel_cayley_tangent(dX.mT(), X.mT(), alpha, lower, signs).mT();
  const Blocks blocks(X, lower), d(dX, lower);
  if (is_double(X)) {
    const Resolvent M(blocks, alpha);
    const Tensor first = M.first_columns(), W = M.top(first);
    const Tensor V1 = at::matmul(d.A1, W) - at::matmul(conj_transpose(d.B), M.bottom(first));
    return signed_by((-2 * alpha) * M.times(at::cat({V1, at::matmul(d.B, W)}, -2)), signs);
  }
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
  const Tensor precise = signed_by(G.to(blocks.B.scalar_type()), signs);
  if (is_double(X)) {
    const Resolvent M(blocks, alpha);
    const Tensor first = M.first_columns(), WH = conj_transpose(M.top(first)),
                 Y = (-2 * alpha) * M.adjoint_times(precise);
    const Tensor dB = at::matmul(M.bottom(Y), WH) - at::matmul(M.bottom(first), conj_transpose(M.top(Y)));
    return at::cat({Triangle::collapse(at::matmul(M.top(Y), WH), lower), dB}, -2).contiguous();
  }
  const Tensor WH = conj_transpose(blocks.W(alpha));
  const Tensor G1 = precise.slice_symint(-2, 0, k), G2 = precise.slice_symint(-2, k);
  const Tensor R = G1 - alpha * at::matmul(conj_transpose(blocks.B), G2);
  const Tensor dC = -2 * at::matmul(at::matmul(WH, R), WH);
  const Tensor dB =
      at::matmul(G2, (-2 * alpha) * WH) + at::matmul(blocks.B, (alpha * alpha) * (dC + conj_transpose(dC)));
  return at::cat({Triangle::collapse(alpha * dC, lower), dB}, -2).to(X.scalar_type()).contiguous();
}

Tensor trivialized_cayley(const Tensor& X, const Tensor& base, double alpha, bool lower) {
  const auto type = at::toOpMathType(X.scalar_type());
  const Tensor Q = StiefelCayley::call(X.to(type), alpha, lower, std::nullopt), B = base.to(type);
  return (is_wide(X) ? at::matmul(Q, B.mT()) : at::matmul(B, Q)).to(X.scalar_type());
}

Tensor trivialized_cayley_backward(const Tensor& G, const Tensor& base, const Tensor& Q, const Tensor&,
                                   double alpha, bool lower) {
  const Tensor GQ = at::matmul(conj_transpose(precise(base)), precise(G));
  return SkewCayleyBackward::call(GQ, precise(Q), alpha, lower, std::nullopt).to(Q.scalar_type());
}

}  // namespace fastparam::expression
