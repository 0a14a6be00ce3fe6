// stiefel_cayley: n x k matrices with orthonormal columns (for wide matrices, orthonormal rows), in time
// O(n k^2). They are the first k columns of the Cayley map of the skew matrix [A1 -B^H; B 0], A1 =
// skew(X[:k]), B = X[k:]. skew_cayley serves square matrices.
#include <ATen/ATen.h>
#include <torch/library.h>

#include "../core/autograd.h"
#include "../core/fallback.h"
#include "../ops.h"
#include "cayley.h"

namespace fastparam {

namespace {

struct StiefelNode : BackwardNode<StiefelNode, Tensor, Tensor, double, bool, Signs> {
  static std::string label() { return "stiefel_cayley_backward"; }
  static variable_list backward(const Needs&, const Tensor& G, const Tensor& X, const Tensor& Q,
                                const double& alpha, const bool& lower, const Signs& signs) {
    return {StiefelCayleyBackward::call(G, X, Q, alpha, lower, signs)};
  }
};

Tensor stiefel_cayley_autograd(c10::DispatchKeySet keys, const Tensor& X, double alpha, bool lower,
                               const Signs& signs) {
  check_stiefel_cayley(X, alpha, lower, signs);
  if (X.sym_size(-2) == X.sym_size(-1)) return SkewCayley::call(X, alpha, lower, signs);
  auto node = make_node<StiefelNode>(X);
  Tensor Q = StiefelCayley::below_autograd(keys, X, alpha, lower, signs);
  attach(node, Q);
  if (isFwGradDefined(X))
    set_tangent(Q, expression::stiefel_cayley_tangent(X._fw_grad(0), X._fw_primal(0), alpha, lower, signs));
  save(node, X, Q, alpha, lower, signs);
  return Q;
}

// If a derivative of the gradient is requested, the gradient is computed with differentiable operations.
Tensor stiefel_cayley_backward_autograd(c10::DispatchKeySet keys, const Tensor& G, const Tensor& X,
                                        const Tensor& Q, double alpha, bool lower, const Signs& signs) {
  check_stiefel_cayley_backward(G, X, Q, alpha, lower, signs);
  if (torch::autograd::compute_requires_grad(G, X, Q) || isFwGradDefined(G) || isFwGradDefined(X))
    return expression::stiefel_cayley_backward(G, X, Q, alpha, lower, signs);
  return StiefelCayleyBackward::below_autograd(keys, G, X, Q, alpha, lower, signs);
}

// base Q(X), or its transpose for a wide X, rounded once. This is torch's `orthogonal` with trivialization.
// It is made of ops that have derivatives, but is an op itself so that autocast does not round the product.
Tensor trivialized_cayley(const Tensor& X, const Tensor& base, double alpha, bool lower) {
  check_stiefel_cayley(X, alpha, lower, std::nullopt);
  const bool wide = is_wide(X);
  const auto order = X.sym_size(wide ? -1 : -2);
  TORCH_CHECK_VALUE(base.dim() == X.dim() && base.sym_size(-2) == order && base.sym_size(-1) == order,
                    "trivialized_cayley: expected base of shape (..., n, n) with n = ", order, ", got ",
                    shape(base));
  const auto type = at::toOpMathType(X.scalar_type());
  const Tensor Q = StiefelCayley::call(X.to(type), alpha, lower, std::nullopt), B = base.to(type);
  return (wide ? at::matmul(Q, B.mT()) : at::matmul(B, Q)).to(X.scalar_type());
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(fastparam, m) {
  m.def("stiefel_cayley(Tensor X, float alpha=1.0, bool lower=False, Tensor? signs=None) -> Tensor",
        {at::Tag::pt2_compliant_tag});
  m.def(
      "stiefel_cayley_backward(Tensor G, Tensor X, Tensor Q, float alpha=1.0, bool lower=False, Tensor? "
      "signs=None) -> Tensor",
      {at::Tag::pt2_compliant_tag});
  m.def("trivialized_cayley(Tensor X, Tensor base, float alpha=1.0, bool lower=False) -> Tensor",
        {at::Tag::pt2_compliant_tag});
}

TORCH_LIBRARY_IMPL(fastparam, CompositeImplicitAutograd, m) {
  m.impl("trivialized_cayley", &trivialized_cayley);
}

TORCH_LIBRARY_IMPL(fastparam, Meta, m) {
  m.impl("stiefel_cayley", &Meta<check_stiefel_cayley>::run);
  m.impl("stiefel_cayley_backward", &Meta<check_stiefel_cayley_backward>::run);
}

TORCH_LIBRARY_IMPL(fastparam, CompositeExplicitAutograd, m) {
  m.impl("stiefel_cayley", &Dispatch<check_stiefel_cayley, expression::stiefel_cayley>::run);
  m.impl("stiefel_cayley_backward",
         &Dispatch<check_stiefel_cayley_backward, expression::stiefel_cayley_backward>::run);
}

TORCH_LIBRARY_IMPL(fastparam, Autograd, m) {
  m.impl("stiefel_cayley", &stiefel_cayley_autograd);
  m.impl("stiefel_cayley_backward", &stiefel_cayley_backward_autograd);
}

void stiefel_no_autocast(torch::Library& m) {
  m.impl("stiefel_cayley", &StiefelCayley::no_autocast);
  m.impl("stiefel_cayley_backward", &StiefelCayleyBackward::no_autocast);
  m.impl("trivialized_cayley", &TrivializedCayley::no_autocast);
}
TORCH_LIBRARY_IMPL(fastparam, AutocastCPU, m) { stiefel_no_autocast(m); }
TORCH_LIBRARY_IMPL(fastparam, AutocastCUDA, m) { stiefel_no_autocast(m); }

}  // namespace fastparam
