// The C++ names of the ops: the struct, the name in the dispatcher, and the types after the first tensor.
#pragma once

#include <optional>

#include "core/op.h"

namespace fastparam {

struct Symmetric : Op<Symmetric, bool> {
  static constexpr char name[] = "fastparam::symmetric";
};
struct SymmetricAdjoint : Op<SymmetricAdjoint, bool> {
  static constexpr char name[] = "fastparam::symmetric_adjoint";
};
struct Skew : Op<Skew, bool> {
  static constexpr char name[] = "fastparam::skew";
};
struct SkewAdjoint : Op<SkewAdjoint, bool> {
  static constexpr char name[] = "fastparam::skew_adjoint";
};
struct MaskedPrune : Op<MaskedPrune, const Tensor&> {
  static constexpr char name[] = "fastparam::masked_prune";
};
struct PackMask : Op<PackMask> {
  static constexpr char name[] = "fastparam::pack_mask";
};
struct UnpackMask : Op<UnpackMask, c10::SymIntArrayRef> {
  static constexpr char name[] = "fastparam::unpack_mask";
};

struct Cayley : Op<Cayley, double, const std::optional<Tensor>&> {
  static constexpr char name[] = "fastparam::cayley";
};
struct CayleyBackward : Op<CayleyBackward, const Tensor&, double, const std::optional<Tensor>&> {
  static constexpr char name[] = "fastparam::cayley_backward";
};
struct SkewCayley : Op<SkewCayley, double, bool, const std::optional<Tensor>&> {
  static constexpr char name[] = "fastparam::skew_cayley";
};
struct SkewCayleyBackward
    : Op<SkewCayleyBackward, const Tensor&, double, bool, const std::optional<Tensor>&> {
  static constexpr char name[] = "fastparam::skew_cayley_backward";
};
struct SkewCayleyPacked : Op<SkewCayleyPacked, double> {
  static constexpr char name[] = "fastparam::skew_cayley_packed";
};
struct SkewCayleyPackedBackward : Op<SkewCayleyPackedBackward, const Tensor&, double> {
  static constexpr char name[] = "fastparam::skew_cayley_packed_backward";
};
struct StiefelCayley : Op<StiefelCayley, double, bool, const std::optional<Tensor>&> {
  static constexpr char name[] = "fastparam::stiefel_cayley";
};
struct StiefelCayleyBackward
    : Op<StiefelCayleyBackward, const Tensor&, const Tensor&, double, bool, const std::optional<Tensor>&> {
  static constexpr char name[] = "fastparam::stiefel_cayley_backward";
};
struct TrivializedCayley : Op<TrivializedCayley, const Tensor&, double, bool> {
  static constexpr char name[] = "fastparam::trivialized_cayley";
};
struct TrivializedCayleyBackward
    : Op<TrivializedCayleyBackward, const Tensor&, const Tensor&, const Tensor&, double, bool> {
  static constexpr char name[] = "fastparam::trivialized_cayley_backward";
};

struct MatrixExp : Op<MatrixExp> {
  static constexpr char name[] = "fastparam::matrix_exp";
};
struct ExpFrechet : Op<ExpFrechet, const Tensor&> {
  static constexpr char name[] = "fastparam::exp_frechet";
};
struct SkewExp : Op<SkewExp, bool> {
  static constexpr char name[] = "fastparam::skew_exp";
};
struct SkewExpBackward : Op<SkewExpBackward, const Tensor&, bool> {
  static constexpr char name[] = "fastparam::skew_exp_backward";
};
struct SymmetricExp : Op<SymmetricExp, bool> {
  static constexpr char name[] = "fastparam::symmetric_exp";
};
struct SymmetricExpBackward : Op<SymmetricExpBackward, const Tensor&, bool> {
  static constexpr char name[] = "fastparam::symmetric_exp_backward";
};

struct Householder : Op<Householder> {
  static constexpr char name[] = "fastparam::householder";
};
struct HouseholderBackward : Op<HouseholderBackward, const Tensor&> {
  static constexpr char name[] = "fastparam::householder_backward";
};

}  // namespace fastparam
