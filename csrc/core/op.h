// The handle of an op in the dispatcher. Code that calls an op includes this header.
#pragma once

#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/core/Tensor.h>
#include <ATen/core/dispatch/Dispatcher.h>

namespace fastparam {

using at::Tensor;

// The schema of the op is (Tensor, Rest...) -> Tensor.
//   struct Skew : Op<Skew, bool> { static constexpr char name[] = "fastparam::skew"; };
template <class Self, class... Rest>
struct Op {
  static const char* word() { return Self::name + sizeof("fastparam::") - 1; }

  static const auto& handle() {
    static const auto handle = c10::Dispatcher::singleton()
                                   .findSchemaOrThrow(Self::name, "")
                                   .template typed<Tensor(const Tensor&, Rest...)>();
    return handle;
  }

  static Tensor call(const Tensor& X, Rest... rest) { return handle().call(X, rest...); }

  // Calls the next kernel after Autograd. `keys` are those that this Autograd kernel was called with.
  static Tensor below_autograd(c10::DispatchKeySet keys, const Tensor& X, Rest... rest) {
    at::AutoDispatchBelowADInplaceOrView guard;
    return handle().redispatch(keys & c10::after_autograd_keyset, X, rest...);
  }

  // The Autocast kernel of an op whose kernels contain matrix products, which autocast would otherwise
  // round.
  static Tensor no_autocast(const Tensor& X, Rest... rest) {
    c10::impl::ExcludeDispatchKeyGuard guard(c10::autocast_dispatch_keyset);
    return call(X, rest...);
  }
};

}  // namespace fastparam
