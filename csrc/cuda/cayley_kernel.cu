// cayley, skew_cayley, skew_cayley_packed and their gradients on CUDA: which kernels take which orders.
#include <c10/cuda/CUDAGuard.h>
#include <torch/library.h>

#include "../cayley.h"
#include "cayley_large.h"
#include "cayley_launch.h"

namespace fastparam {
namespace {

using namespace fastparam::cuda;

template <class F>
void with_type(at::ScalarType type, const F& f) {
  switch (type) {
    case at::kHalf: return f(at::Half{});
    case at::kBFloat16: return f(at::BFloat16{});
    case at::kFloat: return f(float{});
    default: return f(double{});
  }
}

template <class T>
Given<T> given(const Matrices& X, Layout layout, double alpha) {
  return {X.tensor.const_data_ptr<T>(), X.batch_stride, X.row_stride, static_cast<int>(X.n), layout, static_cast<acc_t<T>>(alpha)};
}
template <class T>
Given<T> given_packed(const Tensor& v, int64_t n, double alpha) {
  return {v.const_data_ptr<T>(), v.size(-1), 0, static_cast<int>(n), Layout::packed, static_cast<acc_t<T>>(alpha)};
}

// ---- forward ------------------------------------------------------------------------------------------------------------------

template <class T>
void run(const Given<T>& given, Tensor& Q) {
  const int64_t n = given.n, batch = Q.numel() / (n * n);
  if (n <= kWarpOrder) launch_warp<T>(given, Q.mutable_data_ptr<T>(), batch);
  else if (n <= block_order<acc_t<T>>()) launch_block<T>(given, Q.mutable_data_ptr<T>(), batch);
  else forward_large<T>(given, Q, batch);
}

Tensor forward(const Tensor& X, double alpha, Layout layout) {
  Tensor Q = empty_like_contiguous(X);
  if (Q.numel() > 0) with_type(X.scalar_type(), [&](auto zero) { run(given<decltype(zero)>(Matrices(X), layout, alpha), Q); });
  return Q;
}

Tensor cayley(const Tensor& A, double alpha) {
  check_cayley("cayley", "A", A, alpha);
  const c10::cuda::CUDAGuard device(A.device());
  if (!A.is_complex()) return forward(A, alpha, Layout::whole);
  warn_no_kernel(A);
  return fallback::cayley(A, alpha);
}

Tensor skew_cayley(const Tensor& X, double alpha, bool lower) {
  check_cayley("skew_cayley", "X", X, alpha);
  const c10::cuda::CUDAGuard device(X.device());
  if (!X.is_complex()) return forward(X, alpha, lower ? Layout::lower : Layout::upper);
  warn_no_kernel(X);
  return fallback::skew_cayley(X, alpha, lower);
}

Tensor skew_cayley_packed(const Tensor& v, double alpha) {
  const int64_t n = check_packed("skew_cayley_packed", v, alpha);
  const c10::cuda::CUDAGuard device(v.device());
  if (v.is_complex()) {
    warn_no_kernel(v);
    return fallback::skew_cayley_packed(v, alpha);
  }
  Tensor Q = empty_unpacked_skew(v, n);
  const Tensor dense = v.contiguous();
  if (Q.numel() > 0) with_type(v.scalar_type(), [&](auto zero) { run(given_packed<decltype(zero)>(dense, n, alpha), Q); });
  return Q;
}

// ---- backward -----------------------------------------------------------------------------------------------------------------

template <class T>
void run_backward(const Tensor& G, const Tensor& Q, Tensor& D, double alpha, Layout layout) {
  const Matrices q(Q);
  const Gradient<T> gradient{D.mutable_data_ptr<T>(), static_cast<int>(q.n), layout, static_cast<acc_t<T>>(alpha)};
  const Given<T> from = given<T>(q, Layout::whole, alpha);
  if (q.n > kWarpOrder && q.n > backward_order<acc_t<T>>()) return backward_large<T>(from, G, gradient, q.batch);
  const Matrices g(G);
  launch_backward<T>(from, given<T>(g, Layout::whole, alpha), gradient, q.batch);
}

Tensor backward(const Tensor& G, const Tensor& Q, double alpha, Layout layout) {
  Tensor D = layout == Layout::packed ? empty_packed_skew(Q) : empty_like_contiguous(Q);
  if (D.numel() > 0) with_type(Q.scalar_type(), [&](auto zero) { run_backward<decltype(zero)>(G, Q, D, alpha, layout); });
  return D;
}

Tensor cayley_backward(const Tensor& G, const Tensor& Q, double alpha) {
  check_cayley_backward("cayley_backward", G, Q, alpha);
  const c10::cuda::CUDAGuard device(Q.device());
  if (!Q.is_complex()) return backward(G, Q, alpha, Layout::whole);
  warn_no_kernel(Q);
  return fallback::cayley_backward(G, Q, alpha);
}

Tensor skew_cayley_backward(const Tensor& G, const Tensor& Q, double alpha, bool lower) {
  check_cayley_backward("skew_cayley_backward", G, Q, alpha);
  const c10::cuda::CUDAGuard device(Q.device());
  if (!Q.is_complex()) return backward(G, Q, alpha, lower ? Layout::lower : Layout::upper);
  warn_no_kernel(Q);
  return fallback::skew_cayley_backward(G, Q, alpha, lower);
}

Tensor skew_cayley_packed_backward(const Tensor& G, const Tensor& Q, double alpha) {
  check_cayley_backward("skew_cayley_packed_backward", G, Q, alpha);
  const c10::cuda::CUDAGuard device(Q.device());
  if (!Q.is_complex()) return backward(G, Q, alpha, Layout::packed);
  warn_no_kernel(Q);
  return fallback::skew_cayley_packed_backward(G, Q, alpha);
}

}  // namespace

TORCH_LIBRARY_IMPL(fastparam, CUDA, m) {
  m.impl("cayley", &cayley);
  m.impl("cayley_backward", &cayley_backward);
  m.impl("skew_cayley", &skew_cayley);
  m.impl("skew_cayley_backward", &skew_cayley_backward);
  m.impl("skew_cayley_packed", &skew_cayley_packed);
  m.impl("skew_cayley_packed_backward", &skew_cayley_packed_backward);
}

}  // namespace fastparam
