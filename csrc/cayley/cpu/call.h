// A call of a Cayley op on real matrices.
#pragma once

#include <cstdint>

#include "../../core/cpu/dense/widen.h"
#include "../../core/cpu/simd.h"
#include "../layout.h"

namespace fastparam::cpu {

// Q = (I + aA)^-1 (I - aA) D.
template <class T>
struct CayleyCall {
  const T* in;
  T* out;
  // D, n per matrix: a column is negated if its sign is negative; null if there are none
  const compute_t<T>* signs;
  int64_t n, batch;
  double alpha;
  Layout layout;
  uint8_t* failed;  // one flag per matrix, set where the guard fails

  FASTPARAM_INLINE int64_t entries() const { return layout == Layout::packed ? n * (n - 1) / 2 : n * n; }
  FASTPARAM_INLINE const compute_t<T>* signs_of(int64_t matrix) const {
    return signs ? signs + matrix * n : nullptr;
  }
};

// The gradient of the parameter, from Q and the gradient of Q; or, if there is an M = base (Q + I), that of
// base Q.
template <class T>
struct CayleyGradient {
  const T *G, *Q;
  T* out;
  const compute_t<T>* signs;
  int64_t n, batch;
  double alpha;
  Layout layout;
  const T* M = nullptr;

  FASTPARAM_INLINE int64_t entries() const { return layout == Layout::packed ? n * (n - 1) / 2 : n * n; }
  FASTPARAM_INLINE const compute_t<T>* signs_of(int64_t matrix) const {
    return signs ? signs + matrix * n : nullptr;
  }
};

}  // namespace fastparam::cpu
