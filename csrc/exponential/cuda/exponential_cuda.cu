// The exponentials on CUDA: chooses the kernel by the order.
#include <ATen/ops/empty.h>
#include <c10/cuda/CUDAGuard.h>

#include "../exponential.h"
#include "../register.h"
#include "launch.h"

namespace fastparam {
namespace {

using namespace fastparam::cuda;

// The exponential or, with a direction G, its derivative.
Tensor run(const Tensor& X, const Tensor* G, Structure structure, bool lower) {
  const c10::cuda::CUDAGuard device(X.device());
  Tensor out = at::empty(X.sizes(), X.options());
  if (out.numel() == 0) return out;
  // The gradient of matrix_exp is the derivative at A^T, which is read without a copy.
  const bool transposed = structure == Structure::general && !X.is_contiguous() && X.mT().is_contiguous();
  const Tensor dense_X = (transposed ? X.mT() : X).contiguous(), dense_G = G ? G->contiguous() : Tensor();
  const int64_t n = X.size(-1), count = X.numel() / (n * n);
  with_real_type(X.scalar_type(), [&](auto zero) {
    using T = decltype(zero);
    const Batch<T> batch{dense_X.const_data_ptr<T>(),
                         G ? dense_G.const_data_ptr<T>() : nullptr,
                         out.mutable_data_ptr<T>(),
                         count,
                         static_cast<int>(n),
                         structure,
                         lower,
                         transposed};
    if (n == 1 || (structure == Structure::skew && n <= 4)) return launch_closed_form<T>(batch);
    const auto program = Program<acc_t<T>>::of(structure, G != nullptr);
    if (n > kWarpOrder || !launch_lanes<T>(program, batch)) launch_team<T>(program, batch, X.options());
  });
  return out;
}

}  // namespace

TORCH_LIBRARY_IMPL(fastparam, CUDA, m) { register_exponential<run>(m); }

}  // namespace fastparam
