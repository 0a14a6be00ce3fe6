// symmetric, skew and their adjoints on CUDA: one launch each.
#include <ATen/ops/empty.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>

#include <algorithm>
#include <cstdint>
#include <limits>

#include "../register.h"
#include "triangular.cuh"

namespace fastparam {
namespace {

using namespace fastparam::cuda;

constexpr int64_t kMaxBlocks = std::numeric_limits<int32_t>::max();
// about two blocks per processor: below that, more and smaller ones are launched
constexpr int64_t kFewBlocks = 256;

// Returns whether all rows of the input are at multiples of so many elements.
template <class Bits>
bool input_is_at(const Triangular<Bits>& m, int64_t elements) {
  return reinterpret_cast<uintptr_t>(m.in) % (elements * sizeof(Bits)) == 0 &&
         (m.row_stride | m.batch_stride) % elements == 0;
}
template <class Bits>
bool moves_16_bytes(const Triangular<Bits>& m) {
  return reinterpret_cast<uintptr_t>(m.out) % 16 == 0 && m.n % kWide<Bits> == 0 &&
         input_is_at(m, kNarrow<Bits>);
}

// More blocks than one launch allows would need more memory than there is. If it does happen, the batch is
// split.
template <class Bits, class Launch>
void in_parts(Triangular<Bits> m, int64_t batch, int64_t most, const Launch& launch) {
  for (int64_t b = 0; b < batch; b += most) {
    m.batch = static_cast<unsigned>(std::min(most, batch - b));
    launch(m);
    m.in += m.batch * m.batch_stride;
    m.out += static_cast<int64_t>(m.batch) * m.n * m.n;
  }
}

int64_t pairs_of(int64_t n, int64_t order) {
  const int64_t tiles = (n + order - 1) / order;
  return tiles * (tiles + 1) / 2;
}

template <class T, bool Adjoint, int V, int Order>
void run_tiles(const Triangular<BitsOf<T>>& map, int64_t batch) {
  using S = Shape<BitsOf<T>, V, Order>;
  const int64_t pairs = pairs_of(map.n, Order);
  in_parts(map, batch, std::max<int64_t>(1, kMaxBlocks / pairs), [&](const auto& m) {
    const int64_t all = m.batch * pairs, groups = std::clamp<int64_t>(all / kFewBlocks, 1, S::kGroups);
    TORCH_INTERNAL_ASSERT(all <= kMaxBlocks);
    const auto blocks = static_cast<unsigned>((all + groups - 1) / groups),
               threads = static_cast<unsigned>(groups * S::kThreads);
    const auto stream = c10::cuda::getCurrentCUDAStream();
    if constexpr (Adjoint)
      triangular_adjoint<T, V, Order><<<blocks, threads, 0, stream>>>(m, static_cast<unsigned>(all));
    else
      triangular_forward<BitsOf<T>, V, Order><<<blocks, threads, 0, stream>>>(m, static_cast<unsigned>(all));
    C10_CUDA_KERNEL_LAUNCH_CHECK();
  });
}

template <class T, bool Adjoint>
void run_flat(const Triangular<BitsOf<T>>& map, int64_t batch) {
  const int per_block = flat_matrices<T>(map.n);
  in_parts(map, batch, kMaxBlocks, [&](const auto& m) {
    const unsigned blocks = (m.batch + per_block - 1) / per_block;
    triangular_flat<T, Adjoint><<<blocks, flat_threads(m.n), 0, c10::cuda::getCurrentCUDAStream()>>>(m);
    C10_CUDA_KERNEL_LAUNCH_CHECK();
  });
}

template <class T, bool Adjoint, int Order>
void run_tiles(const Triangular<BitsOf<T>>& map, int64_t batch) {
  if (moves_16_bytes(map)) run_tiles<T, Adjoint, kWide<T>, Order>(map, batch);
  else run_tiles<T, Adjoint, 1, Order>(map, batch);
}

template <class T, bool Adjoint>
void run(const Matrices& X, Tensor& Y, bool skew, bool lower) {
  using Bits = BitsOf<T>;
  const Bits sign = static_cast<Bits>(Bits(1) << (8 * sizeof(T) - 1)), all = static_cast<Bits>(~Bits(0)),
             none = 0;
  Triangular<Bits> map{static_cast<const Bits*>(X.tensor.const_data_ptr()),
                       static_cast<Bits*>(Y.mutable_data_ptr()),
                       X.batch_stride,
                       X.row_stride,
                       0,
                       static_cast<int>(X.n),
                       skew ? sign : none,
                       skew ? none : all,
                       lower};
  map.aligned = input_is_at(map, kWide<Bits>);
  if (X.n <= kFlat) return run_flat<T, Adjoint>(map, X.batch);
  if constexpr (sizeof(T) < 8) {
    if (X.n > 32 && X.batch * pairs_of(X.n, 64) >= kFewBlocks) return run_tiles<T, Adjoint, 64>(map, X.batch);
  }
  run_tiles<T, Adjoint, 32>(map, X.batch);
}

// Forward copies bits, so there is one instance per size. The adjoint adds, so there is one instance per
// type.
template <bool Adjoint, bool Skew>
Tensor map(const Tensor& X, bool lower) {
  const c10::cuda::CUDAGuard device(X.device());
  Tensor Y = at::empty(X.sizes(), X.options());
  if (Y.numel() == 0) return Y;
  const auto run_as = [&](auto zero) { run<decltype(zero), Adjoint>(Matrices(X), Y, Skew, lower); };
  if constexpr (Adjoint) with_real_type(X.scalar_type(), run_as);
  else with_bits(X, run_as);
  return Y;
}

}  // namespace

TORCH_LIBRARY_IMPL(fastparam, CUDA, m) {
  register_triangular<map<false, false>, map<true, false>, map<false, true>, map<true, true>>(m);
}

}  // namespace fastparam
