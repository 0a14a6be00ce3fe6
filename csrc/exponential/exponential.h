// The matrix exponential of whole matrices and of mirrored triangles: shape rules and ATen expressions.
#pragma once

#include "../core/expression.h"
#include "../core/shapes.h"

namespace fastparam {

inline void check_matrix_exp(const Tensor& A) { check_square("matrix_exp", "A", A); }
inline void check_exp_frechet(const Tensor& A, const Tensor& E) {
  check_square("exp_frechet", "A", A);
  check_like("exp_frechet", "E", E, "A", A);
}
inline void check_skew_exp(const Tensor& X, bool) { check_square("skew_exp", "X", X); }
inline void check_symmetric_exp(const Tensor& X, bool) { check_square("symmetric_exp", "X", X); }
inline void check_skew_exp_backward(const Tensor& G, const Tensor& X, bool) {
  check_square("skew_exp_backward", "X", X);
  check_like("skew_exp_backward", "G", G, "X", X);
}
inline void check_symmetric_exp_backward(const Tensor& G, const Tensor& X, bool) {
  check_square("symmetric_exp_backward", "X", X);
  check_like("symmetric_exp_backward", "G", G, "X", X);
}

namespace expression {

// The linear map from the parameter to A, and its adjoint. Both are differentiable and run on any device.
struct OfSkew {
  static Tensor expand(const Tensor& X, bool lower);  // T - T^H of the triangle T (complex: with diagonal)
  static Tensor collapse(const Tensor& G, bool lower);
};
struct OfSymmetric {
  static Tensor expand(const Tensor& X, bool lower);
  static Tensor collapse(const Tensor& G, bool lower);
};

Tensor matrix_exp(const Tensor& A);
Tensor exp_frechet(const Tensor& A, const Tensor& E);
Tensor skew_exp(const Tensor& X, bool lower);
Tensor skew_exp_backward(const Tensor& G, const Tensor& X, bool lower);
Tensor symmetric_exp(const Tensor& X, bool lower);
Tensor symmetric_exp_backward(const Tensor& G, const Tensor& X, bool lower);

}  // namespace expression

}  // namespace fastparam
