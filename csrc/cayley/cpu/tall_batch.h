// Runs a batch of tall matrices in their own type, then in double, and those that fail the guard in
// tall_accurate.h.
#pragma once

#include "tall_accurate.h"

namespace fastparam::cpu {

// Work is Tall or TallBackward. run(zero, m, scratch) processes matrix m in the type of `zero`.
template <template <class, class> class Work, class In, class F>
void tall_share(const TallCall<In>& call, int64_t begin, int64_t end, void* scratch, const F& run) {
  const FlushDenormals flush;
  for (int64_t m = begin; m < end; ++m) {
    bool good = run(In(), m, scratch);
    if constexpr (std::is_same_v<In, float>) {
      const Scratch more(good ? 0 : Work<double, In>::scratch_bytes(call));
      good = good || run(double(), m, more.get());
    }
    call.failed[m] = !good;
  }
}

template <class In>
void tall_batch(const TallCall<In>& call) {
  const bool back = call.G != nullptr;
  const int64_t bytes = back ? TallBackward<In, In>::scratch_bytes(call) : Tall<In, In>::scratch_bytes(call);
  over_batch(call.batch, call.shared(), call.n * call.k * call.k, bytes,
             [&](int64_t begin, int64_t end, void* scratch) {
               if (back)
                 tall_share<TallBackward>(call, begin, end, scratch, [&](auto zero, int64_t m, void* space) {
                   return tall_backward<decltype(zero), In>(call, m, space);
                 });
               else
                 tall_share<Tall>(call, begin, end, scratch, [&](auto zero, int64_t m, void* space) {
                   return tall_forward<decltype(zero), In>(call, m, space);
                 });
             });
  for (int64_t m = 0; m < call.batch; ++m)
    if (call.failed[m]) back ? accurate_backward(call, m) : accurate_forward(call, m);
}

}  // namespace fastparam::cpu
