// The C++ names of the ops: struct, name in the dispatcher, the tensor that error messages name, types after the first tensor.
#pragma once

#include "autograd.h"

namespace fastparam {

struct Symmetric : Op<Symmetric, bool> {
  static constexpr char name[] = "fastparam::symmetric", argument[] = "X";
};
struct SymmetricAdjoint : Op<SymmetricAdjoint, bool> {
  static constexpr char name[] = "fastparam::symmetric_adjoint", argument[] = "G";
};
struct Skew : Op<Skew, bool> {
  static constexpr char name[] = "fastparam::skew", argument[] = "X";
};
struct SkewAdjoint : Op<SkewAdjoint, bool> {
  static constexpr char name[] = "fastparam::skew_adjoint", argument[] = "G";
};
struct MaskedPrune : Op<MaskedPrune, const Tensor&> {
  static constexpr char name[] = "fastparam::masked_prune", argument[] = "X";
};
struct PackMask : Op<PackMask> {
  static constexpr char name[] = "fastparam::pack_mask", argument[] = "mask";
};
struct UnpackMask : Op<UnpackMask, c10::SymIntArrayRef> {
  static constexpr char name[] = "fastparam::unpack_mask", argument[] = "packed";
};

}  // namespace fastparam
