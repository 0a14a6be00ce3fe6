// Q = (I + alpha A)^-1 (I - alpha A) D. L is the linear map from the parameter to A, L* is its adjoint, and
// P = Q D + I. The derivatives are
//   tangent   dQ = -(alpha / 2) P L(dX) P D
//   gradient  dX = L*(-(alpha / 2) P^H G D P^H)
// The gradient needs only the saved output; it is the backward op (G, Q). The derivatives of that op, for an
// incoming H with A = L(H), are
//   dG = -(alpha / 2) P A P D
//   dQ = -(alpha / 2) (G D P^H A^H + A^H P^H G D) D
// L is the identity (cayley), mirrors the triangle of X (skew_cayley), or puts the entries of v in their
// places (skew_cayley_packed).
#include "cayley.h"

#include <ATen/ATen.h>

#include "../core/autograd.h"
#include "../ops.h"
#include "register.h"

namespace fastparam {

Tensor dense(const Signs& signs, const Tensor& Q) {
  if (!signs) return {};
  return (signs->is_complex() ? at::real(*signs) : *signs).to(at::toOpMathType(Q.scalar_type())).contiguous();
}

namespace {

// ---- derivatives ------------------------------------------------------------------------------------------

using expression::conj_transpose, expression::plus_identity, expression::signed_by;

template <class Forward, class Backward, class Map, class... Rest>
struct Derivatives {
  static Tensor tangent(const Tensor& dX, const Tensor& Q, double alpha, Rest... rest) {
    const Tensor P = plus_identity(signed_by(Q, rest...));
    return signed_by((-alpha / 2) * at::matmul(at::matmul(P, Map::expand(dX, rest...)), P), rest...);
  }

  struct Node : BackwardNode<Node, Tensor, double, std::decay_t<Rest>...> {
    static std::string label() { return Backward::word(); }
    static variable_list backward(const Needs&, const Tensor& G, const Tensor& Q, const double& alpha,
                                  const std::decay_t<Rest>&... rest) {
      return {Backward::call(G, Q, alpha, rest...)};
    }
  };

  static Tensor forward(c10::DispatchKeySet keys, const Tensor& X, double alpha, Rest... rest) {
    auto node = make_node<Node>(X);
    Tensor Q = Forward::below_autograd(keys, X, alpha, rest...);
    attach(node, Q);
    if (isFwGradDefined(X)) set_tangent(Q, tangent(X._fw_grad(0), Q, alpha, rest...));
    save(node, Q, alpha, rest...);
    return Q;
  }

  struct SecondNode : BackwardNode<SecondNode, Tensor, Tensor, double, std::decay_t<Rest>...> {
    static std::string label() { return std::string(Backward::word()) + "_backward"; }
    static variable_list backward(const Needs& needs, const Tensor& H, const Tensor& G, const Tensor& Q,
                                  const double& alpha, const std::decay_t<Rest>&... rest) {
      variable_list result(2);
      if (needs[0]) result[0] = tangent(H, Q, alpha, rest...);
      if (needs[1]) {
        const Tensor GD = signed_by(G, rest...);
        const Tensor PH = conj_transpose(plus_identity(signed_by(Q, rest...))),
                     AH = conj_transpose(Map::expand(H, rest...));
        result[1] = signed_by(
            (-alpha / 2) * (at::matmul(GD, at::matmul(PH, AH)) + at::matmul(at::matmul(AH, PH), GD)),
            rest...);
      }
      return result;
    }
  };

  static Tensor backward(c10::DispatchKeySet keys, const Tensor& G, const Tensor& Q, double alpha,
                         Rest... rest) {
    auto node = make_node<SecondNode>(G, Q);
    Tensor R = Backward::below_autograd(keys, G, Q, alpha, rest...);
    attach(node, R);
    if (isFwGradDefined(G) || isFwGradDefined(Q)) {
      const Tensor Q0 = Q._fw_primal(0),
                   G0 = G._fw_primal(0);  // the formula must not see tangents of its own arguments
      Tensor dR;
      if (isFwGradDefined(G)) dR = Backward::call(G._fw_grad(0), Q0, alpha, rest...);
      if (isFwGradDefined(Q)) {
        const Tensor PH = conj_transpose(plus_identity(signed_by(Q0, rest...))), GD = signed_by(G0, rest...);
        const Tensor dPH = conj_transpose(signed_by(Q._fw_grad(0), rest...));
        const Tensor Z = at::matmul(at::matmul(dPH, GD), PH) + at::matmul(PH, at::matmul(GD, dPH));
        const Tensor D = Map::collapse((-alpha / 2) * Z, rest...);
        dR = dR.defined() ? dR + D : D;
      }
      set_tangent(R, dR);
    }
    save(node, G, Q, alpha, rest...);
    return R;
  }
};

using OfWhole = Derivatives<Cayley, CayleyBackward, expression::Whole, const Signs&>;
using OfTriangle = Derivatives<SkewCayley, SkewCayleyBackward, expression::Triangle, bool, const Signs&>;
using OfPacked = Derivatives<SkewCayleyPacked, SkewCayleyPackedBackward, expression::Packed>;

// ---- shapes -----------------------------------------------------------------------------------------------

Tensor skew_cayley_packed_meta(const Tensor& v, double alpha) {
  check_skew_cayley_packed(v, alpha);
  return empty_unpacked_skew(v);
}
Tensor skew_cayley_packed_backward_meta(const Tensor& G, const Tensor& Q, double alpha) {
  check_skew_cayley_packed_backward(G, Q, alpha);
  return empty_packed_skew(Q);
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(fastparam, m) {
  m.def("cayley(Tensor A, float alpha=1.0, Tensor? signs=None) -> Tensor", {at::Tag::pt2_compliant_tag});
  m.def("cayley_backward(Tensor G, Tensor Q, float alpha=1.0, Tensor? signs=None) -> Tensor",
        {at::Tag::pt2_compliant_tag});
  m.def("skew_cayley(Tensor X, float alpha=1.0, bool lower=False, Tensor? signs=None) -> Tensor",
        {at::Tag::pt2_compliant_tag});
  m.def(
      "skew_cayley_backward(Tensor G, Tensor Q, float alpha=1.0, bool lower=False, Tensor? signs=None) -> "
      "Tensor",
      {at::Tag::pt2_compliant_tag});
  m.def("skew_cayley_packed(Tensor v, float alpha=1.0) -> Tensor", {at::Tag::pt2_compliant_tag});
  m.def("skew_cayley_packed_backward(Tensor G, Tensor Q, float alpha=1.0) -> Tensor",
        {at::Tag::pt2_compliant_tag});
}

TORCH_LIBRARY_IMPL(fastparam, Meta, m) {
  m.impl("cayley", &Meta<check_cayley>::run);
  m.impl("cayley_backward", &Meta<check_cayley_backward>::run);
  m.impl("skew_cayley", &Meta<check_skew_cayley>::run);
  m.impl("skew_cayley_backward", &Meta<check_skew_cayley_backward>::run);
  m.impl("skew_cayley_packed", &skew_cayley_packed_meta);
  m.impl("skew_cayley_packed_backward", &skew_cayley_packed_backward_meta);
}

TORCH_LIBRARY_IMPL(fastparam, CompositeExplicitAutograd, m) { register_cayley<>(m); }

TORCH_LIBRARY_IMPL(fastparam, Autograd, m) {
  m.impl("cayley", &OfWhole::forward);
  m.impl("cayley_backward", &OfWhole::backward);
  m.impl("skew_cayley", &OfTriangle::forward);
  m.impl("skew_cayley_backward", &OfTriangle::backward);
  m.impl("skew_cayley_packed", &OfPacked::forward);
  m.impl("skew_cayley_packed_backward", &OfPacked::backward);
}

void no_autocast(torch::Library& m) {
  m.impl("cayley", &Cayley::no_autocast);
  m.impl("cayley_backward", &CayleyBackward::no_autocast);
  m.impl("skew_cayley", &SkewCayley::no_autocast);
  m.impl("skew_cayley_backward", &SkewCayleyBackward::no_autocast);
  m.impl("skew_cayley_packed", &SkewCayleyPacked::no_autocast);
  m.impl("skew_cayley_packed_backward", &SkewCayleyPackedBackward::no_autocast);
}
TORCH_LIBRARY_IMPL(fastparam, AutocastCPU, m) { no_autocast(m); }
TORCH_LIBRARY_IMPL(fastparam, AutocastCUDA, m) { no_autocast(m); }

}  // namespace fastparam
