// symmetric, skew and their adjoints on CPU: the choice of the path, and the registration.
#include <ATen/EmptyTensor.h>

#include "../../core/cpu/parallel.h"
#include "../register.h"
#include "tiles.h"
#include "tiny.h"

namespace fastparam {
namespace {

using namespace fastparam::cpu;

constexpr int kTiny = 7;  // orders up to this have their own path

template <class T, bool Adjoint, int N = 1>
void run(const TriangularMap<T>& map) {
  if constexpr (N <= kTiny) {
    if (map.n == N) parallel<TinyBody<T, N, Adjoint>>(map.batch, N * N, &map);
    else run<T, Adjoint, N + 1>(map);
  } else {
    const int64_t tasks = run_simd<TilesTasks<T, Adjoint>>(&map);  // per matrix
    parallel<TilesBody<T, Adjoint>>(map.batch * tasks, map.n * map.n / tasks, &map);
  }
}

template <class T, bool Adjoint>
void run(const Matrices& X, Tensor& Y, bool skew, bool lower) {
  using Bits = BitsOf<T>;
  const Bits sign = Bits(1) << (8 * sizeof(T) - 1), all = static_cast<Bits>(~Bits(0));
  run<T, Adjoint>(TriangularMap<T>{static_cast<const Bits*>(X.tensor.const_data_ptr()),
                                   static_cast<Bits*>(Y.mutable_data_ptr()), X.batch, X.n, X.batch_stride,
                                   X.row_stride, skew ? sign : Bits(0), skew ? Bits(0) : all, lower});
}

// Forward copies bits, so there is one instance per size. The adjoint adds, so there is one instance per
// type.
template <bool Adjoint, bool Skew>
Tensor map(const Tensor& X, bool lower) {
  Tensor Y = at::detail::empty_cpu(
      X.sizes(), X.options());  // like at::empty, without the dispatcher, which is a third of a small call
  if (Y.numel() == 0) return Y;
  const auto run_as = [&](auto zero) { run<decltype(zero), Adjoint>(Matrices(X), Y, Skew, lower); };
  if constexpr (Adjoint) with_real_type(X.scalar_type(), run_as);
  else with_bits(X, run_as);
  return Y;
}

}  // namespace

TORCH_LIBRARY_IMPL(fastparam, CPU, m) {
  register_triangular<map<false, false>, map<true, false>, map<false, true>, map<true, true>>(m);
}

}  // namespace fastparam
