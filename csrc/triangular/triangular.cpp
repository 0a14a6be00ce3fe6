// symmetric, skew and their adjoints. They are linear maps of one tensor, and each is the derivative of
// another:
//   S(X) = triu(X) + triu(X, 1)^T      S*(G)_ij = G_ij + G_ji (i < j), G_ii, 0 (i > j)
//   K(X) = triu(X, 1) - triu(X, 1)^T   K*(G)_ij = G_ij - G_ji (i < j), 0 else
// With `lower` the other triangle is read, and the adjoints fill it. Complex matrices are transposed without
// conjugation.
#include "../core/autograd.h"
#include "../ops.h"
#include "register.h"

namespace fastparam {

TORCH_LIBRARY_FRAGMENT(fastparam, m) {
  m.def("symmetric(Tensor X, bool lower=False) -> Tensor", {at::Tag::pt2_compliant_tag});
  m.def("symmetric_adjoint(Tensor G, bool lower=False) -> Tensor", {at::Tag::pt2_compliant_tag});
  m.def("skew(Tensor X, bool lower=False) -> Tensor", {at::Tag::pt2_compliant_tag});
  m.def("skew_adjoint(Tensor G, bool lower=False) -> Tensor", {at::Tag::pt2_compliant_tag});
}

TORCH_LIBRARY_IMPL(fastparam, Meta, m) {
  m.impl("symmetric", &Meta<check_symmetric>::run);
  m.impl("symmetric_adjoint", &Meta<check_symmetric_adjoint>::run);
  m.impl("skew", &Meta<check_skew>::run);
  m.impl("skew_adjoint", &Meta<check_skew_adjoint>::run);
}

TORCH_LIBRARY_IMPL(fastparam, CompositeExplicitAutograd, m) { register_triangular(m); }

TORCH_LIBRARY_IMPL(fastparam, Autograd, m) {
  m.impl("symmetric", &linear<Symmetric, SymmetricAdjoint, bool>);
  m.impl("symmetric_adjoint", &linear<SymmetricAdjoint, Symmetric, bool>);
  m.impl("skew", &linear<Skew, SkewAdjoint, bool>);
  m.impl("skew_adjoint", &linear<SkewAdjoint, Skew, bool>);
}

}  // namespace fastparam
