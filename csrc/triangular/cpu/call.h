// One call of a triangular op: a batch of matrices in and out, and the map as data.
#pragma once

#include "../../core/cpu/bits.h"

namespace fastparam::cpu {

// The input by strides, the output contiguous.
template <class T>
struct TriangularMap {
  const BitsOf<T>* in;
  BitsOf<T>* out;
  int64_t batch, n, batch_stride, row_stride;
  BitsOf<T> flip;      // xor of what is mirrored: the sign bit for skew
  BitsOf<T> diagonal;  // and of the diagonal: 0 for skew
  bool lower;
};

}  // namespace fastparam::cpu
