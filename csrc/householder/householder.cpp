// householder: the first k columns of H_1 H_2 .. H_k, where H_j is the reflection given by the j-th column of
// V = I + tril(X, -1).
#include "householder.h"

#include <torch/library.h>

#include "../core/autograd.h"
#include "../core/fallback.h"
#include "../ops.h"

namespace fastparam {
namespace {

struct HouseholderNode : BackwardNode<HouseholderNode, Tensor> {
  static std::string label() { return "householder_backward"; }
  static variable_list backward(const Needs&, const Tensor& G, const Tensor& X) {
    return {HouseholderBackward::call(G, X)};
  }
};

Tensor householder_autograd(c10::DispatchKeySet keys, const Tensor& X) {
  auto node = make_node<HouseholderNode>(X);
  Tensor Q = Householder::below_autograd(keys, X);
  attach(node, Q);
  if (isFwGradDefined(X)) set_tangent(Q, expression::householder_tangent(X._fw_grad(0), X._fw_primal(0)));
  save(node, X);
  return Q;
}

// If a derivative of the gradient is required, the gradient is computed by operations that have derivatives.
Tensor householder_backward_autograd(c10::DispatchKeySet keys, const Tensor& G, const Tensor& X) {
  check_householder_backward(G, X);
  if (torch::autograd::compute_requires_grad(G, X) || isFwGradDefined(G) || isFwGradDefined(X))
    return expression::householder_backward(G, X);
  return HouseholderBackward::below_autograd(keys, G, X);
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(fastparam, m) {
  m.def("householder(Tensor X) -> Tensor", {at::Tag::pt2_compliant_tag});
  m.def("householder_backward(Tensor G, Tensor X) -> Tensor", {at::Tag::pt2_compliant_tag});
}
TORCH_LIBRARY_IMPL(fastparam, Meta, m) {
  m.impl("householder", &Meta<check_householder>::run);
  m.impl("householder_backward", &Meta<check_householder_backward>::run);
}
// ATen is used on devices other than the CPU, and for complex numbers (benchmarks/NOTES.md has its times).
TORCH_LIBRARY_IMPL(fastparam, CompositeExplicitAutograd, m) {
  m.impl("householder", &Dispatch<check_householder, expression::householder, expression::householder>::run);
  m.impl("householder_backward", &Dispatch<check_householder_backward, expression::householder_backward,
                                           expression::householder_backward>::run);
}
TORCH_LIBRARY_IMPL(fastparam, Autograd, m) {
  m.impl("householder", &householder_autograd);
  m.impl("householder_backward", &householder_backward_autograd);
}
namespace {
void no_autocast(torch::Library& m) {
  m.impl("householder", &Householder::no_autocast);
  m.impl("householder_backward", &HouseholderBackward::no_autocast);
}
}  // namespace
TORCH_LIBRARY_IMPL(fastparam, AutocastCPU, m) { no_autocast(m); }
TORCH_LIBRARY_IMPL(fastparam, AutocastCUDA, m) { no_autocast(m); }

}  // namespace fastparam
