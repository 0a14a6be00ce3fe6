// The Cayley map on CUDA, with one matrix per block.
#include "block.cuh"
#include "launch.h"

namespace fastparam::cuda {

template <class A>
int block_order() {
  return largest_order<BlockShape, A>();
}

template <class T>
void launch_block(const Given<T>& given, T* Q, int64_t batch, unsigned* flags, int teams) {
  with_block_order<acc_t<T>>(given.n, [&](auto N) {
    using S = BlockShape<acc_t<T>, N>;
    allow_shared<cayley_block<T, N>>(S::kSharedBytes);
    cayley_block<T, N>
        <<<grid_of(batch, 1), S::kThreads, S::kSharedBytes, c10::cuda::getCurrentCUDAStream()>>>(
            given, Q, Limits<acc_t<T>>::of(given.n), flags, teams);
    C10_CUDA_KERNEL_LAUNCH_CHECK();
  });
}

template int block_order<float>();
template int block_order<double>();
template void launch_block(const Given<float>&, float*, int64_t, unsigned*, int);
template void launch_block(const Given<double>&, double*, int64_t, unsigned*, int);
template void launch_block(const Given<at::Half>&, at::Half*, int64_t, unsigned*, int);
template void launch_block(const Given<at::BFloat16>&, at::BFloat16*, int64_t, unsigned*, int);

}  // namespace fastparam::cuda
