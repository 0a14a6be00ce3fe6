// Runs a batch of matrices: chooses the path, and repeats the matrices that fail the guard.
#pragma once

#include "../../core/cpu/dense/widen.h"
#include "blocks.h"
#include "gradient.h"
#include "lanes.h"
#include "pivoted.h"
#include "tiny.h"

namespace fastparam::cpu {

template <class T>
Plan plan_of(int64_t n) {
  return plan(n, sizeof(T), vector_bytes());
}

// ---- forward ----------------------------------------------------------------------------------------------

template <class T>
int64_t forward_scratch(int64_t n) {
  const int64_t lanes = (n * (n | 1) + 2 * factors_of<T>(n)) * 64;
  return std::max(n <= kLargestLanes ? lanes : 0, forward_scratch_bytes<T>(n));
}

// Follows the steps of guard.h.
template <class T>
void forward_again(const CayleyCall<T>& call, int64_t begin, int64_t end) {
  const Scratch scratch(
      std::max(forward_scratch_bytes<double>(call.n), pivoted_scratch_bytes<double>(call.n)));
  for (int64_t m = begin; m < end; ++m) {
    if constexpr (std::is_same_v<T, float>)
      if (call.failed[m]) call.failed[m] = !matrix_forward<double, float>(call, m, scratch.get());
    if (call.failed[m]) pivoted_forward<double>(call, m, scratch.get());
  }
}

template <class T>
void forward_share(const CayleyCall<T>& call, int64_t begin, int64_t end, void* scratch) {
  const FlushDenormals flush;
  const Path path = plan_of<T>(call.n).path;
  if (path == Path::tiny) run_tiny<TinyForward, T>(call, begin, end);
  else if (path == Path::lanes) run_lanes_of<LanesForward, T>(call.n, &call, begin, end, scratch);
  else
    for (int64_t m = begin; m < end; ++m) call.failed[m] = !matrix_forward<T, T>(call, m, scratch);
  if (std::any_of(call.failed + begin, call.failed + end, [](uint8_t f) { return f != 0; }))
    forward_again(call, begin, end);
}

template <class T>
void forward_batch(const CayleyCall<T>& call) {
  if constexpr (sizeof(T) >= 4) {
    over_batch(call.batch, call.n, forward_scratch<T>(call.n),
               [&](int64_t begin, int64_t end, void* scratch) { forward_share(call, begin, end, scratch); });
  } else {
    const int64_t size = call.n * call.n, chunk = std::min(chunk_of(size), call.batch),
                  buffer = aligned(chunk * size);
    over_batch(call.batch, call.n, 2 * buffer * sizeof(float) + forward_scratch<float>(call.n),
               [&](int64_t begin, int64_t end, void* scratch) {
                 float *in = static_cast<float*>(scratch), *out = in + buffer, *rest = out + buffer;
                 for (int64_t m = begin; m < end; m += chunk) {
                   const int64_t count = std::min(chunk, end - m);
                   widen(call.in + m * call.entries(), count * call.entries(), in);
                   forward_share(CayleyCall<float>{in, out, call.signs_of(m), call.n, count, call.alpha,
                                                   call.layout, call.failed + m},
                                 0, count, rest);
                   narrow(out, count * size, call.out + m * size);
                 }
               });
  }
}

// ---- whole matrices, which need not be skew ---------------------------------------------------------------

// Sets `failed` if I + aA is singular.
template <class T>
void solve_batch(const CayleyCall<T>& call) {
  using A = compute_t<T>;
  const int64_t size = call.n * call.n, buffer = std::is_same_v<T, A> ? 0 : aligned(size);
  over_batch(call.batch, call.n, 2 * buffer * sizeof(A) + pivoted_scratch_bytes<A>(call.n),
             [&](int64_t begin, int64_t end, void* scratch) {
               A *in = static_cast<A*>(scratch), *out = in + buffer, *rest = out + buffer;
               for (int64_t m = begin; m < end; ++m) {
                 if constexpr (std::is_same_v<T, A>) {
                   call.failed[m] = !pivoted_forward<A>(call, m, rest);
                 } else {
                   widen(call.in + m * size, size, in);
                   call.failed[m] = !pivoted_forward<A>(
                       CayleyCall<A>{in, out, call.signs_of(m), call.n, 1, call.alpha, call.layout, nullptr},
                       0, rest);
                   narrow(out, size, call.out + m * size);
                 }
               }
             });
}

// ---- backward ---------------------------------------------------------------------------------------------

template <class T>
int64_t backward_scratch(int64_t n) {
  const int64_t lanes = (3 * n * (n | 1) + 2 * factors_of<T>(n)) * 64,
                strips = n < kParallelOrder ? 2 * n * kStrip : 0;
  return std::max<int64_t>(n <= kLargestLanes ? lanes : 0, (n * largest_stride(n) + strips) * sizeof(T));
}

template <class T>
void backward_share(const CayleyGradient<T>& call, int64_t begin, int64_t end, void* scratch) {
  const FlushDenormals flush;
  const Path path = plan_of<T>(call.n).path;
  if (path == Path::tiny) return run_tiny<TinyBackward, T>(call, begin, end);
  if (path == Path::lanes) return run_lanes_of<LanesBackward, T>(call.n, &call, begin, end, scratch);
  const int64_t n = call.n, tasks = strips_of(n);
  T *const U = static_cast<T*>(scratch), *const strips = U + n * largest_stride(n);
  for (int64_t m = begin; m < end; ++m) {
    if (turned(call)) parallel_tasks<BackwardTurn<T>>(n, tasks, &call, m);
    if (n < kParallelOrder) run_simd<BackwardColumns<T>>(&call, m, U, strips, int64_t(0), tasks);
    else
      at::parallel_for(0, tasks, 1, [&](int64_t first, int64_t last) {
        const FlushDenormals flush_here;
        const Scratch own(2 * n * kStrip * sizeof(T));
        run_simd<BackwardColumns<T>>(&call, m, U, own.get<T>(), first, last);
      });
    parallel_tasks<BackwardCollapse<T>>(n, tasks, &call, m, U);
  }
}

template <class T>
void backward_batch(const CayleyGradient<T>& call) {
  if constexpr (sizeof(T) >= 4) {
    over_batch(call.batch, call.n, backward_scratch<T>(call.n),
               [&](int64_t begin, int64_t end, void* scratch) { backward_share(call, begin, end, scratch); });
  } else {
    const int64_t size = call.n * call.n, chunk = std::min(chunk_of(size), call.batch),
                  buffer = aligned(chunk * size);
    over_batch(call.batch, call.n, 3 * buffer * sizeof(float) + backward_scratch<float>(call.n),
               [&](int64_t begin, int64_t end, void* scratch) {
                 float *G = static_cast<float*>(scratch), *Q = G + buffer, *out = Q + buffer,
                       *rest = out + buffer;
                 for (int64_t m = begin; m < end; m += chunk) {
                   const int64_t count = std::min(chunk, end - m);
                   widen(call.G + m * size, count * size, G);
                   widen(call.Q + m * size, count * size, Q);
                   backward_share(CayleyGradient<float>{G, Q, out, call.signs_of(m), call.n, count,
                                                        call.alpha, call.layout},
                                  0, count, rest);
                   narrow(out, count * call.entries(), call.out + m * call.entries());
                 }
               });
  }
}

}  // namespace fastparam::cpu
