// The macros of functions that are always inlined, and of loops that are unrolled.
#pragma once

#define FASTPARAM_INLINE inline __attribute__((always_inline))
// FASTPARAM_ANYWHERE: functions that CUDA devices run, too
#ifdef __CUDACC__
#define FASTPARAM_ANYWHERE __host__ __device__ __forceinline__
#define FASTPARAM_UNROLL _Pragma("unroll")
#else
#define FASTPARAM_ANYWHERE FASTPARAM_INLINE
#define FASTPARAM_UNROLL _Pragma("GCC unroll 16")
#endif
