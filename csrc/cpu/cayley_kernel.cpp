// The Cayley ops on CPU, and their registration.
#include "../cayley.h"

#include <ATen/EmptyTensor.h>
#include <ATen/Parallel.h>
#include <torch/library.h>

#include <vector>

#include "cayley_batch.h"

namespace fastparam {
namespace {

using namespace fastparam::cpu;

// ---- what the guard leaves of orders above kLargestPivoted ---------------------------------------------------------------------------

// Brings Q near the orthogonal matrix next to it: each step squares the distance.
Tensor orthogonalized(Tensor Q) {
  const Tensor I = at::eye(Q.size(-1), Q.options());
  for (int step = 0; step < 3; ++step) Q = at::matmul(Q, 1.5 * I - 0.5 * at::matmul(Q.mT(), Q));
  return Q;
}

// One by one: LAPACK's batches round differently.
template <class Solve>
void solve_failed(const Tensor& X, const Tensor& Q, const std::vector<uint8_t>& failed, const Solve& solve) {
  for (size_t m = 0; m < failed.size(); ++m)
    if (failed[m]) Q[m].copy_(orthogonalized(solve(X[m].to(at::kDouble))));
}

// ---- ops ---------------------------------------------------------------------------------------------------------------------------

#define FASTPARAM_DISPATCH(type, word, ...) AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, type, word, __VA_ARGS__)

std::vector<uint8_t> forward(const Tensor& X, Tensor& Q, double alpha, Layout layout) {
  const int64_t n = Q.size(-1), batch = Q.numel() / (n * n);
  std::vector<uint8_t> failed(batch);
  FASTPARAM_DISPATCH(Q.scalar_type(), "cayley", [&] {
    if (n == 1) std::fill_n(Q.mutable_data_ptr<scalar_t>(), batch, scalar_t(1));
    else forward(CayleyMap<scalar_t>{X.const_data_ptr<scalar_t>(), Q.mutable_data_ptr<scalar_t>(), n, batch, alpha, layout, failed.data()});
  });
  return failed;
}

void backward(const Tensor& G, const Tensor& Q, Tensor& D, double alpha, Gradient kind) {
  const int64_t n = Q.size(-1), batch = Q.numel() / (n * n);
  const Tensor g = G.contiguous(), q = Q.contiguous();
  FASTPARAM_DISPATCH(Q.scalar_type(), "cayley_backward", [&] {
    backward(CayleyGradient<scalar_t>{g.const_data_ptr<scalar_t>(), q.const_data_ptr<scalar_t>(), D.mutable_data_ptr<scalar_t>(), n, batch,
                                      alpha, kind});
  });
}

Tensor skew_cayley(const Tensor& X, double alpha, bool lower) {
  check_cayley("skew_cayley", "X", X, alpha);
  if (X.is_complex()) return warn_no_kernel(X), fallback::skew_cayley(X, alpha, lower);
  Tensor Q = at::detail::empty_cpu(X.sizes(), X.options());
  if (Q.numel() == 0) return Q;
  const int64_t n = X.size(-1);
  const Tensor given = X.contiguous();
  const auto failed = forward(given, Q, alpha, lower ? Layout::Lower : Layout::Upper);
  solve_failed(given.view({-1, n, n}), Q.view({-1, n, n}), failed, [&](const Tensor& x) { return fallback::skew_cayley(x, alpha, lower); });
  return Q;
}

Tensor skew_cayley_packed(const Tensor& v, double alpha) {
  const int64_t n = check_packed("skew_cayley_packed", v, alpha);
  if (v.is_complex()) return warn_no_kernel(v), fallback::skew_cayley_packed(v, alpha);
  c10::DimVector sizes(v.sizes().begin(), v.sizes().end() - 1);
  sizes.insert(sizes.end(), {n, n});
  Tensor Q = at::detail::empty_cpu(sizes, v.options());
  if (Q.numel() == 0) return Q;
  const Tensor given = v.contiguous();
  const auto failed = forward(given, Q, alpha, Layout::Packed);
  solve_failed(given.view({Q.numel() / (n * n), given.size(-1)}), Q.view({-1, n, n}), failed,
               [&](const Tensor& x) { return fallback::skew_cayley_packed(x, alpha); });
  return Q;
}

// One flag a matrix of A, contiguous: whether it is not skew.
std::vector<uint8_t> not_skew(const Tensor& A) {
  const int64_t n = A.size(-1), batch = A.numel() / (n * n);
  std::vector<uint8_t> result(batch);
  FASTPARAM_DISPATCH(A.scalar_type(), "cayley", [&] {
    const scalar_t* const data = A.const_data_ptr<scalar_t>();
    at::parallel_for(0, batch, std::max<int64_t>(1, kGrain / (n * n)), [&](int64_t begin, int64_t end) {
      if constexpr (sizeof(scalar_t) >= 4) {
        const CayleyMap<scalar_t> map{data, nullptr, n, batch, 0, Layout::Upper, result.data()};
        run_simd<SkewTest<scalar_t>>(&map, begin, end);
      } else {
        const Scratch scratch(n * n * sizeof(float));
        for (int64_t m = begin; m < end; ++m) {
          widen(data + m * n * n, n * n, static_cast<float*>(scratch.get()));
          const CayleyMap<float> map{static_cast<float*>(scratch.get()), nullptr, n, 1, 0, Layout::Upper, result.data() + m};
          run_simd<SkewTest<float>>(&map, int64_t(0), int64_t(1));
        }
      }
    });
  });
  return result;
}

// Matrices that are not skew are solved, the skew ones among them gathered for the kernel.
Tensor cayley(const Tensor& A, double alpha) {
  check_cayley("cayley", "A", A, alpha);
  if (A.is_complex()) return warn_no_kernel(A), fallback::cayley(A, alpha);
  if (A.numel() == 0) return at::detail::empty_cpu(A.sizes(), A.options());
  const int64_t n = A.size(-1);
  const Tensor given = A.contiguous().view({-1, n, n});
  const auto other = not_skew(given);
  if (std::none_of(other.begin(), other.end(), [](uint8_t f) { return f != 0; })) return skew_cayley(given, alpha, false).view(A.sizes());
  const Tensor finite = given.isfinite().flatten(1).all(1);
  const Tensor solved = at::tensor(c10::ArrayRef<uint8_t>(other), at::kByte).to(at::kBool) & finite, skew = solved.logical_not() & finite;
  Tensor Q = at::full(given.sizes(), std::numeric_limits<double>::quiet_NaN(), A.options());
  if (skew.any().item<bool>()) Q.index_put_({skew}, skew_cayley(given.index({skew}), alpha, false));
  if (solved.any().item<bool>()) Q.index_put_({solved}, fallback::cayley(given.index({solved}), alpha));
  return Q.view(A.sizes());
}

Tensor square_gradient(const Tensor& G, const Tensor& Q, double alpha, Gradient kind) {
  Tensor D = at::detail::empty_cpu(Q.sizes(), Q.options());
  if (D.numel() > 0) backward(G, Q, D, alpha, kind);
  return D;
}

Tensor cayley_backward(const Tensor& G, const Tensor& Q, double alpha) {
  check_cayley_backward("cayley_backward", G, Q, alpha);
  if (Q.is_complex()) return warn_no_kernel(Q), fallback::cayley_backward(G, Q, alpha);
  return square_gradient(G, Q, alpha, Gradient::Whole);
}

Tensor skew_cayley_backward(const Tensor& G, const Tensor& Q, double alpha, bool lower) {
  check_cayley_backward("skew_cayley_backward", G, Q, alpha);
  if (Q.is_complex()) return warn_no_kernel(Q), fallback::skew_cayley_backward(G, Q, alpha, lower);
  return square_gradient(G, Q, alpha, lower ? Gradient::Lower : Gradient::Upper);
}

Tensor skew_cayley_packed_backward(const Tensor& G, const Tensor& Q, double alpha) {
  check_cayley_backward("skew_cayley_packed_backward", G, Q, alpha);
  if (Q.is_complex()) return warn_no_kernel(Q), fallback::skew_cayley_packed_backward(G, Q, alpha);
  const int64_t n = Q.size(-1);
  c10::DimVector sizes(Q.sizes().begin(), Q.sizes().end() - 2);
  sizes.push_back(n * (n - 1) / 2);
  Tensor D = at::detail::empty_cpu(sizes, Q.options());
  if (D.numel() > 0) backward(G, Q, D, alpha, Gradient::Packed);
  return D;
}

}  // namespace

TORCH_LIBRARY_IMPL(fastparam, CPU, m) {
  m.impl("cayley", &cayley);
  m.impl("cayley_backward", &cayley_backward);
  m.impl("skew_cayley", &skew_cayley);
  m.impl("skew_cayley_backward", &skew_cayley_backward);
  m.impl("skew_cayley_packed", &skew_cayley_packed);
  m.impl("skew_cayley_packed_backward", &skew_cayley_packed_backward);
}

}  // namespace fastparam
