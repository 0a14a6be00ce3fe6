// The exponentials in ATen operations. The maps of triangles are called through the dispatcher.
#include "exponential.h"

#include <ATen/ATen.h>

#include <cmath>

#include "../ops.h"

namespace fastparam::expression {

Tensor OfSkew::expand(const Tensor& X, bool lower) {
  if (!X.is_complex()) return Skew::call(X, lower);
  const Tensor T = lower ? X.tril() : X.triu();
  return T - conj_transpose(T);
}
Tensor OfSkew::collapse(const Tensor& G, bool lower) {
  if (!G.is_complex()) return SkewAdjoint::call(G, lower);
  const Tensor D = G - conj_transpose(G);
  return lower ? D.tril() : D.triu();
}

Tensor OfSymmetric::expand(const Tensor& X, bool lower) { return Symmetric::call(X, lower); }
Tensor OfSymmetric::collapse(const Tensor& G, bool lower) { return SymmetricAdjoint::call(G, lower); }

namespace {

// exp(A) is the Taylor polynomial of degree 16 of A / 2^s, by four terms at a time, squared as often as each
// matrix needs. The host reads the largest number of squarings once. torch.matrix_exp synchronizes, too, and
// loses digits: its error in double is about 40 times as large.
Tensor by_squaring(const Tensor& A) {
  const Tensor norm = A.abs().sum(-1, /*keepdim=*/true).amax(-2, /*keepdim=*/true);
  const Tensor squarings = norm.log2().ceil().add(1).clamp_min(0);
  const auto most = static_cast<int64_t>(at::where(norm.isfinite(), squarings, 0).max().item<double>());
  const Tensor X = at::where(norm.isfinite(), A * at::exp2(-squarings), std::nan(""));
  const Tensor X2 = at::matmul(X, X);
  const Tensor powers[] = {X, X2, at::matmul(X2, X), at::matmul(X2, X2)};
  Tensor D = at::zeros_like(X);
  double factorial = 1;
  double inverse[17] = {};
  for (int i = 1; i <= 16; ++i) inverse[i] = 1 / (factorial *= i);
  for (int block = 12; block >= 0; block -= 4) {
    D = at::matmul(D, powers[3]);
    for (int i = 1; i <= 4; ++i) D = D + powers[i - 1] * inverse[block + i];
  }
  Tensor P = D + at::eye(A.size(-1), A.options());
  for (int64_t i = 0; i < most; ++i) P = at::where(squarings > i, at::matmul(P, P), P);
  return P;
}

// The derivative is the upper right block of exp [[A, E], [0, A]]. E is scaled by a power of two to be small,
// so that only A determines the norm of the block matrix, and how often it is squared.
constexpr int kSmall = 20;
// x 2^exponents, in two steps, so that neither factor overflows or becomes denormal.
Tensor scaled(const Tensor& x, const Tensor& exponents) {
  const Tensor half = exponents.div(2, "floor");
  return at::ldexp(at::ldexp(x, half), exponents - half);
}
Tensor frechet(const Tensor& A, const Tensor& E) {
  if (A.numel() == 0) return E.clone();
  const int64_t n = A.size(-1);
  const Tensor exponents = std::get<1>(at::frexp(E.abs().amax({-2, -1}, /*keepdim=*/true)));
  const Tensor small = scaled(E, -(exponents + kSmall));
  const Tensor left = at::cat({A, at::zeros_like(A)}, -2), right = at::cat({small, A}, -2);
  const Tensor P = by_squaring(at::cat({left, right}, -1));
  return scaled(P.narrow(-2, 0, n).narrow(-1, n, n), exponents + kSmall);
}

template <class Map>
Tensor of_triangle(const Tensor& X, bool lower) {
  return expression::matrix_exp(Map::expand(precise(X), lower)).to(X.scalar_type());
}
template <class Map>
Tensor gradient(const Tensor& G, const Tensor& X, bool lower) {
  const Tensor A = Map::expand(precise(X), lower);
  return Map::collapse(frechet(conj_transpose(A), precise(G)), lower).to(X.scalar_type()).contiguous();
}

}  // namespace

Tensor matrix_exp(const Tensor& A) {
  if (A.numel() == 0) return empty_like_contiguous(A);
  return by_squaring(precise(A)).to(A.scalar_type()).contiguous();
}
Tensor exp_frechet(const Tensor& A, const Tensor& E) {
  return frechet(precise(A), precise(E)).to(A.scalar_type()).contiguous();
}
Tensor skew_exp(const Tensor& X, bool lower) { return of_triangle<OfSkew>(X, lower); }
Tensor skew_exp_backward(const Tensor& G, const Tensor& X, bool lower) {
  return gradient<OfSkew>(G, X, lower);
}
Tensor symmetric_exp(const Tensor& X, bool lower) { return of_triangle<OfSymmetric>(X, lower); }
Tensor symmetric_exp_backward(const Tensor& G, const Tensor& X, bool lower) {
  return gradient<OfSymmetric>(G, X, lower);
}

}  // namespace fastparam::expression
