// The Cayley map and its gradient in ATen operations. The maps of triangles go through the dispatcher.
#include <ATen/TensorOperators.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/eye.h>
#include <ATen/ops/linalg_solve_ex.h>
#include <ATen/ops/matmul.h>
#include <ATen/ops/real.h>
#include <ATen/ops/triu_indices.h>
#include <ATen/ops/where.h>
#include <ATen/ops/zeros.h>

#include "cayley.h"

#include "../ops.h"

namespace fastparam::expression {

Tensor plus_identity(const Tensor& Q) { return Q + at::eye_symint(Q.sym_size(-1), Q.options()); }

Tensor signed_by(const Tensor& Q, const Signs& signs) {
  if (!signs) return Q;
  const Tensor negative = (signs->is_complex() ? at::real(*signs) : *signs).lt(0).unsqueeze(-2);
  return at::where(negative, -Q, Q);
}

Tensor Triangle::expand(const Tensor& X, bool lower, const Signs&) {
  if (!X.is_complex()) return Skew::call(X, lower);
  const Tensor T = lower ? X.tril() : X.triu();
  return T - conj_transpose(T);
}

Tensor Triangle::collapse(const Tensor& G, bool lower, const Signs&) {
  if (!G.is_complex()) return SkewAdjoint::call(G, lower);
  const Tensor D = G - conj_transpose(G);
  return lower ? D.tril() : D.triu();
}

namespace {

// The positions of the entries above the diagonal in the flattened matrix.
Tensor places(int64_t n, const Tensor& like) {
  const Tensor rows_columns =
      at::triu_indices(n, n, 1, at::TensorOptions().dtype(at::kLong).device(like.device()));
  return rows_columns[0] * n + rows_columns[1];
}

// I + aA is never singular for a skew A. For any other A, checking would synchronise a device with the host.
Tensor solve(const Tensor& A, double alpha, bool raise_singular = false) {
  const Tensor I = at::eye_symint(A.sym_size(-1), A.options()), B = alpha * A;
  return std::get<0>(at::linalg_solve_ex(I + B, I - B, /*left=*/true, raise_singular));
}

template <class Map, class... Rest>
Tensor of_skew(const Tensor& X, double alpha, const Rest&... rest) {
  const Tensor Q = solve(Map::expand(X.to(at::toOpMathType(X.scalar_type())), rest...), alpha);
  return signed_by(Q, rest...).to(X.scalar_type()).contiguous();
}

template <class Map, class... Rest>
Tensor gradient(const Tensor& G, const Tensor& Q, double alpha, const Rest&... rest) {
  const auto type = at::toOpMathType(Q.scalar_type());
  const Tensor PH = conj_transpose(plus_identity(signed_by(Q.to(type), rest...)));
  const Tensor dA = (-alpha / 2) * at::matmul(at::matmul(PH, signed_by(G.to(type), rest...)), PH);
  return Map::collapse(dA, rest...).to(Q.scalar_type()).contiguous();
}

}  // namespace

Tensor Packed::expand(const Tensor& v) {
  const int64_t n = packed_order(v);
  c10::SymDimVector flat(v.sym_sizes().begin(), v.sym_sizes().end()), square = flat;
  flat.back() = n * n;
  square.back() = n;
  square.emplace_back(n);
  const Tensor T = at::zeros_symint(flat, v.options()).index_add(-1, places(n, v), v).view_symint(square);
  return T - conj_transpose(T);
}

Tensor Packed::collapse(const Tensor& G) {
  const int64_t n = G.sym_size(-1).guard_int(__FILE__, __LINE__);
  c10::SymDimVector flat(G.sym_sizes().begin(), G.sym_sizes().end() - 1);
  flat.back() = n * n;
  return (G - conj_transpose(G)).reshape_symint(flat).index_select(-1, places(n, G));
}

Tensor cayley(const Tensor& A, double alpha, const Signs& signs) {
  const Tensor Q = solve(A.to(at::toOpMathType(A.scalar_type())), alpha, A.is_cpu());
  return signed_by(Q, signs).to(A.scalar_type()).contiguous();
}
Tensor cayley_backward(const Tensor& G, const Tensor& Q, double alpha, const Signs& signs) {
  return gradient<Whole>(G, Q, alpha, signs);
}

Tensor skew_cayley(const Tensor& X, double alpha, bool lower, const Signs& signs) {
  return of_skew<Triangle>(X, alpha, lower, signs);
}
Tensor skew_cayley_backward(const Tensor& G, const Tensor& Q, double alpha, bool lower, const Signs& signs) {
  return gradient<Triangle>(G, Q, alpha, lower, signs);
}

Tensor skew_cayley_packed(const Tensor& v, double alpha) { return of_skew<Packed>(v, alpha); }
Tensor skew_cayley_packed_backward(const Tensor& G, const Tensor& Q, double alpha) {
  return gradient<Packed>(G, Q, alpha);
}

}  // namespace fastparam::expression
