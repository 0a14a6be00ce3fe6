// Fetches the data that is needed next into the caches.
#pragma once

#include <algorithm>

#include "../simd.h"

namespace fastparam::cpu {

// Fetches a share at each of `ticks` calls. The streams are so short that the hardware predicts little of
// them.
struct Prefetch {
  static constexpr int64_t kLine = 64;
  const char *first, *second, *written;
  int64_t left, share;  // lines

  Prefetch() : first(nullptr), second(nullptr), written(nullptr), left(0), share(0) {}
  FASTPARAM_INLINE Prefetch(const void* first, const void* second, const void* written, int64_t bytes,
                            int64_t ticks)
      : first(static_cast<const char*>(first)),
        second(static_cast<const char*>(second)),
        written(static_cast<const char*>(written)),
        left((bytes + kLine - 1) / kLine),
        share((left + ticks - 1) / ticks) {}
  FASTPARAM_INLINE void tick() {
    for (int64_t l = std::min(left, share); l > 0;
         --l, --left, first += kLine, second += kLine, written += kLine) {
      __builtin_prefetch(first, 0);
      if (second != first) __builtin_prefetch(second, 0);
      __builtin_prefetch(written, 1);
    }
  }
};

}  // namespace fastparam::cpu
