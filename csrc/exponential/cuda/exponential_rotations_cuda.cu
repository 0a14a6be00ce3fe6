// The exponential of matrices of order 1, and of skew matrices up to order 4, and its derivative on CUDA.
#include "launch.h"
#include "rotations.cuh"

namespace fastparam::cuda {

template <class T>
void launch_closed_form(const Batch<T>& batch) {
  const auto launch = [&](auto kernel) {
    kernel<<<grid_of(batch.count, kRotations), kRotations, 0, c10::cuda::getCurrentCUDAStream()>>>(batch);
  };
  switch (batch.n) {
    case 1: launch(exponential_numbers<T>); break;
    case 2: launch(exponential_rotations<T, 2>); break;
    case 3: launch(exponential_rotations<T, 3>); break;
    default: launch(exponential_rotations<T, 4>);
  }
  C10_CUDA_KERNEL_LAUNCH_CHECK();
}

template void launch_closed_form(const Batch<float>&);
template void launch_closed_form(const Batch<double>&);
template void launch_closed_form(const Batch<at::Half>&);
template void launch_closed_form(const Batch<at::BFloat16>&);

}  // namespace fastparam::cuda
