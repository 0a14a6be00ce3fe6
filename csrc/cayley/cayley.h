// The Cayley map Q = (I + alpha A)^-1 (I - alpha A) D: shape rules and ATen expressions.
//
// A is given as a whole, as a triangle of X, or as the vector v of its entries above the diagonal, row by
// row (packed). D is the diagonal matrix of the optional signs: a column of Q is negated if its sign (for
// complex signs, its real part) is negative.
#pragma once

#include <ATen/OpMathType.h>

#include <cmath>
#include <optional>

#include "../core/expression.h"
#include "../core/shapes.h"

namespace fastparam {

using Signs = std::optional<Tensor>;

inline void check_alpha(const char* op, double alpha) {
  TORCH_CHECK_VALUE(std::isfinite(alpha), op, ": expected a finite alpha, got ", alpha);
}

// There is one sign per column of X, which is tall or square.
inline void check_signs(const char* op, const Tensor& X, const Signs& signs, const c10::SymInt& columns) {
  if (!signs) return;
  check_strided(op, "signs", *signs);
  c10::SymDimVector expected(X.sym_sizes().begin(), X.sym_sizes().end() - 1);
  expected.back() = columns;
  bool fits = signs->dim() == static_cast<int64_t>(expected.size());
  for (int64_t d = 0; fits && d < signs->dim(); ++d)
    fits = signs->sym_size(d).sym_eq(expected[d]).expect_true(__FILE__, __LINE__);
  TORCH_CHECK_VALUE(fits, op, ": expected signs of shape ", shape(expected), ", got ", shape(*signs));
  check_dtype(op, "signs", *signs);
  TORCH_CHECK_VALUE(signs->device() == X.device(), op, ": expected signs on ", X.device(), ", got ",
                    signs->device());
}

inline void check_square_map(const char* op, const char* argument, const Tensor& X, double alpha) {
  check_square(op, argument, X);
  check_alpha(op, alpha);
}

// G has the shape of the output Q of the forward op.
inline void check_gradient(const char* op, const Tensor& G, const Tensor& Q, double alpha) {
  check_square_map(op, "Q", Q, alpha);
  check_like(op, "G", G, "Q", Q);
}

inline void check_cayley(const Tensor& A, double alpha, const Signs& signs) {
  check_square_map("cayley", "A", A, alpha);
  check_signs("cayley", A, signs, A.sym_size(-1));
}
inline void check_cayley_backward(const Tensor& G, const Tensor& Q, double alpha, const Signs& signs) {
  check_gradient("cayley_backward", G, Q, alpha);
  check_signs("cayley_backward", Q, signs, Q.sym_size(-1));
}

inline void check_skew_cayley(const Tensor& X, double alpha, bool, const Signs& signs) {
  check_square_map("skew_cayley", "X", X, alpha);
  check_signs("skew_cayley", X, signs, X.sym_size(-1));
}
inline void check_skew_cayley_backward(const Tensor& G, const Tensor& Q, double alpha, bool,
                                       const Signs& signs) {
  check_gradient("skew_cayley_backward", G, Q, alpha);
  check_signs("skew_cayley_backward", Q, signs, Q.sym_size(-1));
}

// The order n of the matrix whose n (n - 1) / 2 entries above the diagonal are packed; n = 1 if there are
// none.
inline int64_t packed_order(int64_t entries) {
  const auto n = static_cast<int64_t>((1 + std::sqrt(1 + 8.0 * static_cast<double>(entries))) / 2);
  return n * (n - 1) / 2 == entries ? n : -1;
}
// The order is computed from the length by a square root, so a symbolic length becomes a constant of the
// graph.
inline int64_t packed_order(const Tensor& v) {
  return packed_order(v.sym_size(-1).guard_int(__FILE__, __LINE__));
}

inline void check_skew_cayley_packed(const Tensor& v, double alpha) {
  check_strided("skew_cayley_packed", "v", v);
  TORCH_CHECK_VALUE(v.dim() >= 1 && packed_order(v) > 0,
                    "skew_cayley_packed: expected v of shape (..., n (n - 1) / 2), got ", shape(v));
  check_dtype("skew_cayley_packed", "v", v);
  check_alpha("skew_cayley_packed", alpha);
}
inline void check_skew_cayley_packed_backward(const Tensor& G, const Tensor& Q, double alpha) {
  check_gradient("skew_cayley_packed_backward", G, Q, alpha);
}

inline bool is_wide(const Tensor& X) { return X.sym_size(-2) < X.sym_size(-1); }

inline void check_tall_map(const char* op, const Tensor& X, double alpha) {
  check_matrices(op, "X", X);
  check_alpha(op, alpha);
}
inline void check_stiefel_cayley(const Tensor& X, double alpha, bool, const Signs& signs) {
  check_tall_map("stiefel_cayley", X, alpha);
  if (signs) check_signs("stiefel_cayley", X, signs, X.sym_size(is_wide(X) ? -2 : -1));
}

inline void check_stiefel_cayley_backward(const Tensor& G, const Tensor& X, const Tensor& Q, double alpha,
                                          bool lower, const Signs& signs) {
  check_stiefel_cayley(X, alpha, lower, signs);
  check_like("stiefel_cayley_backward", "G", G, "X", X);
  check_like("stiefel_cayley_backward", "Q", Q, "X", X);
}

// The base is converted to the dtype of X.
inline void check_trivialized_cayley(const Tensor& X, const Tensor& base, double alpha, bool) {
  constexpr char op[] = "trivialized_cayley";
  check_tall_map(op, X, alpha);
  check_strided(op, "base", base);
  c10::SymDimVector expected(X.sym_sizes().begin(), X.sym_sizes().end());
  const auto order = X.sym_size(is_wide(X) ? -1 : -2);
  expected[expected.size() - 2] = expected.back() = order;
  TORCH_CHECK_VALUE(base.sym_sizes() == c10::SymIntArrayRef(expected), op, ": expected base of shape ",
                    shape(expected), ", got ", shape(base));
  check_dtype(op, "base", base);
  TORCH_CHECK_VALUE(X.is_complex() || !base.is_complex(), op, ": expected base to be real, as X is, got ",
                    c10::getDtypeNames(base.scalar_type()).first);
  TORCH_CHECK_VALUE(base.device() == X.device(), op, ": expected base on the same device as X (", X.device(),
                    "), got ", base.device());
}
// All tensors are square and alike.
inline void check_trivialized_cayley_backward(const Tensor& G, const Tensor& base, const Tensor& Q,
                                              const Tensor& M, double alpha, bool) {
  constexpr char op[] = "trivialized_cayley_backward";
  check_gradient(op, G, Q, alpha);
  check_like(op, "base", base, "Q", Q);
  check_like(op, "M", M, "Q", Q);
}

// Returns an uninitialised contiguous result.
inline Tensor empty_unpacked_skew(const Tensor& v) {
  c10::SymDimVector sizes(v.sym_sizes().begin(), v.sym_sizes().end());
  sizes.back() = packed_order(v);
  sizes.push_back(sizes.back());
  return v.new_empty_symint(sizes);
}
inline Tensor empty_packed_skew(const Tensor& Q) {
  const int64_t n = Q.sym_size(-1).guard_int(__FILE__, __LINE__);
  c10::SymDimVector sizes(Q.sym_sizes().begin(), Q.sym_sizes().end() - 1);
  sizes.back() = n * (n - 1) / 2;
  return Q.new_empty_symint(sizes);
}

// Signs as the kernels read them: contiguous, in the type of the computation. Undefined if there are none.
Tensor dense(const Signs& signs, const Tensor& Q);

// Half types are computed in float32.
namespace expression {

Tensor plus_identity(const Tensor& Q);

// The linear map from the parameter to A and its adjoint. Both are differentiable, run on any device, and
// take the arguments of the op that follow alpha. For a triangle T of X (for complex X, with its diagonal),
// A = T - T^H.
struct Whole {
  static Tensor expand(const Tensor& A, const Signs&) { return A; }
  static Tensor collapse(const Tensor& G, const Signs&) { return G; }
};
struct Triangle {
  static Tensor expand(const Tensor& X, bool lower, const Signs& = std::nullopt);
  static Tensor collapse(const Tensor& G, bool lower, const Signs& = std::nullopt);
};
struct Packed {
  static Tensor expand(const Tensor& v);
  static Tensor collapse(const Tensor& G);
};

// Q D, where the signs are among the arguments of the op that follow alpha.
inline Tensor signed_by(const Tensor& Q) { return Q; }
Tensor signed_by(const Tensor& Q, const Signs& signs);
inline Tensor signed_by(const Tensor& Q, bool, const Signs& signs) { return signed_by(Q, signs); }

Tensor cayley(const Tensor& A, double alpha,
              // for a singular I + alpha A: raises on CPU, returns non-finite values elsewhere
              const Signs& signs);
Tensor cayley_backward(const Tensor& G, const Tensor& Q, double alpha, const Signs& signs);
Tensor skew_cayley(const Tensor& X, double alpha, bool lower, const Signs& signs);
Tensor skew_cayley_backward(const Tensor& G, const Tensor& Q, double alpha, bool lower, const Signs& signs);
Tensor skew_cayley_packed(const Tensor& v, double alpha);
Tensor skew_cayley_packed_backward(const Tensor& G, const Tensor& Q, double alpha);

Tensor stiefel_cayley(const Tensor& X, double alpha, bool lower, const Signs& signs);
Tensor square_gradient(const Tensor& G, const Tensor& Q, double alpha, bool lower, const Signs& signs);
Tensor stiefel_cayley_tangent(const Tensor& dX, const Tensor& X, double alpha, bool lower,
                              const Signs& signs);
Tensor stiefel_cayley_backward(const Tensor& G, const Tensor& X, const Tensor& Q, double alpha, bool lower,
                               const Signs& signs);

Tensor trivialized_cayley(const Tensor& X, const Tensor& base, double alpha, bool lower);
Tensor trivialized_cayley_backward(const Tensor& G, const Tensor& base, const Tensor& Q, const Tensor& M,
                                   double alpha, bool lower);

}  // namespace expression

}  // namespace fastparam
