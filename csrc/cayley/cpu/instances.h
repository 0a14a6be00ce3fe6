// The kernels are compiled once per type, in sources that include no torch operations (cayley_float_cpu.cpp
// and its siblings). Most of the build time is spent there, so two compilers can share it. Other sources
// call them through these declarations.
#pragma once

#include <c10/util/BFloat16.h>
#include <c10/util/Half.h>

#include "batch.h"
#include "tall_batch.h"

namespace fastparam::cpu {

#define FASTPARAM_CAYLEY_BATCHES(linkage, T)                 \
  linkage template void forward_batch(const CayleyCall<T>&); \
  linkage template void solve_batch(const CayleyCall<T>&);   \
  linkage template void backward_batch(const CayleyGradient<T>&);
#define FASTPARAM_CAYLEY_ELIMINATION(linkage, T)                               \
  linkage template void invert(const Square<T>&, T* scratch, const Prefetch&); \
  linkage template void invert_with_exchanges(const Exchanges<T>&);
#define FASTPARAM_CAYLEY_TALL(linkage, T) linkage template void tall_batch(const TallCall<T>&);

FASTPARAM_CAYLEY_BATCHES(extern, c10::Half)
FASTPARAM_CAYLEY_BATCHES(extern, c10::BFloat16)
FASTPARAM_CAYLEY_BATCHES(extern, float)
FASTPARAM_CAYLEY_BATCHES(extern, double)
FASTPARAM_CAYLEY_ELIMINATION(extern, float)
FASTPARAM_CAYLEY_ELIMINATION(extern, double)
FASTPARAM_CAYLEY_TALL(extern, float)
FASTPARAM_CAYLEY_TALL(extern, double)

}  // namespace fastparam::cpu
