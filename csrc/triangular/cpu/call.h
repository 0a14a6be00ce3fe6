// A call of a triangular op: a batch of matrices in and out, and the map as data.
#pragma once

#include "../../core/cpu/bits.h"

namespace fastparam::cpu {

// The input has strides, and the output is contiguous.
template <class T>
struct TriangularMap {
  const BitsOf<T>* in;
  BitsOf<T>* out;
  int64_t batch, n, batch_stride, row_stride;
  BitsOf<T> flip;      // xor for mirrored entries: the sign bit for skew
  BitsOf<T> diagonal;  // mask for the diagonal: 0 for skew
  bool lower;
};

}  // namespace fastparam::cpu
