// cayley, skew_cayley, skew_cayley_packed and their gradients on CUDA: the choice of kernels by order.
#include <ATen/ops/empty.h>
#include <c10/cuda/CUDAGuard.h>

#include "../cayley.h"
#include "../register.h"
#include "large.h"
#include "launch.h"

namespace fastparam {
namespace {

using namespace fastparam::cuda;

template <class T>
Given<T> given(const Matrices& X, Layout layout, double alpha, const Tensor& signs = {}) {
  using A = acc_t<T>;
  return {X.tensor.const_data_ptr<T>(),
          X.batch_stride,
          X.row_stride,
          static_cast<int>(X.n),
          layout,
          static_cast<A>(alpha),
          signs.defined() ? signs.const_data_ptr<A>() : nullptr};
}
template <class T>
Given<T> given_packed(const Tensor& v, int64_t n, double alpha) {
  return {v.const_data_ptr<T>(), v.size(-1),     0,
          static_cast<int>(n),   Layout::packed, static_cast<acc_t<T>>(alpha)};
}

// ---- forward ----------------------------------------------------------------------------------------------

template <class T>
void run(const Given<T>& given, Tensor& Q) {
  const int64_t n = given.n, batch = Q.numel() / (n * n);
  if (n <= kWarpOrder) launch_warp<T>(given, Q.mutable_data_ptr<T>(), batch);
  else if (n <= block_order<acc_t<T>>())
    forward_by_blocks<T>(given, Q.mutable_data_ptr<T>(), batch, Q.options());
  else forward_large<T>(given, Q, batch);
}

Tensor forward(const Tensor& X, double alpha, Layout layout, const Signs& signs) {
  const c10::cuda::CUDAGuard device(X.device());
  Tensor Q = at::empty(X.sizes(), X.options());
  if (Q.numel() == 0) return Q;
  const Tensor D = dense(signs, Q);
  with_real_type(X.scalar_type(),
                 [&](auto zero) { run(given<decltype(zero)>(Matrices(X), layout, alpha, D), Q); });
  return Q;
}

Tensor cayley(const Tensor& A, double alpha, const Signs& signs) {
  return forward(A, alpha, Layout::whole, signs);
}

Tensor skew_cayley(const Tensor& X, double alpha, bool lower, const Signs& signs) {
  return forward(X, alpha, lower ? Layout::lower : Layout::upper, signs);
}

Tensor skew_cayley_packed(const Tensor& v, double alpha) {
  const c10::cuda::CUDAGuard device(v.device());
  Tensor Q = empty_unpacked_skew(v);
  if (Q.numel() == 0) return Q;
  const Tensor dense_v = v.contiguous();
  with_real_type(v.scalar_type(),
                 [&](auto zero) { run(given_packed<decltype(zero)>(dense_v, Q.size(-1), alpha), Q); });
  return Q;
}

// ---- backward ---------------------------------------------------------------------------------------------

template <class T>
void run_backward(const Tensor& G, const Tensor& Q, const Tensor& signs, Tensor& D, double alpha,
                  Layout layout) {
  const Matrices q(Q);
  const Gradient<T> gradient{D.mutable_data_ptr<T>(), static_cast<int>(q.n), layout,
                             static_cast<acc_t<T>>(alpha)};
  const Given<T> from = given<T>(q, Layout::whole, alpha, signs);
  if (q.n > kWarpOrder && q.n > backward_order<acc_t<T>>())
    return backward_large<T>(from, G, signs, gradient, q.batch);
  const Matrices g(G);
  launch_backward<T>(from, given<T>(g, Layout::whole, alpha), gradient, q.batch);
}

Tensor backward(const Tensor& G, const Tensor& Q, double alpha, Layout layout, const Signs& signs) {
  const c10::cuda::CUDAGuard device(Q.device());
  Tensor D = layout == Layout::packed ? empty_packed_skew(Q) : at::empty(Q.sizes(), Q.options());
  if (D.numel() == 0) return D;
  const Tensor s = dense(signs, Q);
  with_real_type(Q.scalar_type(),
                 [&](auto zero) { run_backward<decltype(zero)>(G, Q, s, D, alpha, layout); });
  return D;
}

Tensor cayley_backward(const Tensor& G, const Tensor& Q, double alpha, const Signs& signs) {
  return backward(G, Q, alpha, Layout::whole, signs);
}

Tensor skew_cayley_backward(const Tensor& G, const Tensor& Q, double alpha, bool lower, const Signs& signs) {
  return backward(G, Q, alpha, lower ? Layout::lower : Layout::upper, signs);
}

Tensor skew_cayley_packed_backward(const Tensor& G, const Tensor& Q, double alpha) {
  return backward(G, Q, alpha, Layout::packed, std::nullopt);
}

}  // namespace

TORCH_LIBRARY_IMPL(fastparam, CUDA, m) {
  register_cayley<cayley, cayley_backward, skew_cayley, skew_cayley_backward, skew_cayley_packed,
                  skew_cayley_packed_backward>(m);
}

}  // namespace fastparam
