// Teams of blocks that run at the same time and wait for each other.
#pragma once
#include "common.cuh"

namespace fastparam::cuda {

// A barrier for the blocks of a team. `round` is the number of the barrier, counted from 1.
__device__ __forceinline__ void team_barrier(unsigned* arrived, unsigned round, unsigned size) {
  __syncthreads();
  if (size == 1) return;
  if (threadIdx.x == 0) {
    __threadfence();
    atomicAdd(arrived, 1u);
    while (static_cast<int>(*static_cast<volatile unsigned*>(arrived) - round * size) < 0) __nanosleep(20);
    __threadfence();
  }
  __syncthreads();
}

}  // namespace fastparam::cuda
