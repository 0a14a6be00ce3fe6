// The rules for the mask of masked_prune, called by Meta, CPU and CUDA alike, and how its elements are found
// next to those of X.
//
// A mask is bool or packed. A bool mask broadcasts to X: its dimensions are the last ones of X, each of the
// same size or 1. A packed mask is uint8: its leading dimensions are those of X, and its last one holds the
// other dimensions of X, flattened. Element i is bit i % 8 (least significant first) of byte i / 8.
#pragma once

#include "../core/shapes.h"

namespace fastparam {

inline bool is_packed(const Tensor& mask) { return mask.scalar_type() == at::kByte; }

inline c10::SymInt packed_bytes(c10::SymIntArrayRef sizes) { return (c10::multiply_integers(sizes) + 7) / 8; }

inline std::string dtype_name(const Tensor& X) {
  return X.defined() ? std::string(c10::getDtypeNames(X.scalar_type()).first) : "None";
}

// The number of leading dimensions of X that a packed mask has, too.
inline int64_t packed_lead(const Tensor& X, const Tensor& mask) {
  return mask.dim() >= 1 && mask.dim() <= X.dim() + 1 ? mask.dim() - 1 : 0;
}

inline void check_packed(const Tensor& X, const Tensor& mask) {
  const int64_t lead = packed_lead(X, mask);
  c10::SymDimVector expected(X.sym_sizes().begin(), X.sym_sizes().begin() + lead);
  expected.push_back(packed_bytes(X.sym_sizes().slice(lead)));
  bool fits = mask.dim() == lead + 1;
  for (int64_t d = 0; fits && d <= lead; ++d)
    fits = mask.sym_size(d).sym_eq(expected[d]).expect_true(__FILE__, __LINE__);
  if (fits) return;
  bool whole = mask.dim() == X.dim();  // as many bytes as X has entries
  for (int64_t d = 0; whole && d < X.dim(); ++d)
    whole = mask.sym_size(d).sym_eq(X.sym_size(d)).guard_or_false(__FILE__, __LINE__);
  const c10::SymInt row = packed_bytes(X.sym_sizes());  // as from pack_mask
  TORCH_CHECK_VALUE(false, "masked_prune: expected a packed mask of shape (", row, ",)",
                    lead ? " or " + shape(expected) : "", " for X of shape ", shape(X), ", got ", shape(mask),
                    whole ? "; use mask.bool() for a mask of zeros and ones" : "");
}

inline void check_broadcast(const Tensor& X, const Tensor& mask) {
  const int64_t before = X.dim() - mask.dim();
  bool fits = before >= 0;
  for (int64_t d = 0; fits && d < mask.dim(); ++d) {
    const auto size = mask.sym_size(d);
    fits = size.sym_eq(1).guard_or_false(__FILE__, __LINE__) ||
           size.sym_eq(X.sym_size(before + d)).expect_true(__FILE__, __LINE__);
  }
  TORCH_CHECK_VALUE(fits, "masked_prune: expected mask to be broadcastable to X of shape ", shape(X),
                    ", got shape ", shape(mask));
}

inline void check_prune(const Tensor& X, const Tensor& mask) {
  check_strided("masked_prune", "X", X);
  check_strided("masked_prune", "mask", mask);
  check_dtype("masked_prune", "X", X);
  TORCH_CHECK_VALUE(mask.scalar_type() == at::kBool || is_packed(mask),
                    "masked_prune: expected mask of dtype bool or uint8 (packed), got ", dtype_name(mask));
  TORCH_CHECK_VALUE(mask.device() == X.device(), "masked_prune: expected mask on the same device as X (",
                    X.device(), "), got ", mask.device());
  is_packed(mask) ? check_packed(X, mask) : check_broadcast(X, mask);
}

inline void check_pack(const Tensor& mask) {
  check_strided("pack_mask", "mask", mask);
  TORCH_CHECK_VALUE(mask.scalar_type() == at::kBool, "pack_mask: expected mask of dtype bool, got ",
                    dtype_name(mask));
}

inline void check_unpack(const Tensor& packed, c10::SymIntArrayRef size) {
  check_strided("unpack_mask", "packed", packed);
  TORCH_CHECK_VALUE(packed.scalar_type() == at::kByte, "unpack_mask: expected packed of dtype uint8, got ",
                    dtype_name(packed));
  for (const auto& s : size)
    TORCH_CHECK_VALUE(s.sym_ge(0).expect_true(__FILE__, __LINE__),
                      "unpack_mask: expected non-negative sizes, got ", shape(size));
  const c10::SymInt bytes = packed_bytes(size);
  TORCH_CHECK_VALUE(packed.dim() == 1 && packed.sym_size(0).sym_eq(bytes).expect_true(__FILE__, __LINE__),
                    "unpack_mask: expected packed of shape (", bytes, ",) for size ", shape(size), ", got ",
                    shape(packed));
}

inline Tensor empty_packed(const Tensor& mask) {
  return mask.new_empty_symint({(mask.sym_numel() + 7) / 8}, at::kByte);
}
inline Tensor empty_unpacked(const Tensor& packed, c10::SymIntArrayRef size) {
  return packed.new_empty_symint(size, at::kBool);
}

namespace expression {

Tensor masked_prune(const Tensor& X, const Tensor& mask);
Tensor masked_prune_sparse(const Tensor& G, const Tensor& mask);  // COO, as in embeddings with sparse=True
Tensor pack_mask(const Tensor& mask);
Tensor unpack_mask(const Tensor& packed, c10::SymIntArrayRef size);

}  // namespace expression

// X and its mask as rows, merged into as few dimensions as their strides allow. In a row X is dense, and the
// mask has one element for each element of X, or one for all. Masks are never expanded: if they are copied,
// their broadcast dimensions are left out.
struct MaskedRows {
  struct Dimension {
    int64_t size, X, mask;  // strides; those of the mask are in bits if it is packed, otherwise in bytes
  };
  Tensor X, mask;
  bool packed;
  c10::SmallVector<Dimension, 4> outer;  // of rows, first dimension first
  Dimension row;

  MaskedRows(const Tensor& x, const Tensor& m) : X(x), mask(m), packed(is_packed(m)) {
    while (!packed && mask.dim() < X.dim()) mask = mask.unsqueeze(0);
    for (int64_t d = 0; d < mask.dim() - packed; ++d)
      if (mask.size(d) > 1 && mask.stride(d) == 0) mask = mask.narrow(d, 0, 1);
    if (packed && mask.size(-1) > 1 && mask.stride(-1) != 1) mask = mask.contiguous();
    merge();
    if (row.X == 1 && (packed || row.mask <= 1)) return;
    if (row.X != 1) X = X.contiguous();
    if (!packed) mask = mask.contiguous();
    merge();
  }

 private:
  void merge() {
    c10::SmallVector<Dimension, 4> found;  // last dimension first
    int64_t rest = 1;
    for (int64_t d = X.dim() - 1; d >= 0; --d) {
      const Dimension next{X.size(d), X.stride(d),
                           packed && d >= mask.dim() - 1 ? rest
                           : mask.size(d) == 1           ? 0
                                                         : mask.stride(d) * (packed ? 8 : 1)};
      rest *= next.size;
      if (next.size == 1) continue;
      if (!found.empty() && next.X == found.back().X * found.back().size &&
          next.mask == found.back().mask * found.back().size) {
        found.back().size *= next.size;
      } else {
        found.push_back(next);
      }
    }
    if (found.empty() || (packed && found.front().mask != 1)) found.insert(found.begin(), Dimension{1, 1, 1});
    row = found.front();
    outer.assign(found.rbegin(), found.rend() - 1);
  }
};

}  // namespace fastparam
