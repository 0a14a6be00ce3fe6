// The exponentials on CPU, and their registration.
#include "../exponential.h"

#include <ATen/EmptyTensor.h>

#include "../register.h"
#include "batch.h"

namespace fastparam {
namespace {

// The exponential or, with a direction G, its derivative.
Tensor run(const Tensor& X, const Tensor* G, Structure structure, bool lower) {
  Tensor out = at::detail::empty_cpu(X.sizes(), X.options());
  if (out.numel() == 0) return out;
  const Tensor dense_X = X.contiguous(), dense_G = G ? G->contiguous() : Tensor();
  const int64_t n = X.size(-1), batch = X.numel() / (n * n);
  with_real_type(X.scalar_type(), [&](auto zero) {
    using T = decltype(zero);
    run_batch(cpu::Exponential<T>{dense_X.const_data_ptr<T>(), G ? dense_G.const_data_ptr<T>() : nullptr,
                                  out.mutable_data_ptr<T>(), n, batch, structure, lower});
  });
  return out;
}

}  // namespace

TORCH_LIBRARY_IMPL(fastparam, CPU, m) { register_exponential<run>(m); }

}  // namespace fastparam
