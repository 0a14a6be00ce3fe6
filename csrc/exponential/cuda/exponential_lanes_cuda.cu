// The exponential and its derivative for n <= 32 on CUDA.
#include "lanes.cuh"
#include "launch.h"

namespace fastparam::cuda {

template <class T>
bool launch_lanes(const Program<acc_t<T>>& program, const Batch<T>& batch) {
  bool fits = false;
  with_warp_order(batch.n, [&](auto N) {
    using S = LanesShape<acc_t<T>, N>;
    const int bytes = S::shared_bytes(program.dual),
              most = of_current_device(cudaDevAttrMaxSharedMemoryPerBlockOptin);
    fits = bytes <= most;
    if (!fits) return;
    allow_shared<exponential_lanes<T, N>>(smaller(S::shared_bytes(true), most));
    exponential_lanes<T, N>
        <<<grid_of(batch.count, S::kGroups), S::kThreads, bytes, c10::cuda::getCurrentCUDAStream()>>>(program,
                                                                                                      batch);
    C10_CUDA_KERNEL_LAUNCH_CHECK();
  });
  return fits;
}

template bool launch_lanes(const Program<float>&, const Batch<float>&);
template bool launch_lanes(const Program<double>&, const Batch<double>&);
template bool launch_lanes(const Program<float>&, const Batch<at::Half>&);
template bool launch_lanes(const Program<float>&, const Batch<at::BFloat16>&);

}  // namespace fastparam::cuda
