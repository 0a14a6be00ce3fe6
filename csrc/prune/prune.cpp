// masked_prune(X, mask) = where(mask, X, 0) is linear in X and its own adjoint. A pruned entry is +0,
// whatever its value was. pack_mask converts a bool mask to one bit per element, and unpack_mask converts it
// back. See prune.h for the layout.
#include "prune.h"

#include <torch/library.h>

#include "../core/autograd.h"
#include "../core/fallback.h"
#include "../ops.h"

namespace fastparam {

namespace {

Tensor pack_mask_meta(const Tensor& mask) {
  check_pack(mask);
  return empty_packed(mask);
}

Tensor unpack_mask_meta(const Tensor& packed, c10::SymIntArrayRef size) {
  check_unpack(packed, size);
  return empty_unpacked(packed, size);
}

// A gradient can be sparse, although X is not.
struct MaskedPruneAdjoint {
  static Tensor call(const Tensor& G, const Tensor& mask) {
    return G.is_sparse() ? expression::masked_prune_sparse(G, mask) : MaskedPrune::call(G, mask);
  }
};

}  // namespace

TORCH_LIBRARY_FRAGMENT(fastparam, m) {
  m.def("masked_prune(Tensor X, Tensor mask) -> Tensor", {at::Tag::pt2_compliant_tag});
  m.def("pack_mask(Tensor mask) -> Tensor", {at::Tag::pt2_compliant_tag});
  m.def("unpack_mask(Tensor packed, SymInt[] size) -> Tensor", {at::Tag::pt2_compliant_tag});
}

TORCH_LIBRARY_IMPL(fastparam, Meta, m) {
  m.impl("masked_prune", &Meta<check_prune>::run);
  m.impl("pack_mask", &pack_mask_meta);
  m.impl("unpack_mask", &unpack_mask_meta);
}

TORCH_LIBRARY_IMPL(fastparam, CompositeExplicitAutograd, m) {
  m.impl("masked_prune", &Dispatch<check_prune, expression::masked_prune>::run);
  m.impl("pack_mask", &Dispatch<check_pack, expression::pack_mask>::run);
  m.impl("unpack_mask", &Dispatch<check_unpack, expression::unpack_mask>::run);
}

TORCH_LIBRARY_IMPL(fastparam, Autograd, m) {
  m.impl("masked_prune", &linear<MaskedPrune, MaskedPruneAdjoint, const Tensor&>);
}

}  // namespace fastparam
