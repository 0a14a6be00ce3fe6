// exp(A) = I + A + A^2 / 2 + ... Its derivative at A along E is L(A, E), which is an op, too. The adjoint of
// L(A, .) is L(A^H, .). If A = K(X) is a mirrored triangle of X, the derivatives are
//   tangent   L(A, K(dX))
//   gradient  K*(L(A^H, G)), the backward op (G, X)
// The derivative L2(A; E, F) of L along F is a block of L([[A, E], [0, A]], [[F, 0], [0, F]]), so derivatives
// of every order exist. Source: Higham, Functions of Matrices (2008), chapters 3 and 10.
#include "exponential.h"

#include <ATen/ATen.h>

#include "../core/autograd.h"
#include "../ops.h"
#include "register.h"

namespace fastparam {
namespace {

using expression::conj_transpose;

// [[A, E], [0, A]]
Tensor block(const Tensor& A, const Tensor& E) {
  return at::cat({at::cat({A, at::zeros_like(A)}, -2), at::cat({E, A}, -2)}, -1);
}
Tensor second(const Tensor& A, const Tensor& E, const Tensor& F) {
  const c10::SymInt n = A.sym_size(-1);
  const Tensor L = ExpFrechet::call(block(A, E), block(F, at::zeros_like(F)));
  return L.narrow_symint(-2, 0, n).narrow_symint(-1, n, n);
}
Tensor plus(const Tensor& a, const Tensor& b) { return a.defined() ? a + b : b; }

// ---- whole matrices ---------------------------------------------------------------------------------------

struct WholeNode : BackwardNode<WholeNode, Tensor> {
  static std::string label() { return "matrix_exp_backward"; }
  static variable_list backward(const Needs&, const Tensor& G, const Tensor& A) {
    return {ExpFrechet::call(conj_transpose(A), G)};
  }
};

Tensor matrix_exp(c10::DispatchKeySet keys, const Tensor& A) {
  auto node = make_node<WholeNode>(A);
  Tensor Y = MatrixExp::below_autograd(keys, A);
  attach(node, Y);
  if (isFwGradDefined(A)) set_tangent(Y, ExpFrechet::call(A._fw_primal(0), A._fw_grad(0)));
  save(node, A);
  return Y;
}

struct FrechetNode : BackwardNode<FrechetNode, Tensor, Tensor> {
  static std::string label() { return "exp_frechet_backward"; }
  static variable_list backward(const Needs& needs, const Tensor& H, const Tensor& A, const Tensor& E) {
    variable_list result(2);
    if (needs[0]) result[0] = second(conj_transpose(A), conj_transpose(E), H);
    if (needs[1]) result[1] = ExpFrechet::call(conj_transpose(A), H);
    return result;
  }
};

Tensor exp_frechet(c10::DispatchKeySet keys, const Tensor& A, const Tensor& E) {
  auto node = make_node<FrechetNode>(A, E);
  Tensor L = ExpFrechet::below_autograd(keys, A, E);
  attach(node, L);
  if (isFwGradDefined(A) || isFwGradDefined(E)) {
    const Tensor A0 = A._fw_primal(0);
    Tensor dL;
    if (isFwGradDefined(E)) dL = ExpFrechet::call(A0, E._fw_grad(0));
    if (isFwGradDefined(A)) dL = plus(dL, second(A0, E._fw_primal(0), A._fw_grad(0)));
    set_tangent(L, dL);
  }
  save(node, A, E);
  return L;
}

// ---- triangles --------------------------------------------------------------------------------------------

template <class Forward, class Backward, class Map>
struct Derivatives {
  struct Node : BackwardNode<Node, Tensor, bool> {
    static std::string label() { return Backward::word(); }
    static variable_list backward(const Needs&, const Tensor& G, const Tensor& X, const bool& lower) {
      return {Backward::call(G, X, lower)};
    }
  };

  static Tensor forward(c10::DispatchKeySet keys, const Tensor& X, bool lower) {
    auto node = make_node<Node>(X);
    Tensor Y = Forward::below_autograd(keys, X, lower);
    attach(node, Y);
    if (isFwGradDefined(X))
      set_tangent(Y,
                  ExpFrechet::call(Map::expand(X._fw_primal(0), lower), Map::expand(X._fw_grad(0), lower)));
    save(node, X, lower);
    return Y;
  }

  struct SecondNode : BackwardNode<SecondNode, Tensor, Tensor, bool> {
    static std::string label() { return std::string(Backward::word()) + "_backward"; }
    static variable_list backward(const Needs& needs, const Tensor& H, const Tensor& G, const Tensor& X,
                                  const bool& lower) {
      const Tensor A = Map::expand(X, lower), F = Map::expand(H, lower);
      variable_list result(2);
      if (needs[0]) result[0] = ExpFrechet::call(A, F);
      if (needs[1]) result[1] = Map::collapse(conj_transpose(second(A, conj_transpose(G), F)), lower);
      return result;
    }
  };

  static Tensor backward(c10::DispatchKeySet keys, const Tensor& G, const Tensor& X, bool lower) {
    auto node = make_node<SecondNode>(G, X);
    Tensor R = Backward::below_autograd(keys, G, X, lower);
    attach(node, R);
    if (isFwGradDefined(G) || isFwGradDefined(X)) {
      const Tensor X0 = X._fw_primal(0);
      Tensor dR;
      if (isFwGradDefined(G)) dR = Backward::call(G._fw_grad(0), X0, lower);
      if (isFwGradDefined(X)) {
        const Tensor F = conj_transpose(Map::expand(X._fw_grad(0), lower));
        dR = plus(dR,
                  Map::collapse(second(conj_transpose(Map::expand(X0, lower)), G._fw_primal(0), F), lower));
      }
      set_tangent(R, dR);
    }
    save(node, G, X, lower);
    return R;
  }
};

using OfSkew = Derivatives<SkewExp, SkewExpBackward, expression::OfSkew>;
using OfSymmetric = Derivatives<SymmetricExp, SymmetricExpBackward, expression::OfSymmetric>;

}  // namespace

TORCH_LIBRARY_FRAGMENT(fastparam, m) {
  m.def("matrix_exp(Tensor A) -> Tensor", {at::Tag::pt2_compliant_tag});
  m.def("exp_frechet(Tensor A, Tensor E) -> Tensor", {at::Tag::pt2_compliant_tag});
  m.def("skew_exp(Tensor X, bool lower=False) -> Tensor", {at::Tag::pt2_compliant_tag});
  m.def("skew_exp_backward(Tensor G, Tensor X, bool lower=False) -> Tensor", {at::Tag::pt2_compliant_tag});
  m.def("symmetric_exp(Tensor X, bool lower=False) -> Tensor", {at::Tag::pt2_compliant_tag});
  m.def("symmetric_exp_backward(Tensor G, Tensor X, bool lower=False) -> Tensor",
        {at::Tag::pt2_compliant_tag});
}

TORCH_LIBRARY_IMPL(fastparam, Meta, m) {
  m.impl("matrix_exp", &Meta<check_matrix_exp>::run);
  m.impl("exp_frechet", &Meta<check_exp_frechet>::run);
  m.impl("skew_exp", &Meta<check_skew_exp>::run);
  m.impl("skew_exp_backward", &Meta<check_skew_exp_backward>::run);
  m.impl("symmetric_exp", &Meta<check_symmetric_exp>::run);
  m.impl("symmetric_exp_backward", &Meta<check_symmetric_exp_backward>::run);
}

TORCH_LIBRARY_IMPL(fastparam, CompositeExplicitAutograd, m) { register_exponential<>(m); }

TORCH_LIBRARY_IMPL(fastparam, Autograd, m) {
  m.impl("matrix_exp", &matrix_exp);
  m.impl("exp_frechet", &exp_frechet);
  m.impl("skew_exp", &OfSkew::forward);
  m.impl("skew_exp_backward", &OfSkew::backward);
  m.impl("symmetric_exp", &OfSymmetric::forward);
  m.impl("symmetric_exp_backward", &OfSymmetric::backward);
}

namespace {
void no_autocast(torch::Library& m) {
  m.impl("matrix_exp", &MatrixExp::no_autocast);
  m.impl("exp_frechet", &ExpFrechet::no_autocast);
  m.impl("skew_exp", &SkewExp::no_autocast);
  m.impl("skew_exp_backward", &SkewExpBackward::no_autocast);
  m.impl("symmetric_exp", &SymmetricExp::no_autocast);
  m.impl("symmetric_exp_backward", &SymmetricExpBackward::no_autocast);
}
}  // namespace
TORCH_LIBRARY_IMPL(fastparam, AutocastCPU, m) { no_autocast(m); }
TORCH_LIBRARY_IMPL(fastparam, AutocastCUDA, m) { no_autocast(m); }

}  // namespace fastparam
