// The Cayley map for n <= 32 on CUDA.
#include "launch.h"
#include "warp.cuh"

namespace fastparam::cuda {

template <class T>
void launch_warp(const Given<T>& given, T* Q, int64_t batch) {
  with_warp_order(given.n, [&](auto N) {
    using S = WarpShape<acc_t<T>, N>;
    allow_shared<cayley_warp<T, N>>(S::kSharedBytes);
    const unsigned blocks = grid_of(batch, S::kWarps * S::kMatrices);
    cayley_warp<T, N><<<blocks, S::kThreads, S::kSharedBytes, c10::cuda::getCurrentCUDAStream()>>>(
        given, Q, batch, Limits<acc_t<T>>::of(given.n));
    C10_CUDA_KERNEL_LAUNCH_CHECK();
  });
}

template void launch_warp(const Given<float>&, float*, int64_t);
template void launch_warp(const Given<double>&, double*, int64_t);
template void launch_warp(const Given<at::Half>&, at::Half*, int64_t);
template void launch_warp(const Given<at::BFloat16>&, at::BFloat16*, int64_t);

}  // namespace fastparam::cuda
