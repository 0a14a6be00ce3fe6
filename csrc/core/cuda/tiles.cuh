// Pairs of mirrored tiles of a batch of square matrices.
#pragma once
#include "common.cuh"

namespace fastparam::cuda {

// Finds pair number k of mirrored tiles, with `tiles` tiles per side. Row q of the triangle and the q-th row
// from its end together form a row of a rectangle, so no number is unused, and consecutive numbers are
// neighbours along a row.
__device__ __forceinline__ void tile_pair(unsigned k, unsigned tiles, unsigned& matrix, int& I, int& J) {
  const unsigned width = tiles | 1, pairs = (tiles + 1) / 2 * width;
  matrix = k / pairs;
  const unsigned q = (k - matrix * pairs) / width, s = k - matrix * pairs - q * width, length = tiles - q;
  I = static_cast<int>(s < length ? q : length - 1 + tiles % 2);
  J = I + static_cast<int>(s < length ? s : s - length);
}

constexpr int kSquare = 32;  // order of a tile: kBlock threads, 4 rows each
constexpr int kSquareRows = kBlock / kSquare;

// The pair of tiles of a block: the given one at (row, column), and the mirrored one at (column, row).
struct TilePair {
  unsigned matrix;
  int row, column, y, x;

  __device__ __forceinline__ TilePair(int n, bool lower)
      : y(threadIdx.x / kSquare),
        x(threadIdx.x % kSquare) {
    int I, J;
    tile_pair(blockIdx.x, (static_cast<unsigned>(n) + kSquare - 1) / kSquare, matrix, I, J);
    row = (lower ? J : I) * kSquare;
    column = (lower ? I : J) * kSquare;
  }
};

}  // namespace fastparam::cuda
