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

// W = base Q(X), or its transpose for a wide X, rounded once: torch's `orthogonal` with trivialization. For a
// square X the gradient is
//   dX = L*(-(alpha / 2) M^H G (Q + I)^H),  M = base (Q + I) = base + W
// which takes one product less than base^H G and the gradient of the map. Neither X nor W is saved, so both
// may be changed in place. Q is saved with its history, to which second derivatives lead. All else is made of
// differentiable ops.
struct TrivializedNode : BackwardNode<TrivializedNode, Tensor, Tensor, Tensor, double, bool> {
  static std::string label() { return "trivialized_cayley_backward"; }
  static variable_list backward(const Needs&, const Tensor& G, const Tensor& base, const Tensor& Q,
                                const Tensor& M, const double& alpha, const bool& lower) {
    return {TrivializedCayleyBackward::call(G, base, Q, M, alpha, lower)};
  }
};

Tensor trivialized_cayley(const Tensor& X, const Tensor& base, double alpha, bool lower) {
  check_trivialized_cayley(X, base, alpha, lower);
  return expression::trivialized_cayley(X, base, alpha, lower);
}

// On devices without a kernel, by other ops, which have theirs.
Tensor trivialized_cayley_backward(const Tensor& G, const Tensor& base, const Tensor& Q, const Tensor& M,
                                   double alpha, bool lower) {
  check_trivialized_cayley_backward(G, base, Q, M, alpha, lower);
  return expression::trivialized_cayley_backward(G, base, Q, M, alpha, lower);
}

Tensor trivialized_cayley_autograd(c10::DispatchKeySet, const Tensor& X, const Tensor& base, double alpha,
                                   bool lower) {
  check_trivialized_cayley(X, base, alpha, lower);
  const bool alike = X.sym_size(-2) == X.sym_size(-1) && X.scalar_type() == base.scalar_type() &&
                     X.scalar_type() == at::toOpMathType(X.scalar_type());
  auto node = alike && !isFwGradDefined(X) && !isFwGradDefined(base) && !base.requires_grad()
                  ? make_node<TrivializedNode>(X)
                  : nullptr;
  if (!node) return expression::trivialized_cayley(X, base, alpha, lower);
  const Tensor Q = SkewCayley::call(X, alpha, lower, std::nullopt);
  Tensor M, W;
  {
    const at::AutoDispatchBelowADInplaceOrView guard;  // of this level of torch.func alone, unlike detach
    W = at::matmul(base, Q);
    if (W.scalar_type() != X.scalar_type()) W = W.to(X.scalar_type());  // rounded by autocast in torch.func
    M = base + W;
  }
  attach(node, W);
  save(node, base, Q, M, alpha, lower);
  return W;
}

// If a derivative of the gradient is requested, the gradient is computed with differentiable operations.
Tensor trivialized_cayley_backward_autograd(c10::DispatchKeySet keys, const Tensor& G, const Tensor& base,
                                            const Tensor& Q, const Tensor& M, double alpha, bool lower) {
  check_trivialized_cayley_backward(G, base, Q, M, alpha, lower);
  if (torch::autograd::compute_requires_grad(G, base, Q, M) || isFwGradDefined(G) || isFwGradDefined(base) ||
      isFwGradDefined(Q))
    return expression::trivialized_cayley_backward(G, base, Q, M, alpha, lower);
  return TrivializedCayleyBackward::below_autograd(keys, G, base, Q, M, alpha, lower);
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
  m.def(
      "trivialized_cayley_backward(Tensor G, Tensor base, Tensor Q, Tensor M, float alpha=1.0, "
      "bool lower=False) -> Tensor",
      {at::Tag::pt2_compliant_tag});
}

TORCH_LIBRARY_IMPL(fastparam, Meta, m) {
  m.impl("stiefel_cayley", &Meta<check_stiefel_cayley>::run);
  m.impl("stiefel_cayley_backward", &Meta<check_stiefel_cayley_backward>::run);
  m.impl("trivialized_cayley", &Meta<check_trivialized_cayley>::run);
  m.impl("trivialized_cayley_backward", &Meta<check_trivialized_cayley_backward>::run);
}

TORCH_LIBRARY_IMPL(fastparam, CompositeExplicitAutograd, m) {
  m.impl("stiefel_cayley", &Dispatch<check_stiefel_cayley, expression::stiefel_cayley>::run);
  m.impl("stiefel_cayley_backward",
         &Dispatch<check_stiefel_cayley_backward, expression::stiefel_cayley_backward>::run);
  m.impl("trivialized_cayley", &trivialized_cayley);
  m.impl("trivialized_cayley_backward", &trivialized_cayley_backward);
}

TORCH_LIBRARY_IMPL(fastparam, Autograd, m) {
  m.impl("stiefel_cayley", &stiefel_cayley_autograd);
  m.impl("stiefel_cayley_backward", &stiefel_cayley_backward_autograd);
  m.impl("trivialized_cayley", &trivialized_cayley_autograd);
  m.impl("trivialized_cayley_backward", &trivialized_cayley_backward_autograd);
}

void stiefel_no_autocast(torch::Library& m) {
  m.impl("stiefel_cayley", &StiefelCayley::no_autocast);
  m.impl("stiefel_cayley_backward", &StiefelCayleyBackward::no_autocast);
  m.impl("trivialized_cayley", &TrivializedCayley::no_autocast);
  m.impl("trivialized_cayley_backward", &TrivializedCayleyBackward::no_autocast);
}
TORCH_LIBRARY_IMPL(fastparam, AutocastCPU, m) { stiefel_no_autocast(m); }
TORCH_LIBRARY_IMPL(fastparam, AutocastCUDA, m) { stiefel_no_autocast(m); }

}  // namespace fastparam
