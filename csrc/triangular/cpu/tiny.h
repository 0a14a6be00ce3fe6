// Tiny matrices: the order is a constant, and all loops are unrolled.
#pragma once

#include <numeric>

#include "call.h"

namespace fastparam::cpu {

// Matrices begin to end, with any strides. It is not inlined, so that it is compiled once for all levels,
// because wider registers are of no use here.
template <class T, int N, bool Adjoint, bool Lower>
__attribute__((noinline)) void by_element(const TriangularMap<T>& map, int64_t begin, int64_t end) {
  using Bits = BitsOf<T>;
  for (int64_t b = begin; b < end; ++b) {
    const Bits* x = map.in + b * map.batch_stride;
    Bits* y = map.out + b * N * N;
#pragma GCC unroll 8
    for (int i = 0; i < N; ++i) {
      y[i * N + i] = x[i * map.row_stride + i] & map.diagonal;
#pragma GCC unroll 8
      for (int j = i + 1; j < N; ++j) {
        const int r = Lower ? j : i, c = Lower ? i : j;  // position of the given entry
        const Bits given = x[r * map.row_stride + c];
        if constexpr (Adjoint) {
          y[r * N + c] = add<T, 1>(Vec<Bits, 1>{given},
                                   Vec<Bits, 1>{static_cast<Bits>(x[c * map.row_stride + r] ^ map.flip)})[0];
          y[c * N + r] = 0;
        } else {
          y[r * N + c] = given;
          y[c * N + r] = given ^ map.flip;
        }
      }
    }
  }
}

template <class T, int N, bool Adjoint, int Bytes>
struct Tiny {
  using Bits = BitsOf<T>;

  // Vectors of kLanes elements traverse the dense matrices one after the other; kPeriod vectors are a whole
  // number of matrices. The mirrored elements of a vector are selected from two vectors that begin kReach
  // before it. Registers with such a selection exist from AVX2 on.
  static constexpr int kElements = N * N, kLanes = sizeof(Bits) == 8 ? Bytes / 8 : Bytes / 4;
  static constexpr int kPeriod = kElements / std::gcd(kElements, kLanes),
                       kReach = kLanes % kElements == 0 ? 0 : (N - 1) * (N - 1);
  static constexpr bool kByVector = Bytes >= 32 && N > 1 && 2 * kReach <= kLanes;
  static constexpr int64_t kMatrices = kPeriod * kLanes / kElements, kWorthwhile = 4 * kMatrices;
  using Row = Vec<Bits, kLanes>;

  const TriangularMap<T> map;

  template <bool Lower>
  FASTPARAM_INLINE void by_vector(int64_t begin, int64_t end) const {
    Row mirror[kPeriod], given[kPeriod], diagonal[kPeriod];
    for (int e = 0; e < kPeriod * kLanes; ++e) {
      const int v = e / kLanes, lane = e % kLanes, i = e % kElements / N, j = e % kElements % N;
      mirror[v][lane] = static_cast<Bits>(lane + kReach + (j - i) * (N - 1));
      given[v][lane] = (Lower ? i > j : i < j) ? ~Bits(0) : 0;
      diagonal[v][lane] = i == j ? ~Bits(0) : 0;
    }
    for (int64_t b = begin; b < end; b += kMatrices)
      for (int v = 0; v < kPeriod; ++v) {
        const int64_t at = b * kElements + v * kLanes;
        const Row x = load<Row>(map.in + at), a = load<Row>(map.in + at - kReach);
        const Row y =
            (kReach == 0 ? shuffle<Bits, kLanes>(a, a, mirror[v])
                         : shuffle<Bits, kLanes>(a, load<Row>(map.in + at - kReach + kLanes), mirror[v])) ^
            map.flip;
        Row value;
        if constexpr (Adjoint) value = add<T, kLanes>(x, y) & given[v];
        else value = (x & given[v]) | (y & ~given[v] & ~diagonal[v]);
        store(map.out + at, value | (x & diagonal[v] & map.diagonal));
      }
  }

  // The first and last matrices are processed by element, and so are all matrices whose rows are not dense.
  template <bool Lower>
  FASTPARAM_INLINE void run(int64_t begin, int64_t end) const {
    const bool dense = map.row_stride == N && map.batch_stride == kElements;
    if constexpr (kByVector)
      if (dense && end - begin >= kWorthwhile) {
        const int64_t first = begin + (kReach > 0),
                      last = first + (end - 1 - first - (kReach > 0)) / kMatrices * kMatrices;
        by_element<T, N, Adjoint, Lower>(map, begin, first);
        by_vector<Lower>(first, last);
        begin = last;
      }
    by_element<T, N, Adjoint, Lower>(map, begin, end);
  }
};

template <class T, int N, bool Adjoint>
struct TinyBody {
  template <int Bytes>
  static FASTPARAM_INLINE void run(const TriangularMap<T>* map, int64_t begin, int64_t end) {
    const Tiny<T, N, Adjoint, Bytes> tiny{*map};
    map->lower ? tiny.template run<true>(begin, end) : tiny.template run<false>(begin, end);
  }
};

}  // namespace fastparam::cpu
