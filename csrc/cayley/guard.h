// The guard of the Cayley map, shared by CPU, CUDA and tests/simt. It does not depend on torch.
//
// For a skew A, all pivots of I + aA are >= 1 in exact arithmetic, so every kernel eliminates without row
// exchanges, in the type that it computes in. Two checks detect the loss of accuracy that this can cause for
// large A. A matrix fails if
//   before   a row or column of aA has a sum of squares above kLargestSquares,
//   after    the square of the norm of a column of Q differs from 1 by more than column_tolerance.
// On CUDA, orders above those of one block (cayley/cuda/large.cuh) have no first check, and the second one is
// on the rows of Q: their tolerance is kRowTolerance + kToleranceOfSize r, at most kLargestRowTolerance, in
// units of eps, where r is the root mean square of the norms of the rows of aA. A matrix that fails is
// improved by Newton's iteration, as far as that converges, before it is computed again (refine.cuh).
//
// All checks are written so that NaN fails. A matrix that fails is computed again, alone, at any position
// in a batch:
//   1. in double, without row exchanges, and checked again (unless 2 is cheaper, as it is on CUDA),
//   2. in double, with row exchanges,
//   3. and then polished by Q <- Q (3 I - Q^T Q) / 2, which squares the distance to the nearest orthogonal
//      matrix, if one is near. If none is, at norms that leave no correct digit, the CPU uses the orthogonal
//      factor of a QR decomposition.
// A matrix with an entry that is not finite becomes NaN.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>

namespace fastparam {

// Measured: not worse than LU with row exchanges up to norm 8, and mostly worse from 40 on.
constexpr double kLargestSquares = 16;
constexpr double kColumnTolerance = 34;  // times eps, and times sqrt(n / 64) above order 64
template <class T>
T column_tolerance(int64_t n) {
  return static_cast<T>(kColumnTolerance * std::numeric_limits<T>::epsilon() *
                        std::sqrt(std::max(1.0, static_cast<double>(n) / 64)));
}

// From a model in float32 (benchmarks/NOTES.md): nearly all matrices whose error is more than twice that of
// LU with row exchanges fail.
constexpr double kRowTolerance = 6, kToleranceOfSize = 1, kLargestRowTolerance = 512;

// A matrix is polished if max |Q^T Q - I| is below kNear, until it is below kPolished sqrt(n).
constexpr int kPolishSteps = 6;
constexpr double kNear = 0.5, kPolished = 4e-16;

}  // namespace fastparam
