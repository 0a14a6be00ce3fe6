// Registers the exponentials on a device: by its kernels, or where there are none by their expressions.
#pragma once

#include <torch/library.h>

#include "../core/fallback.h"
#include "exponential.h"

namespace fastparam {

template <auto whole = nullptr, auto derivative = nullptr, auto skew = nullptr, auto skew_backward = nullptr,
          auto symmetric = nullptr, auto symmetric_backward = nullptr>
void register_exponential(torch::Library& m) {
  m.impl("matrix_exp", &Dispatch<check_matrix_exp, expression::matrix_exp, whole>::run);
  m.impl("exp_frechet", &Dispatch<check_exp_frechet, expression::exp_frechet, derivative>::run);
  m.impl("skew_exp", &Dispatch<check_skew_exp, expression::skew_exp, skew>::run);
  m.impl("skew_exp_backward",
         &Dispatch<check_skew_exp_backward, expression::skew_exp_backward, skew_backward>::run);
  m.impl("symmetric_exp", &Dispatch<check_symmetric_exp, expression::symmetric_exp, symmetric>::run);
  m.impl(
      "symmetric_exp_backward",
      &Dispatch<check_symmetric_exp_backward, expression::symmetric_exp_backward, symmetric_backward>::run);
}

}  // namespace fastparam
