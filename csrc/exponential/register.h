// Registers the exponentials on a device: its kernels or, if it has none, the expressions.
#pragma once

#include <torch/library.h>

#include "../core/fallback.h"
#include "exponential.h"
#include "polynomials.h"

namespace fastparam {

template <auto whole = nullptr, auto derivative = nullptr, auto skew = nullptr, auto skew_backward = nullptr,
          auto symmetric = nullptr, auto symmetric_backward = nullptr>
void register_expressions_or(torch::Library& m) {
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

// The kernels of a device, from run(X, G, structure, lower). G is the direction, or null for exp itself.
template <auto run>
struct Exponentials {
  static Tensor whole(const Tensor& A) { return run(A, nullptr, Structure::general, false); }
  static Tensor derivative(const Tensor& A, const Tensor& E) { return run(A, &E, Structure::general, false); }
  template <Structure structure>
  static Tensor triangle(const Tensor& X, bool lower) {
    return run(X, nullptr, structure, lower);
  }
  template <Structure structure>
  static Tensor backward(const Tensor& G, const Tensor& X, bool lower) {
    return run(X, &G, structure, lower);
  }
};

template <auto run = nullptr>
void register_exponential(torch::Library& m) {
  if constexpr (std::is_null_pointer_v<decltype(run)>) {
    register_expressions_or<>(m);
  } else {
    using K = Exponentials<run>;
    register_expressions_or<K::whole, K::derivative, K::template triangle<Structure::skew>,
                            K::template backward<Structure::skew>, K::template triangle<Structure::symmetric>,
                            K::template backward<Structure::symmetric>>(m);
  }
}

}  // namespace fastparam
