// The Cayley map and its gradient on CUDA for matrices too large for a block: panels of columns, and matrix
// products of the library between them. All work is on the current stream, and nothing depends on values
// read by the host.
#include <algorithm>

#include "../../core/cuda/full_precision.h"
#include "large.cuh"
#include "large.h"
#include "launch.h"
#include "pivoted.cuh"
#include "refine.cuh"

namespace fastparam::cuda {

namespace {

// The limit for the matrices that teams process at a time, if there is more than one team.
constexpr int64_t kTeamBytes = 64 << 20;

auto stream() { return c10::cuda::getCurrentCUDAStream(); }

unsigned tile_pairs(int64_t batch, int64_t n) {
  const int64_t tiles = (n + kSquare - 1) / kSquare;
  return grid_of(batch * (tiles * (tiles + 1) / 2), 1);
}

template <class T>
Teams teams_for(int n, int64_t batch, bool in_place) {
  return share_device<repeat_pivoted<T>>(8 * TeamMemory<acc_t<T>>::words(n, 1, in_place), kTeamBytes, batch,
                                         (n + kBlock / 32 - 1) / (kBlock / 32));
}

// The flags of the matrices, followed by the counters of the teams.
Tensor flags_for(int64_t batch, const Teams& teams, const at::TensorOptions& options) {
  return at::empty({batch + teams.count}, options.dtype(at::kInt));
}

// D: as in Repeat.
template <class T>
void launch_repeat(const Given<T>& given, T* Q, acc_t<T>* D, unsigned* flags, int64_t batch,
                   const Teams& teams, const at::TensorOptions& options) {
  const int64_t words =
      teams.count * TeamMemory<acc_t<T>>::words(given.n, static_cast<int>(teams.size), D != nullptr);
  const Tensor memory = at::empty({words}, options.dtype(at::kDouble));
  Repeat<T> repeat{given,
                   Q,
                   flags,
                   D,
                   memory.mutable_data_ptr<double>(),
                   flags + batch,
                   batch,
                   static_cast<int>(teams.count)};
  void* arguments[] = {&repeat};
  C10_CUDA_CHECK(cudaLaunchCooperativeKernel(repeat_pivoted<T>,
                                             dim3(static_cast<unsigned>(teams.count * teams.size)),
                                             dim3(kBlock), arguments, 0, stream()));
}

// Up to order 512, there would be too few tiles of 64.
template <class F>
void with_refine_tile(int n, const F& f) {
  if (n > 512) f(std::integral_constant<int, 64>{});
  else f(std::integral_constant<int, 32>{});
}

// Improves the flagged matrices D = M - I. As many columns at a time as fit into the memory.
template <class T>
void launch_refine(const Given<T>& given, acc_t<T>* D, unsigned* flags, int64_t batch,
                   const at::TensorOptions& options) {
  with_refine_tile(given.n, [&](auto N) {
    using R = Refiner<T, N>;
    const int n = given.n, tiles = (n + N - 1) / N,
              most = static_cast<int>(kTeamBytes / (2 * N * n * static_cast<int64_t>(sizeof(acc_t<T>)))),
              width = N * std::clamp(most, 1, tiles);
    const int64_t words = RefineMemory(n, width, N).template words<acc_t<T>>();
    const Teams teams = share_device<refine<T, N>>(8 * words, kTeamBytes, batch, tiles * (width / N),
                                                   R::kThreads, R::kBlocks, R::kSharedBytes);
    const Tensor memory = at::empty({teams.count * words}, options.dtype(at::kDouble)),
                 arrived = at::zeros({teams.count}, options.dtype(at::kInt));
    Refine<T> call{given,
                   D,
                   flags,
                   memory.mutable_data_ptr<double>(),
                   reinterpret_cast<unsigned*>(arrived.mutable_data_ptr<int>()),
                   batch,
                   static_cast<int>(teams.count),
                   width};
    void* arguments[] = {&call};
    C10_CUDA_CHECK(cudaLaunchCooperativeKernel(refine<T, N>,
                                               dim3(static_cast<unsigned>(teams.count * teams.size)),
                                               dim3(R::kThreads), arguments, R::kSharedBytes, stream()));
  });
}

// D = (I + D)^-1 - I, for a batch of shape (b, n, n).
template <class A>
void invert(const Tensor& D) {
  const int64_t batch = D.size(0), n = D.size(1), most = block_order<A>();
  const int64_t steps = (n + most - 1) / most,
                width = std::min<int64_t>(most, ((n + steps - 1) / steps + 15) / 16 * 16);
  const Tensor memory = at::empty({batch * width * (2 * n + width)}, D.options());
  A* const d = D.mutable_data_ptr<A>();
  for (int64_t first = 0; first < n; first += width) {
    const int64_t here = std::min(width, n - first), size = batch * here * n, next = first + here;
    const auto part = [&](int64_t at, int64_t rows, int64_t columns) {
      return memory.narrow(0, at, batch * rows * columns).view({batch, rows, columns});
    };
    const Tensor C = part(0, n, here), R = part(size, here, n), W = part(2 * size, here, here);
    const Given<A> diagonal{d + first * n + first, n * n, n, static_cast<int>(here), Layout::inside, A(1)};
    launch_block<A>(diagonal, W.mutable_data_ptr<A>(), batch);
    split_panels<A><<<grid_of(size, kBlock), kBlock, 0, stream()>>>(
        d, W.const_data_ptr<A>(), C.mutable_data_ptr<A>(), R.mutable_data_ptr<A>(), batch,
        static_cast<int>(n), static_cast<int>(first), static_cast<int>(here));
    C10_CUDA_KERNEL_LAUNCH_CHECK();
    Tensor rows = D.narrow(1, first, here), above = D.narrow(1, 0, first),
           below = D.narrow(1, next, n - next);
    at::baddbmm_out(rows, rows, W, R);
    if (first > 0) at::baddbmm_out(above, above, C.narrow(1, 0, first), rows, 1, -1);
    if (next < n) at::baddbmm_out(below, below, C.narrow(1, next, n - next), rows, 1, -1);
  }
}

}  // namespace

template <class T>
void forward_by_blocks(const Given<T>& given, T* Q, int64_t batch, const at::TensorOptions& options) {
  const Teams teams = teams_for<T>(given.n, batch, false);
  const Tensor flags = flags_for(batch, teams, options);
  auto* const f = reinterpret_cast<unsigned*>(flags.mutable_data_ptr<int>());
  launch_block<T>(given, Q, batch, f, static_cast<int>(teams.count));
  launch_repeat<T>(given, Q, nullptr, f, batch, teams, options);
}

template <class T>
void forward_large(const Given<T>& given, Tensor& Q, int64_t batch) {
  using A = acc_t<T>;
  const FullPrecision full_precision;
  const int64_t n = given.n, rows = batch * n;
  const auto limits = Limits<A>::of_large();
  const auto sums = Q.options().dtype(c10::CppTypeToScalarType<A>::value);
  const Tensor D = std::is_same_v<T, A> ? Q.view({batch, n, n}) : at::empty({batch, n, n}, sums),
               sizes = at::empty({rows}, sums);
  const Teams teams = teams_for<T>(given.n, batch, true);
  const Tensor flags = flags_for(batch, teams, Q.options()).zero_();
  auto* const f = reinterpret_cast<unsigned*>(flags.mutable_data_ptr<int>());
  A *const d = D.mutable_data_ptr<A>(), *const s = sizes.mutable_data_ptr<A>();
  T* const q = Q.mutable_data_ptr<T>();
  const unsigned for_rows = grid_of(rows, kBlock / 32);
  const auto check = [&](T* to) {
    finish<T><<<for_rows, kBlock, 0, stream()>>>(given, d, to, s, f, rows, limits);
    C10_CUDA_KERNEL_LAUNCH_CHECK();
  };

  spread<T><<<tile_pairs(batch, n), kBlock, 0, stream()>>>(given, d, f);
  C10_CUDA_KERNEL_LAUNCH_CHECK();
  measure_rows<A><<<for_rows, kBlock, 0, stream()>>>(d, s, rows, given.n);
  C10_CUDA_KERNEL_LAUNCH_CHECK();
  invert<A>(D);
  check(nullptr);
  launch_refine<T>(given, d, f, batch, Q.options());
  check(q);
  launch_repeat<T>(given, q, d, f, batch, teams, Q.options());
}

template <class T>
void backward_large(const Given<T>& Q, const Tensor& G, const Tensor& signs, const Gradient<T>& gradient,
                    int64_t batch) {
  using A = acc_t<T>;
  const FullPrecision full_precision;
  const int64_t n = Q.n;
  Tensor G3 = G.to(c10::CppTypeToScalarType<A>::value).reshape({batch, n, n});
  if (signs.defined()) G3 = at::where(signs.view({batch, 1, n}).lt(0), -G3, G3);
  const Tensor P = at::empty({batch, n, n}, G3.options());
  add_identity<T><<<grid_of(batch * n * n, kBlock), kBlock, 0, stream()>>>(Q, P.mutable_data_ptr<A>(), batch);
  C10_CUDA_KERNEL_LAUNCH_CHECK();
  const Tensor Z = at::bmm(at::bmm(P.mT(), G3), P.mT());
  project<T><<<tile_pairs(batch, n), kBlock, 0, stream()>>>(Z.const_data_ptr<A>(), gradient);
  C10_CUDA_KERNEL_LAUNCH_CHECK();
}

template void forward_by_blocks(const Given<float>&, float*, int64_t, const at::TensorOptions&);
template void forward_by_blocks(const Given<double>&, double*, int64_t, const at::TensorOptions&);
template void forward_by_blocks(const Given<at::Half>&, at::Half*, int64_t, const at::TensorOptions&);
template void forward_by_blocks(const Given<at::BFloat16>&, at::BFloat16*, int64_t, const at::TensorOptions&);
template void forward_large(const Given<float>&, Tensor&, int64_t);
template void forward_large(const Given<double>&, Tensor&, int64_t);
template void forward_large(const Given<at::Half>&, Tensor&, int64_t);
template void forward_large(const Given<at::BFloat16>&, Tensor&, int64_t);
template void backward_large(const Given<float>&, const Tensor&, const Tensor&, const Gradient<float>&,
                             int64_t);
template void backward_large(const Given<double>&, const Tensor&, const Tensor&, const Gradient<double>&,
                             int64_t);
template void backward_large(const Given<at::Half>&, const Tensor&, const Tensor&, const Gradient<at::Half>&,
                             int64_t);
template void backward_large(const Given<at::BFloat16>&, const Tensor&, const Tensor&,
                             const Gradient<at::BFloat16>&, int64_t);

}  // namespace fastparam::cuda
