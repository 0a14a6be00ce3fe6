// The exponential of large matrices and its derivative on CUDA.
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>

#include "launch.h"
#include "team.cuh"

namespace fastparam::cuda {

constexpr int64_t kTeamBytes = 64 << 20;  // work space of all teams, if there is more than one

// Up to order 64, one tile is the whole matrix. From 65 to 512, there would be too few tiles of 64.
template <class F>
void with_tile(int n, const F& f) {
  if (n > 64 && n <= 512) f(std::integral_constant<int, 32>{});
  else f(std::integral_constant<int, 64>{});
}

template <class T>
void launch_team(const Program<acc_t<T>>& program, const Batch<T>& batch, const at::TensorOptions& options) {
  using A = acc_t<T>;
  with_tile(batch.n, [&](auto N) {
    using S = TileShape<A, N>;
    constexpr int kShared = sizeof(typename S::Shared);
    const TeamSpace<A, S> space(batch.n);
    const int64_t words = space.words(program.dual);
    const Teams teams =
        share_device<exponential_team<T, N>>(words * static_cast<int64_t>(sizeof(A)), kTeamBytes, batch.count,
                                             space.count(), S::kThreads, S::kBlocks, kShared);
    const at::Tensor memory =
        at::empty({teams.count * words}, options.dtype(c10::CppTypeToScalarType<A>::value));
    const at::Tensor arrived = at::zeros({teams.count}, options.dtype(at::kInt));
    TeamCall<T> call{batch, memory.mutable_data_ptr<A>(),
                     reinterpret_cast<unsigned*>(arrived.mutable_data_ptr<int>()),
                     static_cast<int>(teams.count)};
    void* arguments[] = {const_cast<Program<A>*>(&program), &call};
    C10_CUDA_CHECK(cudaLaunchCooperativeKernel(
        exponential_team<T, N>, dim3(static_cast<unsigned>(teams.count * teams.size)), dim3(S::kThreads),
        arguments, kShared, c10::cuda::getCurrentCUDAStream()));
  });
}

template void launch_team(const Program<float>&, const Batch<float>&, const at::TensorOptions&);
template void launch_team(const Program<double>&, const Batch<double>&, const at::TensorOptions&);
template void launch_team(const Program<float>&, const Batch<at::Half>&, const at::TensorOptions&);
template void launch_team(const Program<float>&, const Batch<at::BFloat16>&, const at::TensorOptions&);

}  // namespace fastparam::cuda
