// Distributes a batch of matrices, or the work of one matrix, to threads, and allocates their work spaces.
#pragma once

#include <ATen/Parallel.h>
#include <c10/core/CPUAllocator.h>

#include "../parallel.h"
#include "denormals.h"
#include "square.h"

namespace fastparam::cpu {

// From this order on, threads share the work of one matrix. At 128 nothing is gained.
constexpr int64_t kParallelOrder = 192;

// The work space of a thread.
class Scratch {
  c10::DataPtr data_;

 public:
  explicit Scratch(int64_t bytes) : data_(c10::GetCPUAllocator()->allocate(bytes)) {}
  template <class T = void>
  T* get() const {
    return static_cast<T*>(data_.get());
  }
};

// Runs the tasks of one matrix, such as its strips: in order or, if `shared`, in parallel.
template <class Body, class... A>
void run_tasks(bool shared, int64_t tasks, A... a) {
  if (!shared) return run_simd<Body>(a..., int64_t(0), tasks);
  at::parallel_for(0, tasks, 1, [&](int64_t begin, int64_t end) {
    const FlushDenormals flush;
    run_simd<Body>(a..., begin, end);
  });
}
template <class Body, class... A>
void parallel_tasks(int64_t n, int64_t tasks, A... a) {
  run_tasks<Body>(n >= kParallelOrder, tasks, a...);
}

// Runs share(begin, end, scratch) over the batch. Threads share the matrices or, if these are few and large
// (`shared`), the work of each matrix. The choice changes no bit of a result.
template <class Share>
void over_batch(int64_t batch, bool shared, int64_t work, int64_t scratch_bytes, const Share& share) {
  if (shared && batch < 2 * at::get_num_threads()) {
    at::parallel_for(0, at::get_num_threads(), 1,
                     [](int64_t, int64_t) {});  // starts the threads before FlushDenormals
    const Scratch scratch(scratch_bytes);
    return share(0, batch, scratch.get());
  }
  at::parallel_for(0, batch, std::max<int64_t>(1, kGrain / work), [&](int64_t begin, int64_t end) {
    const Scratch scratch(scratch_bytes);
    share(begin, end, scratch.get());
  });
}
template <class Share>
void over_batch(int64_t batch, int64_t n, int64_t scratch_bytes, const Share& share) {
  over_batch(batch, n >= kParallelOrder, n * n * n, scratch_bytes, share);
}

}  // namespace fastparam::cpu
