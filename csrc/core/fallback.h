// The only place that chooses between a kernel and the ATen expression of an op.
//
//   using OnCpu = Dispatch<check, expression, kernel>;   m.impl(name, &OnCpu::run)
//   m.impl(name, &Dispatch<check, expression>::run)      every device without kernels
//   m.impl(name, &Meta<check>::run)                      shapes only
//
// `check` takes the arguments of the op and returns nothing. It is the shape rule, which Meta calls, too.
#pragma once

#include <type_traits>

#include "shapes.h"

namespace fastparam {

// An op that runs without our kernels warns once per process, and names the remedy.
inline void warn_no_kernel(const Tensor& X) {
  if (X.is_complex()) {
    TORCH_WARN_ONCE(
        "fastparam: complex dtypes have no kernels and run as plain PyTorch expressions, with the same "
        "result; real dtypes run the kernels");
  } else if (X.is_cuda()) {
    TORCH_WARN_ONCE(
        "fastparam: this op has no CUDA kernel in this build and runs as a plain PyTorch expression, with "
        "the same result; `python -m fastparam` says whether CUDA kernels were built");
  } else {
    TORCH_WARN_ONCE("fastparam: ", X.device().type(),
                    " has no kernels and runs plain PyTorch expressions, with the same result; CPU and CUDA "
                    "run the kernels");
  }
}

// The Meta kernel of an op whose result has the shape and dtype of its first tensor.
template <auto check, class Check = decltype(check)>
struct Meta;

template <auto check, class... Rest>
struct Meta<check, void (*)(const Tensor&, Rest...)> {
  static Tensor run(const Tensor& X, Rest... rest) {
    check(X, rest...);
    return empty_like_contiguous(X);
  }
};

template <auto check, auto expression, auto kernel = nullptr, class Check = decltype(check)>
struct Dispatch;

template <auto check, auto expression, auto kernel, class... Rest>
struct Dispatch<check, expression, kernel, void (*)(const Tensor&, Rest...)> {
  static Tensor run(const Tensor& X, Rest... rest) {
    check(X, rest...);
    if constexpr (!std::is_null_pointer_v<decltype(kernel)>)
      if (!X.is_complex()) return kernel(X, rest...);
    warn_no_kernel(X);
    return expression(X, rest...);
  }
};

}  // namespace fastparam
