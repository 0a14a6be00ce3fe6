// masked_prune, pack_mask and unpack_mask on CUDA: one launch each.
#include <ATen/ops/empty.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <torch/library.h>

#include <algorithm>
#include <cstdint>
#include <limits>

#include "../prune.h"
#include "prune.cuh"

namespace fastparam {
namespace {

using namespace fastparam::cuda;

// from this number on, about 8 per processor, a thread moves several chunks
constexpr int64_t kManyBlocks = 1024;

unsigned blocks_of(int64_t blocks) {
  TORCH_INTERNAL_ASSERT(blocks <=
                        std::numeric_limits<int32_t>::max());  // 2^39 elements or more do not fit in memory
  return static_cast<unsigned>(blocks);
}

bool is_at(const Tensor& tensor, int64_t bytes) {
  return reinterpret_cast<uintptr_t>(tensor.const_data_ptr()) % bytes == 0;
}

bool moves_16_bytes(const MaskedRows& rows, const Tensor& Y, int64_t elements) {
  const bool by_byte = !rows.packed && rows.row.mask == 1;  // the bytes of the mask are read together
  if (!is_at(Y, 16) || !is_at(rows.X, 4) || (by_byte && !is_at(rows.mask, elements))) return false;
  if (rows.outer.empty()) return true;
  bool whole = rows.row.size % elements == 0;
  for (const auto& d : rows.outer) whole = whole && (rows.row.mask == 0 || d.mask % elements == 0);
  return whole;
}

template <class T, int V, bool Packed, bool InRows, class Index>
void launch(const MaskedRows& rows, Tensor& Y) {
  Pruning<T, Index> p{static_cast<const T*>(rows.X.const_data_ptr()),
                      static_cast<T*>(Y.mutable_data_ptr()),
                      static_cast<const unsigned char*>(rows.mask.const_data_ptr()),
                      static_cast<Index>(Y.numel()),
                      is_at(rows.X, 16),
                      static_cast<int>(rows.outer.size()) + 1,
                      {static_cast<Index>(rows.row.size)},
                      {rows.row.mask}};
  for (int d = 1; d < p.depth; ++d) {
    const auto& dimension = rows.outer[p.depth - 1 - d];
    p.size[d] = static_cast<Index>(dimension.size);
    p.stride[d] = dimension.mask;
  }
  const int64_t chunks = (Y.numel() + V - 1) / V, blocks = (chunks + kBlock - 1) / kBlock;
  const int64_t launched =
      std::min(blocks, std::max(kManyBlocks, (blocks + kItems<InRows> - 1) / kItems<InRows>));
  prune<T, V, Packed, InRows, Index>
      <<<blocks_of(launched), kBlock, 0, c10::cuda::getCurrentCUDAStream()>>>(p);
  C10_CUDA_KERNEL_LAUNCH_CHECK();
}

// Only divisions are faster in 32 bits. The last step of a thread can end beyond the last element, by less
// than 2^24.
template <class T, int V, bool Packed>
void launch(const MaskedRows& rows, Tensor& Y) {
  if (rows.outer.empty()) launch<T, V, Packed, false, unsigned long long>(rows, Y);
  else if (Y.numel() <= std::numeric_limits<int32_t>::max()) launch<T, V, Packed, true, unsigned>(rows, Y);
  else launch<T, V, Packed, true, unsigned long long>(rows, Y);
}

template <class T, bool Packed>
void run(const MaskedRows& rows, Tensor& Y) {
  moves_16_bytes(rows, Y, kWide<T>) ? launch<T, kWide<T>, Packed>(rows, Y) : launch<T, 1, Packed>(rows, Y);
}

template <class T>
void run(const MaskedRows& rows, Tensor& Y) {
  rows.packed ? run<T, true>(rows, Y) : run<T, false>(rows, Y);
}

// A mask whose broadcast dimensions alternate more often than the kernel allows is expanded and copied.
MaskedRows rows_of(const Tensor& X, const Tensor& mask) {
  Tensor x = X.contiguous();
  if (x.element_size() == 16 && reinterpret_cast<uintptr_t>(x.const_data_ptr()) % 16 != 0) x = x.clone();
  const MaskedRows rows(x, mask);
  if (rows.outer.size() < kMaskDepth) return rows;
  at::DimVector sizes(X.sizes().begin(), X.sizes().begin() + (rows.mask.dim() - rows.packed));
  if (rows.packed) sizes.push_back(mask.size(-1));
  return MaskedRows(x, rows.mask.expand(sizes).contiguous());
}

Tensor masked_prune(const Tensor& X, const Tensor& mask) {
  check_prune(X, mask);
  const c10::cuda::CUDAGuard device(X.device());
  Tensor Y = at::empty(X.sizes(), X.options());
  if (Y.numel() == 0) return Y;
  const MaskedRows rows = rows_of(X, mask);
  if (Y.element_size() == 16) run<Sixteen>(rows, Y);
  else with_bits(Y, [&](auto zero) { run<BitsOf<decltype(zero)>>(rows, Y); });
  return Y;
}

unsigned blocks_for_bytes(const Tensor& packed) { return blocks_of((packed.numel() + kBlock - 1) / kBlock); }

Tensor pack_mask(const Tensor& mask) {
  check_pack(mask);
  const c10::cuda::CUDAGuard device(mask.device());
  Tensor packed = empty_packed(mask);
  if (packed.numel() == 0) return packed;
  const Tensor dense = mask.contiguous();
  const auto* bools = static_cast<const unsigned char*>(dense.const_data_ptr());
  pack<<<blocks_for_bytes(packed), kBlock, 0, c10::cuda::getCurrentCUDAStream()>>>(
      bools, packed.mutable_data_ptr<uint8_t>(), dense.numel(), reinterpret_cast<uintptr_t>(bools) % 8 == 0);
  C10_CUDA_KERNEL_LAUNCH_CHECK();
  return packed;
}

Tensor unpack_mask(const Tensor& packed, c10::SymIntArrayRef size) {
  check_unpack(packed, size);
  const c10::cuda::CUDAGuard device(packed.device());
  Tensor mask = empty_unpacked(packed, size);
  if (mask.numel() == 0) return mask;
  const Tensor dense = packed.contiguous();
  unpack<<<blocks_for_bytes(dense), kBlock, 0, c10::cuda::getCurrentCUDAStream()>>>(
      dense.const_data_ptr<uint8_t>(), static_cast<unsigned char*>(mask.mutable_data_ptr()), mask.numel());
  C10_CUDA_KERNEL_LAUNCH_CHECK();
  return mask;
}

}  // namespace

TORCH_LIBRARY_IMPL(fastparam, CUDA, m) {
  m.impl("masked_prune", &masked_prune);
  m.impl("pack_mask", &pack_mask);
  m.impl("unpack_mask", &unpack_mask);
}

}  // namespace fastparam
