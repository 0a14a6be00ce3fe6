// masked_prune(X, mask) = where(mask, X, 0): linear in X and its own adjoint; a pruned entry is +0 whatever was under it.
// pack_mask and unpack_mask: a bool mask as one bit an element, and back. See prune.h for the layout.
#include "../prune.h"

#include "../ops.h"

namespace fastparam {

namespace {

// The bits of a packed mask as bools, in a last dimension of `count`.
Tensor bits_of(const Tensor& packed, const c10::SymInt& count) {
  const Tensor places = at::bitwise_left_shift(at::ones({8}, packed.options()), at::arange(8, packed.options()));
  const Tensor bits = at::bitwise_and(packed.unsqueeze(-1), places).ne(0);
  return bits.flatten(-2).slice_symint(-1, 0, count);
}

Tensor masked_prune(const Tensor& X, const Tensor& mask) {
  check_prune(X, mask);
  warn_no_kernel(X);
  Tensor keep = mask;
  if (is_packed(mask)) keep = bits_of(mask, c10::multiply_integers(X.sym_sizes().slice(mask.dim() - 1))).reshape_symint(X.sym_sizes());
  return at::where(keep, X, at::zeros({}, X.options().layout(at::kStrided))).contiguous();
}

Tensor pack_mask(const Tensor& mask) {
  check_pack(mask);
  warn_no_kernel(mask);
  const auto bytes = (mask.sym_numel() + 7) / 8;
  const Tensor bits = at::constant_pad_nd_symint(mask.flatten().to(at::kByte), {0, bytes * 8 - mask.sym_numel()}).view_symint({bytes, 8});
  return at::bitwise_left_shift(bits, at::arange(8, bits.options())).sum(-1, /*keepdim=*/false, at::kByte);
}

Tensor unpack_mask(const Tensor& packed, c10::SymIntArrayRef size) {
  check_unpack(packed, size);
  warn_no_kernel(packed);
  return bits_of(packed, c10::multiply_integers(size)).reshape_symint(size).contiguous();
}

Tensor masked_prune_meta(const Tensor& X, const Tensor& mask) {
  check_prune(X, mask);
  return empty_like_contiguous(X);
}

Tensor pack_mask_meta(const Tensor& mask) {
  check_pack(mask);
  return empty_packed(mask);
}

Tensor unpack_mask_meta(const Tensor& packed, c10::SymIntArrayRef size) {
  check_unpack(packed, size);
  return empty_unpacked(packed, size);
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(fastparam, m) {
  m.def("masked_prune(Tensor X, Tensor mask) -> Tensor", {at::Tag::pt2_compliant_tag});
  m.def("pack_mask(Tensor mask) -> Tensor", {at::Tag::pt2_compliant_tag});
  m.def("unpack_mask(Tensor packed, SymInt[] size) -> Tensor", {at::Tag::pt2_compliant_tag});
}

TORCH_LIBRARY_IMPL(fastparam, Meta, m) {
  m.impl("masked_prune", &masked_prune_meta);
  m.impl("pack_mask", &pack_mask_meta);
  m.impl("unpack_mask", &unpack_mask_meta);
}

TORCH_LIBRARY_IMPL(fastparam, CompositeExplicitAutograd, m) {
  m.impl("masked_prune", &masked_prune);
  m.impl("pack_mask", &pack_mask);
  m.impl("unpack_mask", &unpack_mask);
}

TORCH_LIBRARY_IMPL(fastparam, Autograd, m) { m.impl("masked_prune", &MaskedPrune::linear<MaskedPrune>); }

}  // namespace fastparam
