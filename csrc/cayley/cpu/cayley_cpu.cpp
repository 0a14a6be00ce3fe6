// The Cayley ops on CPU, and their registration.
#include "../cayley.h"

#include <ATen/EmptyTensor.h>

#include <vector>

#include "../register.h"
#include "instances.h"

namespace fastparam {
namespace {

using namespace fastparam::cpu;

template <class T>
const compute_t<T>* data_of(const Tensor& signs) {
  return signs.defined() ? signs.const_data_ptr<compute_t<T>>() : nullptr;
}

// The result for matrices of order 1, where A = 0.
template <class T>
void fill_ones(const CayleyCall<T>& call) {
  for (int64_t m = 0; m < call.batch; ++m) call.out[m] = call.signs && call.signs[m] < 0 ? T(-1) : T(1);
}

// X is contiguous and has the given layout.
void forward(const Tensor& X, Tensor& Q, double alpha, Layout layout, const Signs& signs) {
  const int64_t n = Q.size(-1), batch = Q.numel() / (n * n);
  const Tensor D = dense(signs, Q);
  std::vector<uint8_t> failed(batch);
  with_real_type(Q.scalar_type(), [&](auto zero) {
    using T = decltype(zero);
    const CayleyCall<T> call{
        X.const_data_ptr<T>(), Q.mutable_data_ptr<T>(), data_of<T>(D), n, batch, alpha, layout,
        failed.data()};
    n == 1 ? fill_ones(call) : forward_batch(call);
  });
}

void backward(const Tensor& G, const Tensor& Q, Tensor& D, double alpha, Layout layout, const Signs& signs,
              const Tensor& M = {}) {
  if (D.numel() == 0) return;
  const int64_t n = Q.size(-1), batch = Q.numel() / (n * n);
  const Tensor g = G.contiguous(), q = Q.contiguous(), s = dense(signs, Q);
  const Tensor p = M.defined() ? M.contiguous() : M;
  with_real_type(Q.scalar_type(), [&](auto zero) {
    using T = decltype(zero);
    backward_batch(CayleyGradient<T>{g.const_data_ptr<T>(), q.const_data_ptr<T>(), D.mutable_data_ptr<T>(),
                                     data_of<T>(s), n, batch, alpha, layout,
                                     p.defined() ? p.const_data_ptr<T>() : nullptr});
  });
}

Tensor skew_cayley(const Tensor& X, double alpha, bool lower, const Signs& signs) {
  Tensor Q = at::detail::empty_cpu(X.sizes(), X.options());
  if (Q.numel() > 0) forward(X.contiguous(), Q, alpha, lower ? Layout::lower : Layout::upper, signs);
  return Q;
}

Tensor skew_cayley_packed(const Tensor& v, double alpha) {
  Tensor Q = empty_unpacked_skew(v);
  if (Q.numel() > 0) forward(v.contiguous(), Q, alpha, Layout::packed, std::nullopt);
  return Q;
}

// ---- whole matrices, which need not be skew ---------------------------------------------------------------

// One flag per matrix of a batch, set if it is not skew.
template <class T>
std::vector<uint8_t> not_skew(const T* A, int64_t n, int64_t batch) {
  std::vector<uint8_t> result(batch);
  if constexpr (sizeof(T) >= 4) {
    const SkewTest<T> test{A, n, result.data()};
    parallel<SkewTestBody<T>>(batch, n * n, &test);
  } else {
    at::parallel_for(0, batch, std::max<int64_t>(1, kGrain / (n * n)), [&](int64_t begin, int64_t end) {
      const Scratch scratch(n * n * sizeof(float));
      for (int64_t m = begin; m < end; ++m) {
        widen(A + m * n * n, n * n, scratch.get<float>());
        const SkewTest<float> test{scratch.get<float>(), n, result.data() + m};
        run_simd<SkewTestBody<float>>(&test, int64_t(0), int64_t(1));
      }
    });
  }
  return result;
}

// Alternates between runs of skew matrices and runs of other matrices, in the order of the batch.
template <class T>
void forward_whole(const CayleyCall<T>& call) {
  const int64_t size = call.n * call.n;
  const std::vector<uint8_t> other = not_skew(call.in, call.n, call.batch);
  for (int64_t begin = 0, end; begin < call.batch; begin = end) {
    for (end = begin + 1; end < call.batch && other[end] == other[begin];) ++end;
    CayleyCall<T> part{call.in + begin * size,
                       call.out + begin * size,
                       call.signs_of(begin),
                       call.n,
                       end - begin,
                       call.alpha,
                       Layout::upper,
                       call.failed + begin};
    if (other[begin]) {
      part.layout = Layout::whole;
      solve_batch(part);
      TORCH_CHECK_LINALG(
          std::none_of(part.failed, part.failed + part.batch, [](uint8_t f) { return f != 0; }),
          "cayley: expected I + alpha A to be invertible, got a singular matrix");
    } else {
      call.n == 1 ? fill_ones(part) : forward_batch(part);
    }
  }
}

Tensor cayley(const Tensor& A, double alpha, const Signs& signs) {
  Tensor Q = at::detail::empty_cpu(A.sizes(), A.options());
  if (Q.numel() == 0) return Q;
  const int64_t n = Q.size(-1), batch = Q.numel() / (n * n);
  const Tensor dense_A = A.contiguous(), D = dense(signs, Q);
  std::vector<uint8_t> failed(batch);
  with_real_type(Q.scalar_type(), [&](auto zero) {
    using T = decltype(zero);
    forward_whole(CayleyCall<T>{dense_A.const_data_ptr<T>(), Q.mutable_data_ptr<T>(), data_of<T>(D), n, batch,
                                alpha, Layout::whole, failed.data()});
  });
  return Q;
}

// ---- gradients --------------------------------------------------------------------------------------------

Tensor cayley_backward(const Tensor& G, const Tensor& Q, double alpha, const Signs& signs) {
  Tensor D = at::detail::empty_cpu(Q.sizes(), Q.options());
  backward(G, Q, D, alpha, Layout::whole, signs);
  return D;
}

Tensor skew_cayley_backward(const Tensor& G, const Tensor& Q, double alpha, bool lower, const Signs& signs) {
  Tensor D = at::detail::empty_cpu(Q.sizes(), Q.options());
  backward(G, Q, D, alpha, lower ? Layout::lower : Layout::upper, signs);
  return D;
}

// Small matrices are processed side by side, by the kernel of skew_cayley_backward, and half types likewise.
Tensor trivialized_cayley_backward(const Tensor& G, const Tensor& base, const Tensor& Q, const Tensor& M,
                                   double alpha, bool lower) {
  const int64_t n = Q.size(-1);
  const auto type = Q.scalar_type();
  const Path path = (type == at::kDouble ? plan_of<double>(n) : plan_of<float>(n)).path;
  if (at::toOpMathType(type) != type || path == Path::tiny || path == Path::lanes)
    return expression::trivialized_cayley_backward(G, base, Q, M, alpha, lower);
  Tensor D = at::detail::empty_cpu(Q.sizes(), Q.options());
  backward(G, Q, D, alpha, lower ? Layout::lower : Layout::upper, std::nullopt, M);
  return D;
}

Tensor skew_cayley_packed_backward(const Tensor& G, const Tensor& Q, double alpha) {
  Tensor D = empty_packed_skew(Q);
  backward(G, Q, D, alpha, Layout::packed, std::nullopt);
  return D;
}

}  // namespace

TORCH_LIBRARY_IMPL(fastparam, CPU, m) {
  register_cayley<cayley, cayley_backward, skew_cayley, skew_cayley_backward, skew_cayley_packed,
                  skew_cayley_packed_backward>(m);
  m.impl("trivialized_cayley",  // the kernel of the map, and ATen's product
         &Dispatch<check_trivialized_cayley, expression::trivialized_cayley,
                   expression::trivialized_cayley>::run);
  m.impl("trivialized_cayley_backward",
         &Dispatch<check_trivialized_cayley_backward, expression::trivialized_cayley_backward,
                   trivialized_cayley_backward>::run);
}

}  // namespace fastparam
