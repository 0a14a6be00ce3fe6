// The inverse of skew_cayley with signs, and its check. It is no op: the inverses in Python call it with
// numbers in hand.
#include <ATen/ATen.h>

#include "../ops.h"
#include "inverse.h"

namespace fastparam {

// Returns X, in the dtype of Q, whose map is Q up to rounding, and the largest difference for each matrix;
// then the signs and whether they have changed, as from `eliminate`. With `estimate`, the differences are
// computed only if their estimate is larger than allowed.
std::tuple<Tensor, Tensor, Tensor, bool> inverse_of_square(const Tensor& Q, const Signs& signs, double alpha,
                                                           bool lower, double far, bool single,
                                                           double allowed, bool estimate) {
  const at::AutoDispatchBelowAutograd below_autograd;
  const auto [X, D, changed] = eliminate_to_parameter(Q, signs, far, single, alpha, lower);
  if (estimate) {
    const Tensor loss = estimated_loss(Q, D, X, alpha, lower);
    if (loss.le(allowed).all().item<bool>()) return {X, loss, D, changed};
  }
  return {X, SkewCayley::call(X, alpha, lower, D).sub_(Q).abs_().amax({-2, -1}), D, changed};
}

}  // namespace fastparam
