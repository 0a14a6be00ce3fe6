// stiefel_cayley: n x k matrices with orthonormal columns, in O(n k^2). The first k columns of the Cayley map
// of
//   [A1 -B^H; B 0],  A1 = skew(X[:k]), B = X[k:],  are  [2 W - I; -2 alpha B W]  with  W = C^-1, C = I +
//   alpha A1 + alpha^2 B^H B.
// The Hermitian part of C is at least I. B^H B squares the condition of B: it is formed in float64, whatever
// the dtype of X, which is enough for float32 up to ||X|| of about 1e5. What is not orthonormal then, and
// float64 on other devices than the CPU (where a look at the result would synchronise), goes through B = Q_b
// R: the square problem of [A1 -R^H; R 0], of order 2k, and Q_b times its lower half. Wide matrices (n < k):
// the transpose of the tall result, orthonormal rows.
//
// With dC = alpha dA1 + alpha^2 (dB^H B + B^H dB):
//   tangent   dQ1 = -2 W dC W, dQ2 = -2 alpha dB W - Q2 dC W
//   gradient  dC = -(2 W^H G1 + Q2^H G2) W^H, dA1 = alpha dC, dB = -2 alpha G2 W^H + alpha^2 B (dC + dC^H)
// W is computed again from X: where X is large it is lost in the rounding of Q1 = 2 W - I.
#include "cayley.h"

#include "../ops.h"

namespace fastparam {

namespace {

using expression::conj_transpose, expression::signed_by;

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
    A1 = expression::Triangle::expand(wide.slice_symint(-2, 0, k), lower);
    B = wide.slice_symint(-2, k);
  }

  Tensor C(double alpha) const {
    return at::eye_symint(A1.sym_size(-1), A1.options()) + alpha * A1 +
           (alpha * alpha) * at::matmul(conj_transpose(B), B);
  }
  Tensor W(double alpha) const { return inverse_of(C(alpha)); }
};

Tensor closed_form(const Blocks& X, const Tensor& C, double alpha) {
  const Tensor W = inverse_of(C);
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

// The matrices of a batch for which float64 is not enough (the rounding of C reaches that of the result), and
// those whose columns are not of norm 1, are done again.
Tensor with_guard(const Blocks& X, double alpha, double epsilon) {
  const Tensor C = X.C(alpha);
  Tensor Q = closed_form(X, C, alpha);
  const Tensor small = C.abs().amax({-2, -1}) <= 64 * epsilon / std::numeric_limits<double>::epsilon();
  const double tolerance = 4 * std::sqrt(static_cast<double>(Q.size(-2))) * epsilon;
  const Tensor norms = at::linalg_vector_norm(Q, 2, -2);
  const Tensor good =
      ((norms - 1).abs() <= tolerance).all(-1).logical_and(small).logical_or(norms.isnan().all(-1));
  if (good.all().item<bool>()) return Q;
  const Tensor bad = good.logical_not();
  Blocks again = X;
  again.A1 = X.A1.index({bad}), again.B = X.B.index({bad});
  Q.index_put_({bad}, by_qr(again, alpha));
  return Q;
}

Tensor tall(const Tensor& X, double alpha, bool lower) {
  const Blocks blocks(X, lower);
  const bool is_double = at::toRealValueType(X.scalar_type()) == at::kDouble;
  const double epsilon =
      is_double ? std::numeric_limits<double>::epsilon() : std::numeric_limits<float>::epsilon();
  const Tensor Q = X.is_cpu()  ? with_guard(blocks, alpha, epsilon)
                   : is_double ? by_qr(blocks, alpha)
                               : closed_form(blocks, blocks.C(alpha), alpha);
  return Q.to(X.scalar_type());
}

Tensor stiefel_cayley(const Tensor& X, double alpha, bool lower, const Signs& signs) {
  check_stiefel_cayley(X, alpha, lower, signs);
  if (X.size(-2) == X.size(-1)) return SkewCayley::call(X, alpha, lower, signs);
  if (X.numel() == 0) return at::eye(X.size(-2), X.size(-1), X.options()).expand(X.sizes()).contiguous();
  const bool wide = is_wide(X);
  const Tensor Q = signed_by(tall(wide ? X.mT() : X, alpha, lower), signs);
  return (wide ? Q.mT() : Q).contiguous();
}

Tensor stiefel_cayley_meta(const Tensor& X, double alpha, bool lower, const Signs& signs) {
  check_stiefel_cayley(X, alpha, lower, signs);
  return empty_like_contiguous(X);
}

// ---- derivatives
// -------------------------------------------------------------------------------------------------------------------

Tensor tall_tangent(const Tensor& dX, const Tensor& X, const Tensor& Q, double alpha, bool lower) {
  const Blocks blocks(X, lower), d(dX, lower);
  const Tensor W = blocks.W(alpha), cross = at::matmul(conj_transpose(d.B), blocks.B);
  const Tensor dCW = at::matmul(alpha * d.A1 + (alpha * alpha) * (cross + conj_transpose(cross)), W);
  const Tensor Q2 = Q.slice_symint(-2, X.sym_size(-1)).to(W.scalar_type());
  const Tensor dQ2 = at::matmul(d.B, (-2 * alpha) * W) - at::matmul(Q2, dCW);
  return at::cat({-2 * at::matmul(W, dCW), dQ2}, -2).to(Q.scalar_type());
}

Tensor tall_gradient(const Tensor& G, const Tensor& X, const Tensor& Q, double alpha, bool lower) {
  const c10::SymInt k = X.sym_size(-1);
  const Blocks blocks(X, lower);
  const Tensor WH = conj_transpose(blocks.W(alpha)), wide = G.to(WH.scalar_type());
  const Tensor G1 = wide.slice_symint(-2, 0, k), G2 = wide.slice_symint(-2, k),
               Q2 = Q.slice_symint(-2, k).to(WH.scalar_type());
  const Tensor dC = -at::matmul(2 * at::matmul(WH, G1) + at::matmul(conj_transpose(Q2), G2), WH);
  const Tensor dB =
      at::matmul(G2, (-2 * alpha) * WH) + at::matmul(blocks.B, (alpha * alpha) * (dC + conj_transpose(dC)));
  return at::cat({expression::Triangle::collapse(alpha * dC, lower), dB}, -2).to(X.scalar_type());
}

struct StiefelNode : BackwardNode<StiefelNode, Tensor, Tensor, double, bool, Signs> {
  static std::string label() { return "stiefel_cayley_backward"; }
  static variable_list backward(const Needs&, const Tensor& G, const Tensor& X, const Tensor& Q,
                                const double& alpha, const bool& lower, const Signs& signs) {
    if (is_wide(X))
      return {tall_gradient(signed_by(G.mT(), signs), X.mT(), signed_by(Q.mT(), signs), alpha, lower).mT()};
    return {tall_gradient(signed_by(G, signs), X, signed_by(Q, signs), alpha, lower)};
  }
};

Tensor tangent(const Tensor& dX, const Tensor& X, const Tensor& Q, double alpha, bool lower,
               const Signs& signs) {
  if (is_wide(X)) return tangent(dX.mT(), X.mT(), Q.mT(), alpha, lower, signs).mT();
  return signed_by(tall_tangent(dX, X, signed_by(Q, signs), alpha, lower), signs);
}

Tensor stiefel_cayley_autograd(c10::DispatchKeySet keys, const Tensor& X, double alpha, bool lower,
                               const Signs& signs) {
  auto node = make_node<StiefelNode>(X);
  Tensor Q = StiefelCayley::below_autograd(keys, X, alpha, lower, signs);
  attach(node, Q);
  if (isFwGradDefined(X)) set_tangent(Q, tangent(X._fw_grad(0), X._fw_primal(0), Q, alpha, lower, signs));
  save(node, X, Q, alpha, lower, signs);
  return Q;
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(fastparam, m) {
  m.def("stiefel_cayley(Tensor X, float alpha=1.0, bool lower=False, Tensor? signs=None) -> Tensor",
        {at::Tag::pt2_compliant_tag});
}

TORCH_LIBRARY_IMPL(fastparam, Meta, m) { m.impl("stiefel_cayley", &stiefel_cayley_meta); }
TORCH_LIBRARY_IMPL(fastparam, CompositeExplicitAutograd, m) { m.impl("stiefel_cayley", &stiefel_cayley); }
TORCH_LIBRARY_IMPL(fastparam, Autograd, m) { m.impl("stiefel_cayley", &stiefel_cayley_autograd); }
TORCH_LIBRARY_IMPL(fastparam, AutocastCPU, m) { m.impl("stiefel_cayley", &StiefelCayley::no_autocast); }
TORCH_LIBRARY_IMPL(fastparam, AutocastCUDA, m) { m.impl("stiefel_cayley", &StiefelCayley::no_autocast); }

}  // namespace fastparam
