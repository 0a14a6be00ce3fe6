// The CPU kernels of products of reflections, and their registration.
#include "../householder.h"

#include <ATen/EmptyTensor.h>
#include <torch/library.h>

#include "../../core/fallback.h"
#include "compact.h"

namespace fastparam {
namespace {

// Larger matrices are computed by torch's libraries, which share one matrix among threads.
constexpr int64_t kLargest = 512;
bool is_large(const Tensor& X) {
  return X.size(-2) * X.size(-1) * X.size(-1) > kLargest * kLargest * kLargest;
}

Tensor run(const Tensor& X, const Tensor* G) {
  Tensor out = at::detail::empty_cpu(X.sizes(), X.options());
  if (out.numel() == 0) return out;
  const Tensor dense_X = X.contiguous(), dense_G = G ? G->contiguous() : Tensor();
  const int64_t n = X.size(-2), k = X.size(-1);
  with_real_type(X.scalar_type(), [&](auto zero) {
    using T = decltype(zero);
    run_householder(cpu::HouseholderCall<T>{dense_X.const_data_ptr<T>(),
                                            G ? dense_G.const_data_ptr<T>() : nullptr,
                                            out.mutable_data_ptr<T>(), n, k, X.numel() / (n * k)});
  });
  return out;
}

Tensor householder(const Tensor& X) { return is_large(X) ? expression::householder(X) : run(X, nullptr); }
Tensor householder_backward(const Tensor& G, const Tensor& X) {
  return is_large(X) ? expression::householder_backward(G, X) : run(X, &G);
}

}  // namespace

TORCH_LIBRARY_IMPL(fastparam, CPU, m) {
  m.impl("householder", &Dispatch<check_householder, expression::householder, householder>::run);
  m.impl("householder_backward",
         &Dispatch<check_householder_backward, expression::householder_backward, householder_backward>::run);
}

}  // namespace fastparam
