// Reads and writes matrices of order 2 to 4 that are kept in registers, one matrix per lane of a vector.
#pragma once

#include <cstring>

#include "../simd.h"

namespace fastparam::cpu {

// Converts rows of Size numbers, one row per matrix, to Size vectors with one number of each row, and back.
template <class T, int Bytes, int Size>
struct Columns {
  static constexpr int L = Bytes / sizeof(T), kTiles = (Size + L - 1) / L;
  using V = Vec<T, L>;

  static constexpr int first_of(int tile) { return Size < L ? 0 : tile * L < Size - L ? tile * L : Size - L; }

  // Memory may be read up to `end`. Missing rows are copies of the last one.
  static FASTPARAM_INLINE void read(const T* x, const T* end, int live, V (&column)[Size]) {
    T few[L * Size + L];
    if (live < L || x + L * Size + L > end) {
      std::memcpy(few, x, live * Size * sizeof(T));
      for (int l = live; l < L; ++l) std::memcpy(few + l * Size, few + (live - 1) * Size, Size * sizeof(T));
      x = few;
    }
#pragma GCC unroll 16
    for (int tile = 0; tile < kTiles; ++tile) {
      const int first = first_of(tile);
      V t[L];
#pragma GCC unroll 16
      for (int l = 0; l < L; ++l) t[l] = load<V>(x + l * Size + first);
      transpose<T, L>(t);
#pragma GCC unroll 16
      for (int l = 0; l < L; ++l)
        if (first + l < Size) column[first + l] = t[l];
    }
  }
  static FASTPARAM_INLINE void write(const V (&column)[Size], int live, T* y) {
    T few[L * Size + L];
    T* const to = live < L || Size < L ? few : y;
#pragma GCC unroll 16
    for (int tile = 0; tile < kTiles; ++tile) {
      const int first = first_of(tile);
      V t[L];
#pragma GCC unroll 16
      for (int l = 0; l < L; ++l) t[l] = column[first + l < Size ? first + l : Size - 1];
      transpose<T, L>(t);
#pragma GCC unroll 16
      for (int l = 0; l < L; ++l)
        store(to + l * Size + first, t[l]);  // entries beyond a row are overwritten by the next row
    }
    if (to == few) std::memcpy(y, few, live * Size * sizeof(T));
  }
};

// The entries above or below the diagonal, with one matrix per lane.
template <class T, int N, int Bytes>
struct TinyTriangle {
  static constexpr int L = Bytes / sizeof(T), kHalf = N * (N - 1) / 2;
  using V = Vec<T, L>;

  // The position of entry (i, j), i < j, in `half`. With `lower` it is that of (j, i).
  static constexpr int place(int i, int j) { return i * (2 * N - i - 1) / 2 + j - i - 1; }

  // Memory may be read up to `end`.
  static FASTPARAM_INLINE void read(const T* x, const T* end, int live, bool lower, V (&half)[kHalf]) {
    V all[N * N];
    Columns<T, Bytes, N * N>::read(x, end, live, all);
#pragma GCC unroll 16
    for (int i = 0; i < N; ++i)
#pragma GCC unroll 16
      for (int j = i + 1; j < N; ++j) half[place(i, j)] = lower ? all[j * N + i] : all[i * N + j];
  }
  static FASTPARAM_INLINE void write(const V (&half)[kHalf], int live, bool lower, T* y) {
    V all[N * N];
#pragma GCC unroll 16
    for (int i = 0; i < N; ++i) {
      all[i * N + i] = V{};
#pragma GCC unroll 16
      for (int j = i + 1; j < N; ++j) {
        all[i * N + j] = lower ? V{} : half[place(i, j)];
        all[j * N + i] = lower ? half[place(i, j)] : V{};
      }
    }
    Columns<T, Bytes, N * N>::write(all, live, y);
  }
};

}  // namespace fastparam::cpu
