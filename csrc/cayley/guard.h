// The guard of the Cayley map: one contract, for CPU, CUDA and tests/simt alike; free of torch.
//
// Of a skew A all pivots of I + aA are >= 1 in exact arithmetic, so every kernel eliminates without row
// exchanges, in the type it computes in. What that costs in digits where A is large, two looks find:
//   before   a row or column of aA has a sum of squares above kLargestSquares,
//   after    the square of the norm of a column of Q differs from 1 by more than column_tolerance.
// Both are written so that NaN fails. A matrix that fails is done again, alone, wherever it stands in a
// batch:
//   1. in double, without row exchanges, and looked at again (where that is cheaper than 2: not on CUDA),
//   2. in double, with row exchanges,
//   3. and polished, Q <- Q (3 I - Q^T Q) / 2, which squares the distance to the orthogonal matrix next to
//   it, where one is near. Where none is, at norms that leave no digit, the CPU takes the orthogonal factor
//   of QR.
// A matrix with an entry that is not finite becomes NaN.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>

namespace fastparam {

constexpr double kLargestSquares =
    16;  // measured: up to norm 8 no worse than LU with row exchanges, from 40 on mostly worse
constexpr double kColumnTolerance = 34;  // eps, times sqrt(n / 64) above order 64
template <class T>
T column_tolerance(int64_t n) {
  return static_cast<T>(kColumnTolerance * std::numeric_limits<T>::epsilon() *
                        std::sqrt(std::max(1.0, static_cast<double>(n) / 64)));
}

// max |Q^T Q - I| is polished where it is below kNear, until it is below kPolished sqrt(n).
constexpr int kPolishSteps = 6;
constexpr double kNear = 0.5, kPolished = 4e-16;

}  // namespace fastparam
