// symmetric, skew and their adjoints in ATen operations.
#include <ATen/TensorOperators.h>
#include <ATen/core/Tensor.h>

#include "triangular.h"

namespace fastparam::expression {

Tensor symmetric(const Tensor& X, bool lower) {
  return (lower ? X.tril() + X.tril(-1).mT() : X.triu() + X.triu(1).mT()).contiguous();
}

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

}  // namespace fastparam::expression
