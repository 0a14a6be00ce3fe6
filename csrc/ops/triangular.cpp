// symmetric, skew and their adjoints: linear maps of one tensor, each the derivative of the other.
//   S(X) = triu(X) + triu(X, 1)^T      S*(G)_ij = G_ij + G_ji (i < j), G_ii, 0 (i > j)
//   K(X) = triu(X, 1) - triu(X, 1)^T   K*(G)_ij = G_ij - G_ji (i < j), 0 else
// With `lower` the other triangle is read, and the adjoints fill that one. Complex: plain transposes.
#include "../common.h"
#include "../ops.h"

namespace fastparam {

namespace fallback {

Tensor symmetric(const Tensor& X, bool lower) { return (lower ? X.tril() + X.tril(-1).mT() : X.triu() + X.triu(1).mT()).contiguous(); }
Tensor symmetric_adjoint(const Tensor& G, bool lower) {
  return (lower ? G.tril() + G.mT().tril(-1) : G.triu() + G.mT().triu(1)).contiguous();
}
Tensor skew(const Tensor& X, bool lower) {
  const Tensor T = lower ? X.tril(-1) : X.triu(1);
  return (T - T.mT()).contiguous();
}
Tensor skew_adjoint(const Tensor& G, bool lower) {
  const Tensor D = G - G.mT();
  return (lower ? D.tril(-1) : D.triu(1)).contiguous();
}

}  // namespace fallback

namespace {

// For every device without kernels of its own.
template <class Self, Tensor (*map)(const Tensor&, bool)>
Tensor without_kernel(const Tensor& X, bool lower) {
  check_square(Self::word(), Self::argument, X);
  warn_no_kernel(X);
  return map(X, lower);
}

template <class Self>
Tensor meta(const Tensor& X, bool) {
  check_square(Self::word(), Self::argument, X);
  return empty_like_contiguous(X);
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(fastparam, m) {
  m.def("symmetric(Tensor X, bool lower=False) -> Tensor", {at::Tag::pt2_compliant_tag});
  m.def("symmetric_adjoint(Tensor G, bool lower=False) -> Tensor", {at::Tag::pt2_compliant_tag});
  m.def("skew(Tensor X, bool lower=False) -> Tensor", {at::Tag::pt2_compliant_tag});
  m.def("skew_adjoint(Tensor G, bool lower=False) -> Tensor", {at::Tag::pt2_compliant_tag});
}

TORCH_LIBRARY_IMPL(fastparam, Meta, m) {
  m.impl("symmetric", &meta<Symmetric>);
  m.impl("symmetric_adjoint", &meta<SymmetricAdjoint>);
  m.impl("skew", &meta<Skew>);
  m.impl("skew_adjoint", &meta<SkewAdjoint>);
}

TORCH_LIBRARY_IMPL(fastparam, CompositeExplicitAutograd, m) {
  m.impl("symmetric", &without_kernel<Symmetric, fallback::symmetric>);
  m.impl("symmetric_adjoint", &without_kernel<SymmetricAdjoint, fallback::symmetric_adjoint>);
  m.impl("skew", &without_kernel<Skew, fallback::skew>);
  m.impl("skew_adjoint", &without_kernel<SkewAdjoint, fallback::skew_adjoint>);
}

TORCH_LIBRARY_IMPL(fastparam, Autograd, m) {
  m.impl("symmetric", &Symmetric::linear<SymmetricAdjoint>);
  m.impl("symmetric_adjoint", &SymmetricAdjoint::linear<Symmetric>);
  m.impl("skew", &Skew::linear<SkewAdjoint>);
  m.impl("skew_adjoint", &SkewAdjoint::linear<Skew>);
}

}  // namespace fastparam
