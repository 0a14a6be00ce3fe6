// Registers the triangular ops on a device: by its kernels or, if it has none, by their expressions.
#pragma once

#include <torch/library.h>

#include "../core/fallback.h"
#include "triangular.h"

namespace fastparam {

template <auto symmetric = nullptr, auto symmetric_adjoint = nullptr, auto skew = nullptr,
          auto skew_adjoint = nullptr>
void register_triangular(torch::Library& m) {
  m.impl("symmetric", &Dispatch<check_symmetric, expression::symmetric, symmetric>::run);
  m.impl("symmetric_adjoint",
         &Dispatch<check_symmetric_adjoint, expression::symmetric_adjoint, symmetric_adjoint>::run);
  m.impl("skew", &Dispatch<check_skew, expression::skew, skew>::run);
  m.impl("skew_adjoint", &Dispatch<check_skew_adjoint, expression::skew_adjoint, skew_adjoint>::run);
}

}  // namespace fastparam
