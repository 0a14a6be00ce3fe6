// The Cayley map Q = (I + alpha A)^-1 (I - alpha A): its shape rules, and the ATen expressions that stand in where no kernel does.
// A is given whole, as a triangle of X, or as the vector v of its entries above the diagonal, row by row (packed).
#pragma once

#include <ATen/OpMathType.h>

#include <cmath>

#include "common.h"

namespace fastparam {

inline void check_alpha(const char* op, double alpha) {
  TORCH_CHECK_VALUE(std::isfinite(alpha), op, ": expected a finite alpha, got ", alpha);
}

inline void check_cayley(const char* op, const char* argument, const Tensor& X, double alpha) {
  check_square(op, argument, X);
  check_alpha(op, alpha);
}

// G beside the output Q of the forward op.
inline void check_cayley_backward(const char* op, const Tensor& G, const Tensor& Q, double alpha) {
  check_cayley(op, "Q", Q, alpha);
  TORCH_CHECK_VALUE(G.sym_sizes() == Q.sym_sizes(), op, ": expected G of the shape of Q ", shape(Q), ", got ", shape(G));
  TORCH_CHECK_VALUE(G.scalar_type() == Q.scalar_type(), op, ": expected G of the dtype of Q, ", c10::getDtypeNames(Q.scalar_type()).first,
                    ", got ", c10::getDtypeNames(G.scalar_type()).first);
  TORCH_CHECK_VALUE(G.device() == Q.device(), op, ": expected G on the device of Q, ", Q.device(), ", got ", G.device());
}

// The order n of the matrix whose n (n - 1) / 2 entries above the diagonal are packed; no entries: n = 1.
inline int64_t packed_order(int64_t entries) {
  const auto n = static_cast<int64_t>((1 + std::sqrt(1 + 8.0 * static_cast<double>(entries))) / 2);
  return n * (n - 1) / 2 == entries ? n : -1;
}

inline void check_stiefel(const char* op, const Tensor& X, double alpha) {
  TORCH_CHECK_VALUE(X.dim() >= 2, op, ": expected X of shape (..., n, k), got ", shape(X));
  check_dtype(op, "X", X);
  check_alpha(op, alpha);
}

// Checks v and returns n. The length decides a shape by a square root: a symbolic length becomes a constant of the graph.
inline int64_t check_packed(const char* op, const Tensor& v, double alpha) {
  const bool vector = v.dim() >= 1;
  const int64_t n = vector ? packed_order(v.sym_size(-1).guard_int(__FILE__, __LINE__)) : -1;
  TORCH_CHECK_VALUE(n > 0, op, ": expected v of shape (..., n (n - 1) / 2), got ", shape(v));
  check_dtype(op, "v", v);
  check_alpha(op, alpha);
  return n;
}

// Uninitialised results, contiguous.
inline Tensor empty_unpacked_skew(const Tensor& v, int64_t n) {
  c10::SymDimVector sizes(v.sym_sizes().begin(), v.sym_sizes().end() - 1);
  sizes.insert(sizes.end(), {n, n});
  return at::empty_symint(sizes, v.options());
}
inline Tensor empty_packed_skew(const Tensor& Q) {
  const int64_t n = Q.sym_size(-1).guard_int(__FILE__, __LINE__);
  c10::SymDimVector sizes(Q.sym_sizes().begin(), Q.sym_sizes().end() - 2);
  sizes.emplace_back(n * (n - 1) / 2);
  return at::empty_symint(sizes, Q.options());
}

// Conjugated for good: what torch.compile runs does not see the lazy conjugation of mH.
inline Tensor conj_transpose(const Tensor& X) { return X.is_complex() ? X.mT().conj_physical() : X.mT(); }

// A = T - T^H with the triangle T of X (complex: its diagonal too), and the adjoint; differentiable.
Tensor skew_of_triangle(const Tensor& X, bool lower);
Tensor triangle_of_skew(const Tensor& G, bool lower);

namespace fallback {

// Half types are computed in float32.
Tensor cayley(const Tensor& A, double alpha);  // of a singular I + alpha A: raises on CPU, not finite elsewhere
Tensor cayley_backward(const Tensor& G, const Tensor& Q, double alpha);
Tensor skew_cayley(const Tensor& X, double alpha, bool lower);
Tensor skew_cayley_backward(const Tensor& G, const Tensor& Q, double alpha, bool lower);
Tensor skew_cayley_packed(const Tensor& v, double alpha);
Tensor skew_cayley_packed_backward(const Tensor& G, const Tensor& Q, double alpha);

}  // namespace fallback

}  // namespace fastparam
