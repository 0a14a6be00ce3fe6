// The shape rules of symmetric, skew and their adjoints, and their ATen expressions.
#pragma once

#include "../core/shapes.h"

namespace fastparam {

inline void check_symmetric(const Tensor& X, bool) { check_square("symmetric", "X", X); }
inline void check_symmetric_adjoint(const Tensor& G, bool) { check_square("symmetric_adjoint", "G", G); }
inline void check_skew(const Tensor& X, bool) { check_square("skew", "X", X); }
inline void check_skew_adjoint(const Tensor& G, bool) { check_square("skew_adjoint", "G", G); }

namespace expression {

Tensor symmetric(const Tensor& X, bool lower);
Tensor symmetric_adjoint(const Tensor& G, bool lower);
Tensor skew(const Tensor& X, bool lower);
Tensor skew_adjoint(const Tensor& G, bool lower);

}  // namespace expression

}  // namespace fastparam
