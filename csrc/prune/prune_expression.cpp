// masked_prune, pack_mask and unpack_mask in ATen operations.
#include <ATen/TensorOperators.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/_sparse_coo_tensor_unsafe.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/bitwise_and.h>
#include <ATen/ops/bitwise_left_shift.h>
#include <ATen/ops/constant_pad_nd.h>
#include <ATen/ops/index.h>
#include <ATen/ops/ones.h>
#include <ATen/ops/where.h>
#include <ATen/ops/zeros.h>

#include "../ops.h"
#include "prune.h"

namespace fastparam::expression {

namespace {

// The bits of a packed mask as bools, in a last dimension of size `count`.
Tensor bits_of(const Tensor& packed, const c10::SymInt& count) {
  const Tensor places =
      at::bitwise_left_shift(at::ones({8}, packed.options()), at::arange(8, packed.options()));
  const Tensor bits = at::bitwise_and(packed.unsqueeze(-1), places).ne(0);
  return bits.flatten(-2).slice_symint(-1, 0, count);
}

// The mask as bools that broadcast to X.
Tensor bools_of(const Tensor& mask, const Tensor& X) {
  if (!is_packed(mask)) return mask;
  return bits_of(mask, c10::multiply_integers(X.sym_sizes().slice(mask.dim() - 1)))
      .reshape_symint(X.sym_sizes());
}

}  // namespace

Tensor masked_prune(const Tensor& X, const Tensor& mask) {
  return at::where(bools_of(mask, X), X, at::zeros({}, X.options().layout(at::kStrided))).contiguous();
}

Tensor masked_prune_sparse(const Tensor& G, const Tensor& mask) {
  // indices() and values() are differentiable only if no entry occurs twice
  const Tensor once = G.coalesce();
  const Tensor indices = once.indices();
  c10::List<std::optional<Tensor>> at_indices;
  for (const Tensor& along : indices.unbind(0)) at_indices.push_back(along);
  Tensor keep = bools_of(mask, G).expand_symint(G.sym_sizes());
  // otherwise the values are a batch of dense gradients
  if (!at_indices.empty()) keep = at::index(keep, at_indices);
  return at::_sparse_coo_tensor_unsafe_symint(indices, MaskedPrune::call(once.values(), keep), G.sym_sizes(),
                                              G.scalar_type(), at::kSparse, G.device(), /*pin_memory=*/{},
                                              /*is_coalesced=*/true);
}

Tensor pack_mask(const Tensor& mask) {
  const auto bytes = (mask.sym_numel() + 7) / 8;
  const Tensor bits =
      at::constant_pad_nd_symint(mask.flatten().to(at::kByte), {0, bytes * 8 - mask.sym_numel()})
          .view_symint({bytes, 8});
  return at::bitwise_left_shift(bits, at::arange(8, bits.options())).sum(-1, /*keepdim=*/false, at::kByte);
}

Tensor unpack_mask(const Tensor& packed, c10::SymIntArrayRef size) {
  return bits_of(packed, c10::multiply_integers(size)).reshape_symint(size).contiguous();
}

}  // namespace fastparam::expression
