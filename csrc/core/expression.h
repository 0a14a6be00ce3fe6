// Helpers of the ATen expressions.
#pragma once

#include <ATen/OpMathType.h>
#include <ATen/core/Tensor.h>

namespace fastparam::expression {

using at::Tensor;

// Conjugates eagerly, because a kernel called from torch.compile does not see the lazy conjugation of mH.
inline Tensor conj_transpose(const Tensor& X) { return X.is_complex() ? X.mT().conj_physical() : X.mT(); }

// Half types as float32, and dense, so that a BLAS gives the same bits for all strides.
inline Tensor precise(const Tensor& X) { return X.to(at::toOpMathType(X.scalar_type())).contiguous(); }

}  // namespace fastparam::expression
