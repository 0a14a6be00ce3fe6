// The Cayley ops on CPU: which path serves a call, what becomes of matrices that fail the guard, and the registration.
#include "../cayley.h"

#include <ATen/EmptyTensor.h>
#include <ATen/Parallel.h>
#include <c10/core/CPUAllocator.h>
#include <torch/library.h>

#include <cstdlib>
#include <vector>

#include "bits.h"
#include "cayley_backward.h"
#include "cayley_blocks.h"
#include "cayley_lanes.h"
#include "cayley_pivoted.h"
#include "cayley_rows.h"

namespace fastparam {
namespace {

using namespace fastparam::cpu;

constexpr int64_t kGrain = 32768;       // multiplications below which no second thread is woken
constexpr int64_t kChunkBytes = 65536;  // of float32 at a time, where half types are converted

// The largest order served by lanes, of 16, 8, 4 or 2 matrices. Measured in full batches: up to here both directions are faster than by
// rows (1.2 times at these orders, 2 to 4 times at half of them). It depends on nothing but n and the level, so that a matrix has the same
// bits in every batch; a single matrix of order 28 pays for 16. FASTPARAM_CAYLEY_LANES sets another one, for measurements.
template <class T>
int64_t largest_by_lanes() {
  static const int64_t order = [] {
    const char* const given = std::getenv("FASTPARAM_CAYLEY_LANES");
    if (given) return std::min(std::atoi(given), kLargestLanes);
    const int lanes = vector_bytes() / static_cast<int>(sizeof(T));
    return lanes == 16 ? 28 : lanes == 8 ? 20 : lanes == 4 ? 16 : 12;
  }();
  return order;
}

// The work space of a thread.
class Scratch {
  c10::DataPtr data_;

 public:
  explicit Scratch(int64_t bytes) : data_(c10::GetCPUAllocator()->allocate(bytes)) {}
  void* get() const { return data_.get(); }
};

// ---- forward -----------------------------------------------------------------------------------------------------------------------

template <class T>
int64_t forward_scratch(int64_t n) {
  return std::max(n <= kLargestLanes ? n * (n | 1) * 64 : 0, forward_scratch_bytes<T>(n));
}

// A float32 matrix that fails the guard is computed again in float64; what fails there, with row exchanges.
template <class T>
void forward_failed(const CayleyMap<T>& map, int64_t begin, int64_t end) {
  const Scratch scratch(std::max(forward_scratch_bytes<double>(map.n), pivoted_scratch_bytes(map.n)));
  for (int64_t m = begin; m < end; ++m) {
    if constexpr (std::is_same_v<T, float>)
      if (map.failed[m]) map.failed[m] = !matrix_forward<double, float>(map, m, scratch.get());
    if (map.failed[m] && map.n <= kLargestPivoted) pivoted_forward(map, m, scratch.get()), map.failed[m] = 0;
  }
}

template <class T>
void forward_share(const CayleyMap<T>& map, int64_t begin, int64_t end, void* scratch) {
  const FlushDenormals flush;
  if (map.n <= largest_by_lanes<T>()) run_simd<LanesForward<T>>(&map, begin, end, scratch);
  else
    for (int64_t m = begin; m < end; ++m) map.failed[m] = !matrix_forward<T, T>(map, m, scratch);
  if (std::any_of(map.failed + begin, map.failed + end, [](uint8_t f) { return f != 0; })) forward_failed(map, begin, end);
}

// ---- backward ----------------------------------------------------------------------------------------------------------------------

template <class T>
int64_t backward_scratch(int64_t n) {
  const int64_t lanes = 3 * n * (n | 1) * 64, strips = n < kParallelOrder ? 2 * n * kStrip : 0;
  return std::max<int64_t>(n <= kLargestLanes ? lanes : 0, (n * block_stride(n) + strips) * sizeof(T));
}

template <class T>
void backward_share(const CayleyGradient<T>& map, int64_t begin, int64_t end, void* scratch) {
  const FlushDenormals flush;
  if (map.n <= largest_by_lanes<T>()) return run_simd<LanesBackward<T>>(&map, begin, end, scratch);
  const int64_t n = map.n, tasks = (n + kStrip - 1) / kStrip;
  T *const U = static_cast<T*>(scratch), *const strips = U + n * block_stride(n);
  for (int64_t m = begin; m < end; ++m) {
    if (n < kParallelOrder) run_simd<BackwardColumns<T>>(&map, m, U, strips, int64_t(0), tasks);
    else
      at::parallel_for(0, tasks, 1, [&](int64_t first, int64_t last) {
        const FlushDenormals flush_here;
        const Scratch own(2 * n * kStrip * sizeof(T));
        run_simd<BackwardColumns<T>>(&map, m, U, static_cast<T*>(own.get()), first, last);
      });
    parallel_strips<BackwardCollapse<T>>(n, tasks, &map, m, U);
  }
}

// ---- batches -----------------------------------------------------------------------------------------------------------------------

// Runs share(begin, end, scratch) over the batch: matrices among threads, or, of few large ones, the work of each.
template <class Share>
void over_batch(int64_t batch, int64_t n, int64_t scratch_bytes, const Share& share) {
  if (n >= kParallelOrder && batch < 2 * at::get_num_threads()) {
    const Scratch scratch(scratch_bytes);
    return share(0, batch, scratch.get());
  }
  at::parallel_for(0, batch, std::max<int64_t>(1, kGrain / (n * n * n)), [&](int64_t begin, int64_t end) {
    const Scratch scratch(scratch_bytes);
    share(begin, end, scratch.get());
  });
}

int64_t chunk_of(int64_t n) { return std::max<int64_t>(1, kChunkBytes / (n * n * static_cast<int64_t>(sizeof(float))) / 16 * 16); }

int64_t buffer_of(int64_t elements) { return (elements + 15) / 16 * 16; }  // what follows it is aligned

// Half types, by chunks; outside of FlushDenormals, as their small numbers are converted from and to denormal ones.
template <class T>
void widen(const T* from, int64_t size, float* to) {
  for (int64_t i = 0; i < size; ++i) to[i] = static_cast<float>(from[i]);
}
template <class T>
void narrow(const float* from, int64_t size, T* to) {
  for (int64_t i = 0; i < size; ++i) to[i] = static_cast<T>(from[i]);
}

template <class T>
void forward(const CayleyMap<T>& map) {
  if constexpr (sizeof(T) >= 4) {
    over_batch(map.batch, map.n, forward_scratch<T>(map.n),
               [&](int64_t begin, int64_t end, void* scratch) { forward_share(map, begin, end, scratch); });
  } else {
    const int64_t chunk = std::min(chunk_of(map.n), map.batch), size = map.n * map.n, buffer = buffer_of(chunk * size);
    over_batch(map.batch, map.n, 2 * buffer * sizeof(float) + forward_scratch<float>(map.n),
               [&](int64_t begin, int64_t end, void* scratch) {
                 float *in = static_cast<float*>(scratch), *out = in + buffer, *rest = out + buffer;
                 for (int64_t m = begin; m < end; m += chunk) {
                   const int64_t count = std::min(chunk, end - m);
                   widen(map.in + m * map.entries(), count * map.entries(), in);
                   forward_share(CayleyMap<float>{in, out, map.n, count, map.alpha, map.layout, map.failed + m}, 0, count, rest);
                   narrow(out, count * size, map.out + m * size);
                 }
               });
  }
}

template <class T>
void backward(const CayleyGradient<T>& map) {
  if constexpr (sizeof(T) >= 4) {
    over_batch(map.batch, map.n, backward_scratch<T>(map.n),
               [&](int64_t begin, int64_t end, void* scratch) { backward_share(map, begin, end, scratch); });
  } else {
    const int64_t chunk = std::min(chunk_of(map.n), map.batch), size = map.n * map.n, buffer = buffer_of(chunk * size);
    over_batch(map.batch, map.n, 3 * buffer * sizeof(float) + backward_scratch<float>(map.n),
               [&](int64_t begin, int64_t end, void* scratch) {
                 float *G = static_cast<float*>(scratch), *Q = G + buffer, *out = Q + buffer, *rest = out + buffer;
                 for (int64_t m = begin; m < end; m += chunk) {
                   const int64_t count = std::min(chunk, end - m);
                   widen(map.G + m * size, count * size, G);
                   widen(map.Q + m * size, count * size, Q);
                   backward_share(CayleyGradient<float>{G, Q, out, map.n, count, map.alpha, map.kind}, 0, count, rest);
                   narrow(out, count * map.entries(), map.out + m * map.entries());
                 }
               });
  }
}

// ---- what the guard leaves ---------------------------------------------------------------------------------------------------------

// Brings Q near the orthogonal matrix next to it: each step squares the distance.
Tensor orthogonalized(Tensor Q) {
  const Tensor I = at::eye(Q.size(-1), Q.options());
  for (int step = 0; step < 3; ++step) Q = at::matmul(Q, 1.5 * I - 0.5 * at::matmul(Q.mT(), Q));
  return Q;
}

// Large matrices that failed, one by one, because LAPACK's batches round differently.
template <class Solve>
void solve_failed(const Tensor& X, const Tensor& Q, const std::vector<uint8_t>& failed, const Solve& solve) {
  for (size_t m = 0; m < failed.size(); ++m)
    if (failed[m]) Q[m].copy_(orthogonalized(solve(X[m].to(at::kDouble))));
}

// ---- ops ---------------------------------------------------------------------------------------------------------------------------

#define FASTPARAM_DISPATCH(type, word, ...) AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, type, word, __VA_ARGS__)

std::vector<uint8_t> forward(const Tensor& X, Tensor& Q, double alpha, Layout layout) {
  const int64_t n = Q.size(-1), batch = Q.numel() / (n * n);
  std::vector<uint8_t> failed(batch);
  FASTPARAM_DISPATCH(Q.scalar_type(), "cayley", [&] {
    if (n == 1) std::fill_n(Q.mutable_data_ptr<scalar_t>(), batch, scalar_t(1));
    else forward(CayleyMap<scalar_t>{X.const_data_ptr<scalar_t>(), Q.mutable_data_ptr<scalar_t>(), n, batch, alpha, layout, failed.data()});
  });
  return failed;
}

void backward(const Tensor& G, const Tensor& Q, Tensor& D, double alpha, Gradient kind) {
  const int64_t n = Q.size(-1), batch = Q.numel() / (n * n);
  const Tensor g = G.contiguous(), q = Q.contiguous();
  FASTPARAM_DISPATCH(Q.scalar_type(), "cayley_backward", [&] {
    backward(CayleyGradient<scalar_t>{g.const_data_ptr<scalar_t>(), q.const_data_ptr<scalar_t>(), D.mutable_data_ptr<scalar_t>(), n, batch,
                                      alpha, kind});
  });
}

Tensor skew_cayley(const Tensor& X, double alpha, bool lower) {
  check_cayley("skew_cayley", "X", X, alpha);
  if (X.is_complex()) return warn_no_kernel(X), fallback::skew_cayley(X, alpha, lower);
  Tensor Q = at::detail::empty_cpu(X.sizes(), X.options());
  if (Q.numel() == 0) return Q;
  const int64_t n = X.size(-1);
  const Tensor given = X.contiguous();
  const auto failed = forward(given, Q, alpha, lower ? Layout::Lower : Layout::Upper);
  solve_failed(given.view({-1, n, n}), Q.view({-1, n, n}), failed, [&](const Tensor& x) { return fallback::skew_cayley(x, alpha, lower); });
  return Q;
}

Tensor skew_cayley_packed(const Tensor& v, double alpha) {
  const int64_t n = check_packed("skew_cayley_packed", v, alpha);
  if (v.is_complex()) return warn_no_kernel(v), fallback::skew_cayley_packed(v, alpha);
  c10::DimVector sizes(v.sizes().begin(), v.sizes().end() - 1);
  sizes.insert(sizes.end(), {n, n});
  Tensor Q = at::detail::empty_cpu(sizes, v.options());
  if (Q.numel() == 0) return Q;
  const Tensor given = v.contiguous();
  const auto failed = forward(given, Q, alpha, Layout::Packed);
  solve_failed(given.view({Q.numel() / (n * n), given.size(-1)}), Q.view({-1, n, n}), failed,
               [&](const Tensor& x) { return fallback::skew_cayley_packed(x, alpha); });
  return Q;
}

// One flag a matrix of A, contiguous: whether it is not skew.
std::vector<uint8_t> not_skew(const Tensor& A) {
  const int64_t n = A.size(-1), batch = A.numel() / (n * n);
  std::vector<uint8_t> result(batch);
  FASTPARAM_DISPATCH(A.scalar_type(), "cayley", [&] {
    const scalar_t* const data = A.const_data_ptr<scalar_t>();
    at::parallel_for(0, batch, std::max<int64_t>(1, kGrain / (n * n)), [&](int64_t begin, int64_t end) {
      if constexpr (sizeof(scalar_t) >= 4) {
        const CayleyMap<scalar_t> map{data, nullptr, n, batch, 0, Layout::Upper, result.data()};
        run_simd<SkewTest<scalar_t>>(&map, begin, end);
      } else {
        const Scratch scratch(n * n * sizeof(float));
        for (int64_t m = begin; m < end; ++m) {
          widen(data + m * n * n, n * n, static_cast<float*>(scratch.get()));
          const CayleyMap<float> map{static_cast<float*>(scratch.get()), nullptr, n, 1, 0, Layout::Upper, result.data() + m};
          run_simd<SkewTest<float>>(&map, int64_t(0), int64_t(1));
        }
      }
    });
  });
  return result;
}

// Matrices that are not skew are solved, the skew ones among them gathered for the kernel.
Tensor cayley(const Tensor& A, double alpha) {
  check_cayley("cayley", "A", A, alpha);
  if (A.is_complex()) return warn_no_kernel(A), fallback::cayley(A, alpha);
  if (A.numel() == 0) return at::detail::empty_cpu(A.sizes(), A.options());
  const int64_t n = A.size(-1);
  const Tensor given = A.contiguous().view({-1, n, n});
  const auto other = not_skew(given);
  if (std::none_of(other.begin(), other.end(), [](uint8_t f) { return f != 0; })) return skew_cayley(given, alpha, false).view(A.sizes());
  const Tensor finite = given.isfinite().flatten(1).all(1);
  const Tensor solved = at::tensor(c10::ArrayRef<uint8_t>(other), at::kByte).to(at::kBool) & finite, skew = solved.logical_not() & finite;
  Tensor Q = at::full(given.sizes(), std::numeric_limits<double>::quiet_NaN(), A.options());
  if (skew.any().item<bool>()) Q.index_put_({skew}, skew_cayley(given.index({skew}), alpha, false));
  if (solved.any().item<bool>()) Q.index_put_({solved}, fallback::cayley(given.index({solved}), alpha));
  return Q.view(A.sizes());
}

template <Gradient kind>
Tensor square_gradient(const char* op, const Tensor& G, const Tensor& Q, double alpha) {
  Tensor D = at::detail::empty_cpu(Q.sizes(), Q.options());
  if (D.numel() > 0) backward(G, Q, D, alpha, kind);
  return D;
}

Tensor cayley_backward(const Tensor& G, const Tensor& Q, double alpha) {
  check_cayley_backward("cayley_backward", G, Q, alpha);
  if (Q.is_complex()) return warn_no_kernel(Q), fallback::cayley_backward(G, Q, alpha);
  return square_gradient<Gradient::Whole>("cayley_backward", G, Q, alpha);
}

Tensor skew_cayley_backward(const Tensor& G, const Tensor& Q, double alpha, bool lower) {
  check_cayley_backward("skew_cayley_backward", G, Q, alpha);
  if (Q.is_complex()) return warn_no_kernel(Q), fallback::skew_cayley_backward(G, Q, alpha, lower);
  return lower ? square_gradient<Gradient::Lower>("", G, Q, alpha) : square_gradient<Gradient::Upper>("", G, Q, alpha);
}

Tensor skew_cayley_packed_backward(const Tensor& G, const Tensor& Q, double alpha) {
  check_cayley_backward("skew_cayley_packed_backward", G, Q, alpha);
  if (Q.is_complex()) return warn_no_kernel(Q), fallback::skew_cayley_packed_backward(G, Q, alpha);
  const int64_t n = Q.size(-1);
  c10::DimVector sizes(Q.sizes().begin(), Q.sizes().end() - 2);
  sizes.push_back(n * (n - 1) / 2);
  Tensor D = at::detail::empty_cpu(sizes, Q.options());
  if (D.numel() > 0) backward(G, Q, D, alpha, Gradient::Packed);
  return D;
}

}  // namespace

TORCH_LIBRARY_IMPL(fastparam, CPU, m) {
  m.impl("cayley", &cayley);
  m.impl("cayley_backward", &cayley_backward);
  m.impl("skew_cayley", &skew_cayley);
  m.impl("skew_cayley_backward", &skew_cayley_backward);
  m.impl("skew_cayley_packed", &skew_cayley_packed);
  m.impl("skew_cayley_packed_backward", &skew_cayley_packed_backward);
}

}  // namespace fastparam
