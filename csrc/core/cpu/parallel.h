// Threads share work; each share is a call at the instruction level of the CPU.
#pragma once

#include <ATen/Parallel.h>

#include <algorithm>

#include "simd.h"

namespace fastparam::cpu {

constexpr int64_t kGrain = 32768;  // elements of work below which no second thread is used

// Runs Body on shares [begin, end) of the tasks, each of which is `work` elements.
template <class Body, class... A>
void parallel(int64_t tasks, int64_t work, A... a) {
  at::parallel_for(0, tasks, std::max<int64_t>(1, kGrain / std::max<int64_t>(1, work)),
                   [&](int64_t begin, int64_t end) { run_simd<Body>(a..., begin, end); });
}

}  // namespace fastparam::cpu
