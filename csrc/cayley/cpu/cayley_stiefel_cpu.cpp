// stiefel_cayley and its gradient on CPU.
#include <ATen/EmptyTensor.h>
#include <torch/library.h>

#include <vector>

#include "../../core/fallback.h"
#include "../cayley.h"
#include "instances.h"

namespace fastparam {
namespace {

using namespace fastparam::cpu;

// Half types are computed in float.
template <class T>
const compute_t<T>* data_of(const Tensor& X) {
  return X.defined() ? X.const_data_ptr<compute_t<T>>() : nullptr;
}

Tensor run(const Tensor& X, const Tensor& G, const Tensor& Q, double alpha, bool lower, const Signs& signs) {
  Tensor out = at::detail::empty_cpu(X.sizes(), X.options());
  if (out.numel() == 0) return out;
  const auto type = at::toOpMathType(X.scalar_type());
  const auto as_computed = [&](const Tensor& t) { return t.defined() ? t.to(type).contiguous() : t; };
  const Tensor x = as_computed(X), g = as_computed(G), q = as_computed(Q), D = dense(signs, X);
  Tensor y = out.scalar_type() == type ? out : at::detail::empty_cpu(X.sizes(), X.options().dtype(type));
  const int64_t rows = X.size(-2), columns = X.size(-1), batch = X.numel() / (rows * columns);
  std::vector<uint8_t> failed(batch);
  with_real_type(type, [&](auto zero) {
    using T = decltype(zero);
    if constexpr (sizeof(T) >= 4)
      tall_batch(TallCall<T>{data_of<T>(x), data_of<T>(g), data_of<T>(q), y.mutable_data_ptr<T>(),
                             data_of<T>(D), std::max(rows, columns), std::min(rows, columns), batch, alpha,
                             rows < columns, lower, failed.data()});
  });
  if (!y.is_same(out)) out.copy_(y);
  return out;
}

Tensor stiefel_cayley(const Tensor& X, double alpha, bool lower, const Signs& signs) {
  if (X.size(-2) == X.size(-1)) return expression::stiefel_cayley(X, alpha, lower, signs);
  return run(X, {}, {}, alpha, lower, signs);
}

Tensor stiefel_cayley_backward(const Tensor& G, const Tensor& X, const Tensor& Q, double alpha, bool lower,
                               const Signs& signs) {
  if (X.size(-2) == X.size(-1)) return expression::square_gradient(G, Q, alpha, lower, signs);
  return run(X, G, Q, alpha, lower, signs);
}

}  // namespace

TORCH_LIBRARY_IMPL(fastparam, CPU, m) {
  m.impl("stiefel_cayley", &Dispatch<check_stiefel_cayley, expression::stiefel_cayley, stiefel_cayley>::run);
  m.impl("stiefel_cayley_backward",
         &Dispatch<check_stiefel_cayley_backward, expression::stiefel_cayley_backward,
                   stiefel_cayley_backward>::run);
}

}  // namespace fastparam
