// The inverse of skew_cayley with signs, and its check; and the base point of a registration.
#include <ATen/ATen.h>

#include <algorithm>
#include <cmath>

#include "../ops.h"
#include "inverse.h"

namespace fastparam {

namespace {

// The estimate does not see the rounding of the map. In float64 it grows with the entries of A: it was 3e-13
// at 1e3, and 2e-9 at 1e7. With an alpha below the normal numbers, which the map takes for 0, the estimate
// has nothing to tell.
constexpr double kEstimated = 1e3, kSmallestAlpha = 1e-37;

}  // namespace

std::tuple<Tensor, double, Tensor, Tensor, bool> inverse_of_square(const Tensor& Q, const Signs& signs,
                                                                   double alpha, bool lower, double far,
                                                                   bool single, double allowed,
                                                                   bool estimate) {
  const at::AutoDispatchBelowAutograd below_autograd;
  const auto [X, D, changed] = eliminate_to_parameter(Q, signs, far, single, alpha, lower);
  const double size = largest_entry(X);
  if (estimate && size <= kEstimated / std::abs(alpha) && std::abs(alpha) > kSmallestAlpha) {
    const Tensor loss = estimated_loss(Q, D, X, alpha, lower);
    const double* const losses = loss.const_data_ptr<double>();
    if (std::all_of(losses, losses + loss.numel(), [&](double l) { return l <= allowed; }))
      return {X, size, loss, D, changed};
  }
  return {X, size, largest_differences(Q, SkewCayley::call(X, alpha, lower, D)), D, changed};
}

Tensor orthogonal_factor(const Tensor& X, at::ScalarType type) {
  auto [Q, R] = at::linalg_qr(X, "complete");
  const Tensor pivots = R.diagonal(0, -2, -1);
  const Tensor signs =
      X.is_complex() ? at::where(pivots == 0, 1, pivots.sgn()) : at::ones_like(pivots).copysign_(pivots);
  Q.narrow_symint(-1, 0, R.sym_size(-1)).mul_(signs.unsqueeze(-2));
  return Q.to(type).contiguous();
}

}  // namespace fastparam
