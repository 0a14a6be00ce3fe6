// Registers the Cayley ops on a device: by its kernels or, if it has none, by their expressions.
#pragma once

#include <torch/library.h>

#include "../core/fallback.h"
#include "cayley.h"

namespace fastparam {

template <auto whole = nullptr, auto whole_backward = nullptr, auto triangle = nullptr,
          auto triangle_backward = nullptr, auto packed = nullptr, auto packed_backward = nullptr>
void register_cayley(torch::Library& m) {
  m.impl("cayley", &Dispatch<check_cayley, expression::cayley, whole>::run);
  m.impl("cayley_backward",
         &Dispatch<check_cayley_backward, expression::cayley_backward, whole_backward>::run);
  m.impl("skew_cayley", &Dispatch<check_skew_cayley, expression::skew_cayley, triangle>::run);
  m.impl("skew_cayley_backward",
         &Dispatch<check_skew_cayley_backward, expression::skew_cayley_backward, triangle_backward>::run);
  m.impl("skew_cayley_packed",
         &Dispatch<check_skew_cayley_packed, expression::skew_cayley_packed, packed>::run);
  m.impl("skew_cayley_packed_backward",
         &Dispatch<check_skew_cayley_packed_backward, expression::skew_cayley_packed_backward,
                   packed_backward>::run);
}

}  // namespace fastparam
