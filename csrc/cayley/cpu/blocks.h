// Larger matrices: elimination with a block of pivots at once.
//
// A step computes D = (I + S_kk)^-1 - I from the diagonal block, and P = S_k + D S_k from its rows, with
// P_kk = D. All other rows become S_i - S_ik P, where the entry at the position of S_ik is first replaced by
// -S_ik. All the work is in this last product. Its strips of columns are independent of each other, so
// threads can share them without changing any result.
//
// With signs, D = (diag(signs) + S_kk)^-1, P = D S_k, and the entry at the position of S_ik is replaced by 0.
#pragma once

#include "../../core/cpu/dense/product.h"
#include "../../core/cpu/dense/threads.h"
#include "../guard.h"
#include "columns.h"
#include "plan.h"
#include "rows.h"
#include "signs.h"
#include "source.h"

namespace fastparam::cpu {

template <class T>
struct BlockStep {
  Square<T> whole, delta;  // delta: D
  T* column;               // -S_ik for all i, rows delta.width apart
  int64_t k;
};

// Copies S_kk, which is inverted to D in place, and the columns above and below it.
template <class T, bool Signed>
struct ColumnBody {
  template <int Bytes>
  static FASTPARAM_INLINE void run(const BlockStep<T>* step) {
    const auto& [S, D, column, k] = *step;
    for (int64_t i = 0; i < D.rows; ++i) {
      std::memcpy(D.S + i * D.stride, S.S + (k + i) * S.stride + k, D.rows * sizeof(T));
      std::memset(D.S + i * D.stride + D.rows, 0, (D.width - D.rows) * sizeof(T));
    }
    for (int64_t i = 0; i < S.rows; ++i)
      for (int64_t j = 0; j < D.rows; ++j) {
        T& s = S.S[i * S.stride + k + j];
        column[i * D.width + j] = -s;
        if (i < k || i >= k + D.rows) s = Signed ? T(0) : -s;
      }
  }
};

template <class T, bool Signed>
struct StripBody {
  template <int Bytes>
  static FASTPARAM_INLINE void run(const BlockStep<T>* step, int64_t begin, int64_t end) {
    constexpr int W = Bytes / sizeof(T);
    const auto& [S, D, column, k] = *step;
    alignas(64) T panel[kLargeBlock * kStrip];
    for (int64_t strip = begin; strip < end; ++strip) {
      const int64_t j = strip * kStrip, columns = std::min<int64_t>(kStrip, S.width - j);
      const bool own = j >= k && j + columns <= k + D.rows;  // all columns are replaced by those of D
      T* const rows = S.S + k * S.stride + j;
      if (!own) {
        copy_strip<T, W>(rows, S.stride, D.rows, columns, panel);
        Product<T, Bytes>{D.S, D.stride, panel, kStrip, rows, S.stride, D.rows, !Signed}.template run<false>(
            0, D.rows, 0, columns);
      }
      for (int64_t i = 0; i < D.rows; ++i)
        for (int64_t c = std::max(j, k); c < std::min(j + columns, k + D.rows); ++c)
          S.S[(k + i) * S.stride + c] = D.S[i * D.stride + c - k];
      copy_strip<T, W>(rows, S.stride, D.rows, columns, panel);
      const Product<T, Bytes> product{column, D.width, panel, kStrip, S.S + j, S.stride, D.rows, true};
      product.template run<false>(0, k, 0, columns);
      product.template run<false>(k + D.rows, S.rows, 0, columns);
    }
  }
};

// The number of elements of work space that `invert` needs in addition to S.
inline int64_t block_scratch(int64_t n) {
  if (n <= kLeaf) return 0;
  const int64_t block = block_of(n);
  return block * largest_stride(block) + (n + 4) * largest_stride(block) + block_scratch(block);
}

template <class T>
struct LeafInvert {
  template <int Bytes, class... Signs>
  static FASTPARAM_INLINE void run(const Square<T>* S, const Prefetch* next, Signs... signs) {
    Rows<T, Bytes>{S->S, static_cast<int>(S->rows), static_cast<int>(S->stride), *next}.invert(
        static_cast<int>(S->width), signs...);
  }
};

// Replaces S by (I + S)^-1 - I or, with signs, by (diag(signs) + S)^-1; a sign that is 0 is chosen.
template <class T, class... Signs>
void invert(const Square<T>& S, T* scratch, const Prefetch& next, Signs... signs) {
  constexpr bool kSigned = sizeof...(signs) > 0;
  if (S.rows <= kLeaf) return run_simd<LeafInvert<T>>(&S, &next, signs...);
  const int64_t block = block_of(S.rows), lanes = vector_bytes() / sizeof(T);
  for (int64_t k = 0; k < S.rows; k += block) {
    const Padded<T> padded(std::min(block, S.rows - k), lanes);
    const Square<T> D{scratch, padded.rows, padded.width, padded.stride};
    T* const column = scratch + block * largest_stride(block);
    const BlockStep<T> step{S, D, column, k};
    run_simd<ColumnBody<T, kSigned>>(&step);
    invert(D, column + (S.rows + 4) * largest_stride(block), Prefetch(), signs + k...);
    parallel_tasks<StripBody<T, kSigned>>(S.rows, strips_of(S.width), &step);
  }
}

// ---- forward ----------------------------------------------------------------------------------------------

template <class T, class In>
struct Forward {
  CayleyCall<In> call;
  int64_t m;
  Square<T> S;
  uint8_t* strip_failed;
};

// aA. A task is kStrip rows.
template <class T, class In>
struct SetBody {
  template <int Bytes>
  static FASTPARAM_INLINE void run(const Forward<T, In>* f, int64_t begin, int64_t end) {
    constexpr int W = Bytes / sizeof(T);
    const SkewTiles<T, W, In> tiles{Source<In>(f->call, f->m),    f->S.S, f->S.rows, f->S.width, f->S.stride,
                                    static_cast<T>(f->call.alpha)};
    for (int64_t r = begin * kStrip; r < std::min(end * kStrip, f->S.width); r += W) tiles.tile_row(r);
  }
};

template <class T, class In>
struct BeforeBody {
  template <int Bytes>
  static FASTPARAM_INLINE void run(const Forward<T, In>* f, int64_t begin, int64_t end) {
    constexpr int W = Bytes / sizeof(T);
    for (int64_t strip = begin; strip < end; ++strip) {
      const int64_t j = strip * kStrip, last = std::min(j + kStrip, f->call.n);
      f->strip_failed[strip] =
          !columns_near<T, W>(f->S.S, f->S.stride, f->call.n, j, last, T(0), static_cast<T>(kLargestSquares),
                              [](int64_t, int64_t, auto) __attribute__((always_inline)) {});
    }
  }
};

// Q = (2 D + I) times the signs, and the guard, by strips of columns.
template <class T, class In>
struct AfterBody {
  template <int Bytes>
  static FASTPARAM_INLINE void run(const Forward<T, In>* f, int64_t begin, int64_t end) {
    constexpr int W = Bytes / sizeof(T);
    for (int64_t strip = begin; strip < end; ++strip) {
      const int64_t j = strip * kStrip, last = std::min(j + kStrip, f->call.n);
      for (int64_t i = j; i < last; ++i) f->S.row(i)[i] += T(0.5);
      f->strip_failed[strip] = !(f->call.signs ? write<W, true>(*f, j, last) : write<W, false>(*f, j, last));
    }
  }
  // Q = 2 S D. The diagonal of S is that of D + 1/2.
  template <int W, bool Signed>
  static FASTPARAM_INLINE bool write(const Forward<T, In>& f, int64_t begin, int64_t end) {
    const int64_t n = f.call.n;
    In* const Q = f.call.out + f.m * n * n;
    MaskOf<In, W> flips[kStrip / W] = {};
    for (int64_t j = begin; Signed && j < end; j += W)
      flips[(j - begin) / W] = flips_at<In, W>(f.call.signs_of(f.m), j, n);
    return columns_near<T, W>(f.S.S, f.S.stride, n, begin, end, T(0.25),
                              static_cast<T>(column_tolerance<In>(n)) / 4,
                              [&](int64_t i, int64_t j, const Vec<T, W>& s) __attribute__((always_inline)) {
                                Vec<In, W> q = __builtin_convertvector(s + s, Vec<In, W>);
                                if (Signed) q = flipped(q, flips[(j - begin) / W]);
                                if (j + W <= n) store(Q + i * n + j, q);
                                else std::memcpy(Q + i * n + j, &q, (n - j) * sizeof(In));
                              });
  }
};

template <class T>
int64_t forward_scratch_bytes(int64_t n) {
  return ((n + 4) * largest_stride(n + 4) + block_scratch(n + 4)) * sizeof(T) + n;
}

// Returns whether the guard holds.
template <class T, class In>
bool matrix_forward(const CayleyCall<In>& call, int64_t m, void* scratch) {
  const int64_t n = call.n;
  const Padded<T> padded(n, vector_bytes() / sizeof(T));
  const Square<T> S{static_cast<T*>(scratch), padded.rows, padded.width, padded.stride};
  T* const rest = S.row(S.rows);
  const int64_t strips = strips_of(S.width);
  uint8_t* const failed = reinterpret_cast<uint8_t*>(rest + block_scratch(n + 4));
  const auto holds = [&] { return std::none_of(failed, failed + strips, [](uint8_t f) { return f != 0; }); };
  const Forward<T, In> forward{call, m, S, failed};
  parallel_tasks<SetBody<T, In>>(n, strips, &forward);
  if (std::is_same_v<T, In>) {
    parallel_tasks<BeforeBody<T, In>>(n, strips, &forward);
    if (!holds()) return false;
  }
  const In* const following = call.in + std::min(m + 1, call.batch - 1) * call.entries();
  invert(S, rest, Prefetch(following, following, call.out + m * n * n, n * n * sizeof(In), S.rows / kPivots));
  parallel_tasks<AfterBody<T, In>>(n, strips, &forward);
  return holds();
}

}  // namespace fastparam::cpu
