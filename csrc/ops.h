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

struct Cayley : Op<Cayley, double> {
  static constexpr char name[] = "fastparam::cayley", argument[] = "A";
};
struct CayleyBackward : Op<CayleyBackward, const Tensor&, double> {
  static constexpr char name[] = "fastparam::cayley_backward", argument[] = "Q";
};
struct SkewCayley : Op<SkewCayley, double, bool> {
  static constexpr char name[] = "fastparam::skew_cayley", argument[] = "X";
};
struct SkewCayleyBackward : Op<SkewCayleyBackward, const Tensor&, double, bool> {
  static constexpr char name[] = "fastparam::skew_cayley_backward", argument[] = "Q";
};
struct SkewCayleyPacked : Op<SkewCayleyPacked, double> {
  static constexpr char name[] = "fastparam::skew_cayley_packed", argument[] = "v";
};
struct SkewCayleyPackedBackward : Op<SkewCayleyPackedBackward, const Tensor&, double> {
  static constexpr char name[] = "fastparam::skew_cayley_packed_backward", argument[] = "Q";
};
struct StiefelCayley : Op<StiefelCayley, double, bool> {
  static constexpr char name[] = "fastparam::stiefel_cayley", argument[] = "X";
};

}  // namespace fastparam
