// Chooses the algorithm for a matrix. The choice depends only on the order, the type and the level, and
// never on the batch or the threads, so a matrix has the same bits at any position in a batch.
// csrc/README.md has a table of the algorithms, and benchmarks/NOTES.md says where the numbers come from.
#pragma once

#include <algorithm>
#include <cstdint>

namespace fastparam::cpu {

enum class Path { tiny, lanes, rows, blocks };

constexpr int64_t kLargestTiny = 4;   // orders from 2 to this use the closed form
constexpr int64_t kLeaf = 64;         // the largest order inverted by rows: its rows fill 4 vectors of 16
constexpr int64_t kLarge = 768;       // from this order on, kLargeBlock pivots are eliminated at once
constexpr int64_t kLargeBlock = 128;  // these blocks are inverted by blocks of kLeaf
constexpr int64_t kTurned = 256;      // from this order on, gradients begin with G^T
constexpr int64_t kPivotPanel = 32;   // the number of columns in which rows are exchanged at a time

struct Plan {
  Path path;
  int64_t block;  // pivots eliminated at once
};

// A few blocks of about the same size. All but the last consist of whole cache lines.
inline int64_t block_of(int64_t n) {
  if (n >= kLarge) return kLargeBlock;
  const int64_t blocks = (n + kLeaf - 1) / kLeaf;
  return std::min<int64_t>(kLeaf, ((n + blocks - 1) / blocks + 15) / 16 * 16);
}

// The largest order processed by lanes, for `lanes` per vector. Up to this order both directions are faster
// by lanes than by rows: in full batches 1.2 times at these orders, and 2 to 4 times at half of them.
inline int64_t largest_by_lanes(int64_t lanes) {
  return lanes == 16 ? 28 : lanes == 8 ? 20 : lanes == 4 ? 16 : 12;
}

inline Plan plan(int64_t n, int64_t element_bytes, int64_t vector_bytes) {
  if (n > 1 && n <= kLargestTiny) return {Path::tiny, n};
  if (n <= largest_by_lanes(vector_bytes / element_bytes)) return {Path::lanes, n};
  return n <= kLeaf ? Plan{Path::rows, n} : Plan{Path::blocks, block_of(n)};
}

}  // namespace fastparam::cpu
