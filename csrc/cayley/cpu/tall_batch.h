// A batch of tall matrices: in their own type, in double, and what the guard leaves by tall_accurate.h.
#pragma once

#include "tall_accurate.h"

namespace fastparam::cpu {

template <class In>
void forward_share(const TallCall<In>& call, int64_t begin, int64_t end, void* scratch) {
  const FlushDenormals flush;
  for (int64_t m = begin; m < end; ++m) {
    bool good = tall_forward<In, In>(call, m, scratch);
    if constexpr (std::is_same_v<In, float>) {
      const Scratch wide(good ? 0 : Tall<double, float>::scratch_bytes(call));
      good = good || tall_forward<double, float>(call, m, wide.get());
    }
    call.failed[m] = !good;
  }
}

template <class In>
void backward_share(const TallCall<In>& call, int64_t begin, int64_t end, void* scratch) {
  const FlushDenormals flush;
  for (int64_t m = begin; m < end; ++m) {
    bool good = tall_backward<In, In>(call, m, scratch);
    if constexpr (std::is_same_v<In, float>) {
      const Scratch wide(good ? 0 : TallBackward<double, float>::scratch_bytes(call));
      good = good || tall_backward<double, float>(call, m, wide.get());
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
               back ? backward_share(call, begin, end, scratch) : forward_share(call, begin, end, scratch);
             });
  for (int64_t m = 0; m < call.batch; ++m)
    if (call.failed[m]) back ? accurate_backward(call, m) : accurate_forward(call, m);
}

}  // namespace fastparam::cpu
