// Tests of the shim itself, which run before those of the kernels: a missing barrier must be detected, a
// deadlock must be reported, and collectives must be correct.
#pragma once
#include "check.h"
#include "simt.h"

__global__ void reverse_in_shared(int* data) {
  __shared__ int line[64];
  line[threadIdx.x] = data[threadIdx.x];
  __syncthreads();
  data[threadIdx.x] = line[blockDim.x - 1 - threadIdx.x];
}
__global__ void reverse_without_barrier(int* data) {
  __shared__ int line[64];
  line[threadIdx.x] = data[threadIdx.x];
  data[threadIdx.x] = line[blockDim.x - 1 - threadIdx.x];
}
__global__ void half_barrier() {
  if (threadIdx.x < 48) __syncthreads();
}
__global__ void half_warp() {
  if (threadIdx.x < 16) __syncwarp();
}
__global__ void mixed_warp() {
  if (threadIdx.x < 16) __syncwarp();
  else __ballot_sync(~0u, 1);
}
__global__ void outside_dynamic() { reinterpret_cast<float*>(simt::machine.dynamic)[threadIdx.x] = 1.f; }
__global__ void collectives(int* out, double* doubles) {
  const int t = threadIdx.x, lane = t % 32;
  int sum = t;
  for (int by = 16; by > 0; by /= 2) sum += __shfl_xor_sync(~0u, sum, by);
  out[t] = sum;
  out[64 + t] = __shfl_down_sync(~0u, t, 1) + 100 * __shfl_up_sync(~0u, t, 2, 8);
  out[128 + t] = static_cast<int>(__ballot_sync(~0u, lane % 3 == 0));
  out[192 + t] = __syncthreads_count(t % 5 == 0) + 1000 * __syncthreads_or(t == 40);
  doubles[t] = __shfl_sync(~0u, t + 0.5, 3, 8);
  if (lane < 16) out[t] += __any_sync(0xFFFFu, lane == 15) + __all_sync(0xFFFFu, lane < 15);
}

static bool throws(const char* word, void (*kernel)()) {
  try {
    simt::launch(1, 64, 16, kernel);
  } catch (const simt::Error& error) {
    return std::strstr(error.what(), word) != nullptr;
  }
  return false;
}

static void shim() {
  simt::Buffer<int> data(64);
  auto reversed = [&](void (*kernel)(int*)) {
    for (int i = 0; i < 64; ++i) data[i] = i;
    simt::launch(1, 64, 0, kernel, data.data());
    for (int i = 0; i < 64; ++i)
      if (data[i] != 63 - i) return false;
    return true;
  };
  CHECK(reversed(reverse_in_shared), "shared memory and barrier");
  CHECK(!reversed(reverse_without_barrier), "a missing barrier shows");
  CHECK(throws("deadlock in block 0: at the block barrier 0 1", half_barrier), "half a block at a barrier");
  CHECK(throws("finished 48 49", half_barrier), "the report names the others");
  CHECK(throws("deadlock", half_warp), "half a warp at a barrier");
  CHECK(throws("different warp operations", mixed_warp), "mixed warp operations");
#ifndef __SANITIZE_ADDRESS__
  CHECK(throws("outside dynamic", outside_dynamic), "write outside dynamic shared memory");
#endif
  simt::Buffer<int> out(256);
  simt::Buffer<double> doubles(64);
  simt::launch(1, 64, 0, collectives, out.data(), doubles.data());
  for (int t = 0; t < 64; ++t) {
    const int base = t / 32 * 32, lane = t % 32;
    CHECK(out[t] == 496 + 32 * base + (lane < 16), "xor sum, any, all");
    CHECK(out[64 + t] == (lane < 31 ? t + 1 : t) + 100 * (t % 8 >= 2 ? t - 2 : t), "down, up");
    CHECK(out[128 + t] == static_cast<int>(0x49249249u), "ballot");
    CHECK(out[192 + t] == 13 + 1000, "count, or");
    CHECK(doubles[t] == t / 8 * 8 + 3.5, "shuffle of doubles");
  }
  for (float f : {1.f, -2.5f, 65504.f, 6.1e-5f, 5.96e-8f, 1e-9f, 1e6f}) {
    const float back = simt::half(f);
    CHECK(f > 65504.f ? std::isinf(back) : std::fabs(back - f) <= std::max(std::fabs(f) * 0x1p-11f, 0x1p-25f),
          "half");
  }
}
