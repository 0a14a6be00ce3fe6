// The CUDA names of device code: barriers, warp operations, intrinsics. Included by simt.h.
#pragma once

inline void __syncthreads() { simt::block_barrier(simt::Op::sync, 0); }
inline int __syncthreads_or(int p) { return simt::block_barrier(simt::Op::any, p); }
inline int __syncthreads_count(int p) { return simt::block_barrier(simt::Op::count, p); }
inline void __threadfence() {}
inline void __nanosleep(unsigned) { simt::spin(); }
inline void __syncwarp(unsigned mask = ~0u) { simt::warp_collective(simt::Op::sync, mask, 0, 0); }
inline unsigned __ballot_sync(unsigned mask, int p) {
  return static_cast<unsigned>(simt::warp_collective(simt::Op::ballot, mask, p != 0, 0));
}
inline int __any_sync(unsigned mask, int p) { return __ballot_sync(mask, p) != 0; }
inline int __all_sync(unsigned mask, int p) { return __ballot_sync(mask, p) == mask; }
template <class T>
T __shfl_sync(unsigned mask, T v, int from, int width = 32) {
  const int lane = simt::machine.current & 31;
  return simt::shuffle(mask, v, (lane & ~(width - 1)) + (from & (width - 1)));
}
template <class T>
T __shfl_xor_sync(unsigned mask, T v, int bits, int width = 32) {
  const int lane = simt::machine.current & 31, from = lane ^ bits;
  return simt::shuffle(mask, v, from / width > lane / width ? lane : from);
}
template <class T>
T __shfl_down_sync(unsigned mask, T v, int by, int width = 32) {
  const int lane = simt::machine.current & 31;
  return simt::shuffle(mask, v, (lane & (width - 1)) + by < width ? lane + by : lane);
}
template <class T>
T __shfl_up_sync(unsigned mask, T v, int by, int width = 32) {
  const int lane = simt::machine.current & 31;
  return simt::shuffle(mask, v, (lane & (width - 1)) >= by ? lane - by : lane);
}
template <class T>
T __ldg(const T* p) {
  return *p;
}
template <class T>
T atomicAdd(T* p, T v) {
  const T old = *p;
  *p += v;
  return old;
}
inline unsigned atomicOr(unsigned* p, unsigned v) {
  const unsigned old = *p;
  *p |= v;
  return old;
}
inline int atomicOr(int* p, int v) {
  const int old = *p;
  *p |= v;
  return old;
}
inline double __dmul_rn(double a, double b) {
  const volatile double product = a * b;  // is rounded before it is used
  return product;
}
inline float __fdividef(float a, float b) { return a / b; }
inline float __frcp_rn(float a) { return 1.f / a; }
inline float rsqrtf(float a) { return 1.f / std::sqrt(a); }
using std::max;
using std::min;
