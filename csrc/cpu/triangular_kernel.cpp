// symmetric, skew and their adjoints on CPU: which path serves a call, and the registration.
#include <ATen/EmptyTensor.h>
#include <ATen/Parallel.h>
#include <torch/library.h>

#include "../common.h"
#include "triangular_tiles.h"
#include "triangular_tiny.h"

namespace fastparam {
namespace {

using namespace fastparam::cpu;

constexpr int64_t kGrain = 32768;  // elements of work below which no second thread is woken
constexpr int kTiny = 7;           // orders up to this have a path of their own

template <class Body, class T>
void parallel(const TriangularMap<T>& map, int64_t tasks_per_matrix) {
  const int64_t elements = std::max<int64_t>(1, map.n * map.n / tasks_per_matrix);
  at::parallel_for(0, map.batch * tasks_per_matrix, std::max<int64_t>(1, kGrain / elements),
                   [&](int64_t begin, int64_t end) { run_simd<Body>(&map, begin, end); });
}

template <class Body, class T>
int64_t tasks_of(const TriangularMap<T>& map) {
  switch (vector_bytes()) {
    case 64: return Body::template tasks<64>(map);
    case 32: return Body::template tasks<32>(map);
    default: return Body::template tasks<16>(map);
  }
}

template <class T, bool Adjoint, int N = 1>
void run(const TriangularMap<T>& map) {
  if constexpr (N <= kTiny) map.n == N ? parallel<TinyBody<T, N, Adjoint>>(map, 1) : run<T, Adjoint, N + 1>(map);
  else parallel<TilesBody<T, Adjoint>>(map, tasks_of<TilesBody<T, Adjoint>>(map));
}

template <class T, bool Adjoint>
void run(const Matrices& X, Tensor& Y, bool skew, bool lower) {
  using Bits = BitsOf<T>;
  const Bits sign = Bits(1) << (8 * sizeof(T) - 1), all = static_cast<Bits>(~Bits(0));
  run<T, Adjoint>(TriangularMap<T>{static_cast<const Bits*>(X.tensor.const_data_ptr()), static_cast<Bits*>(Y.mutable_data_ptr()), X.batch,
                                   X.n, X.batch_stride, X.row_stride, skew ? sign : Bits(0), skew ? Bits(0) : all, lower});
}

// Forward copies bits: one instance a size. The adjoint adds: one instance a type.
void forward(const Matrices& X, Tensor& Y, bool skew, bool lower) {
  switch (Y.element_size()) {
    case 2: return run<uint16_t, false>(X, Y, skew, lower);
    case 4: return run<uint32_t, false>(X, Y, skew, lower);
    default: return run<uint64_t, false>(X, Y, skew, lower);
  }
}

void adjoint(const Matrices& G, Tensor& D, bool skew, bool lower) {
  switch (D.scalar_type()) {
    case at::kHalf: return run<at::Half, true>(G, D, skew, lower);
    case at::kBFloat16: return run<at::BFloat16, true>(G, D, skew, lower);
    case at::kFloat: return run<float, true>(G, D, skew, lower);
    default: return run<double, true>(G, D, skew, lower);
  }
}

using Fallback = Tensor (*)(const Tensor&, bool);

template <bool Adjoint, bool Skew, Fallback without_kernel>
Tensor map(const Tensor& X, bool lower) {
  check_square(Adjoint ? (Skew ? "skew_adjoint" : "symmetric_adjoint") : (Skew ? "skew" : "symmetric"), Adjoint ? "G" : "X", X);
  if (X.is_complex()) {
    warn_no_kernel(X);
    return without_kernel(X, lower);
  }
  Tensor Y = at::detail::empty_cpu(X.sizes(), X.options());  // as at::empty, less the dispatcher: a third of a small call
  if (Y.numel() > 0) Adjoint ? adjoint(Matrices(X), Y, Skew, lower) : forward(Matrices(X), Y, Skew, lower);
  return Y;
}

}  // namespace

TORCH_LIBRARY_IMPL(fastparam, CPU, m) {
  m.impl("symmetric", &map<false, false, fallback::symmetric>);
  m.impl("symmetric_adjoint", &map<true, false, fallback::symmetric_adjoint>);
  m.impl("skew", &map<false, true, fallback::skew>);
  m.impl("skew_adjoint", &map<true, true, fallback::skew_adjoint>);
}

}  // namespace fastparam
