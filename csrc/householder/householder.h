// Products of Householder reflections: shape rules and ATen expressions.
#pragma once

#include "../core/expression.h"
#include "../core/shapes.h"

namespace fastparam {

inline void check_householder_argument(const char* op, const Tensor& X) {
  check_matrices(op, "X", X);
  TORCH_CHECK_VALUE(X.sym_size(-2).sym_ge(X.sym_size(-1)).expect_true(__FILE__, __LINE__), op,
                    ": expected X of shape (..., n, k) with n >= k, got ", shape(X));
}
inline void check_householder(const Tensor& X) { check_householder_argument("householder", X); }
inline void check_householder_backward(const Tensor& G, const Tensor& X) {
  check_householder_argument("householder_backward", X);
  check_like("householder_backward", "G", G, "X", X);
}

namespace expression {

Tensor householder(const Tensor& X);
Tensor householder_tangent(const Tensor& dX, const Tensor& X);
Tensor householder_backward(const Tensor& G, const Tensor& X);

}  // namespace expression

}  // namespace fastparam
