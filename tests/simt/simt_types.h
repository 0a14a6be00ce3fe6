// The types of device code: CUDA's keywords, vectors and built-in variables, and the 16-bit floats. Included
// by simt.h.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>

#define __global__
#define __device__
#define __host__
#ifndef __forceinline__
#define __forceinline__ inline
#endif
#define __launch_bounds__(...)
#define __grid_constant__
#define __align__(n) alignas(n)
#define __shared__ thread_local  // at block scope this implies static

struct uint3 {
  unsigned x, y, z;
};
struct dim3 {
  unsigned x = 1, y = 1, z = 1;
  dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};
struct alignas(8) float2 {
  float x, y;
};
struct alignas(16) float4 {
  float x, y, z, w;
};
struct alignas(16) double2 {
  double x, y;
};
struct alignas(8) int2 {
  int x, y;
};
struct alignas(16) int4 {
  int x, y, z, w;
};
struct alignas(16) uint4 {
  unsigned x, y, z, w;
};
inline float2 make_float2(float x, float y) { return {x, y}; }
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }
inline int4 make_int4(int x, int y, int z, int w) { return {x, y, z, w}; }
inline uint3 threadIdx, blockIdx;
inline dim3 blockDim, gridDim;

namespace simt {

// Storage and the two conversions, which round to nearest even.
struct bfloat16 {
  uint16_t bits;
  bfloat16() = default;
  explicit bfloat16(float f) {
    uint32_t u;
    std::memcpy(&u, &f, 4);
    bits = std::isnan(f) ? 0x7FC0 : static_cast<uint16_t>((u + 0x7FFF + (u >> 16 & 1)) >> 16);
  }
  operator float() const {
    uint32_t u = static_cast<uint32_t>(bits) << 16;
    float f;
    std::memcpy(&f, &u, 4);
    return f;
  }
};
struct half {
  uint16_t bits;
  half() = default;
  explicit half(float f) {
    const uint16_t sign = std::signbit(f) ? 0x8000 : 0;
    const float a = std::fabs(f);
    if (std::isnan(f)) bits = 0x7E00;
    else if (a >= 65520.f) bits = sign | 0x7C00;
    else if (a < 6.103515625e-5f) bits = sign | static_cast<uint16_t>(std::nearbyint(a * 16777216.f));
    else {
      int e;
      const float m = std::frexp(a, &e);
      bits = sign | static_cast<uint16_t>(((e + 13) << 10) + std::nearbyint(m * 2048.f));
    }
  }
  operator float() const {
    const int e = bits >> 10 & 31, m = bits & 1023;
    const float a = e == 31  ? (m ? NAN : INFINITY)
                    : e == 0 ? std::ldexp(float(m), -24)
                             : std::ldexp(float(m + 1024), e - 25);
    return bits & 0x8000 ? -a : a;
  }
};

}  // namespace simt
