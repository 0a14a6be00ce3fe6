// The exponential of skew matrices of order 2 to 4 and its derivative on CUDA.
#include "launch.h"
#include "rotations.cuh"

namespace fastparam::cuda {

template <class T>
void launch_rotations(const Batch<T>& batch) {
  const auto launch = [&](auto N) {
    exponential_rotations<T, N>
        <<<grid_of(batch.count, kRotations), kRotations, 0, c10::cuda::getCurrentCUDAStream()>>>(batch);
  };
  if (batch.n == 2) launch(std::integral_constant<int, 2>{});
  else if (batch.n == 3) launch(std::integral_constant<int, 3>{});
  else launch(std::integral_constant<int, 4>{});
  C10_CUDA_KERNEL_LAUNCH_CHECK();
}

template void launch_rotations(const Batch<float>&);
template void launch_rotations(const Batch<double>&);
template void launch_rotations(const Batch<at::Half>&);
template void launch_rotations(const Batch<at::BFloat16>&);

}  // namespace fastparam::cuda
