// The gradient of the Cayley map on CUDA, with one matrix per group of lanes or per block.
#include "gradient.cuh"

#include "launch.h"

namespace fastparam::cuda {

template <class A>
int backward_order() {
  return largest_order<BackwardShape, A>();
}

template <class T>
void launch_backward(const Given<T>& Q, const Given<T>& G, const Gradient<T>& gradient, int64_t batch) {
  const auto launch = [&](auto N) {
    using S = BackwardShape<acc_t<T>, N>;
    allow_shared<cayley_gradient<T, N>>(S::kSharedBytes);
    cayley_gradient<T, N>
        <<<grid_of(batch, S::kMatrices), S::kThreads, S::kSharedBytes, c10::cuda::getCurrentCUDAStream()>>>(
            Q, G, gradient, batch);
    C10_CUDA_KERNEL_LAUNCH_CHECK();
  };
  if (gradient.n <= kWarpOrder) with_warp_order(gradient.n, launch);
  else with_block_order<acc_t<T>>(gradient.n, launch);
}

template int backward_order<float>();
template int backward_order<double>();
template void launch_backward(const Given<float>&, const Given<float>&, const Gradient<float>&, int64_t);
template void launch_backward(const Given<double>&, const Given<double>&, const Gradient<double>&, int64_t);
template void launch_backward(const Given<at::Half>&, const Given<at::Half>&, const Gradient<at::Half>&,
                              int64_t);
template void launch_backward(const Given<at::BFloat16>&, const Given<at::BFloat16>&,
                              const Gradient<at::BFloat16>&, int64_t);

}  // namespace fastparam::cuda
