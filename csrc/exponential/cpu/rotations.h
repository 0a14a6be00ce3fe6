// The closed forms of rotations.h, with one matrix per lane of a vector.
#pragma once

#include "../../core/cpu/dense/lane_masks.h"
#include "../../core/cpu/dense/tiny.h"
#include "../rotations.h"
#include "lanes.h"

namespace fastparam::cpu {

template <class T_, int L>
struct LaneMath {
  using T = T_;
  using V = Vec<T, L>;
  using Mask = MaskOf<T, L>;

  // pi / 2 in three parts. The multiples of the first two are exact for angles up to kLargestAngle.
  static constexpr T kHalfPi[] = {sizeof(T) == 4 ? T(0x1.92p+0) : T(0x1.921fb544p+0),
                                  sizeof(T) == 4 ? T(0x1.fb4p-12) : T(0x1.0b4611a6p-34),
                                  sizeof(T) == 4 ? T(0x1.4442d18469899p-24) : T(0x1.3198a2e037073p-69)};
  static constexpr T kLargestAngle = sizeof(T) == 4 ? T(1 << 13) : T(1 << 20);

  // The lanes in which an angle with this square is small enough.
  static FASTPARAM_INLINE Mask within(const V& t) {
    return at_most<T, L>(t, kLargestAngle * kLargestAngle - V{});
  }
  static FASTPARAM_INLINE V root(V x) {
    for (int l = 0; l < L; ++l) x[l] = sizeof(T) == 4 ? __builtin_sqrtf(x[l]) : __builtin_sqrt(x[l]);
    return x;
  }
  static FASTPARAM_INLINE V below_one(const V& t, const V& a, const V& b) {
    return either(at_most<T, L>(T(1) - V{}, t), b, a);
  }
  static FASTPARAM_INLINE Mask divide(const V& r, V& x) {
    constexpr T kRound = sizeof(T) == 4 ? T(0x1.8p23) : T(0x1.8p52);  // a sum with it is an integer
    const V rounded = r * T(0.63661977236758134308) + kRound, quarters = rounded - kRound;
    x = ((r - quarters * kHalfPi[0]) - quarters * kHalfPi[1]) - quarters * kHalfPi[2];
    return bit_cast<Mask>(rounded);
  }
  static FASTPARAM_INLINE void turn(const Mask& k, const V& even, const V& odd, V& c, V& s) {
    constexpr int kSignBit = 8 * sizeof(T) - 1;
    const Mask swapped = -(k & 1);
    c = bit_cast<V>(bit_cast<Mask>(either(swapped, odd, even)) ^ (((k + 1) & 2) << (kSignBit - 1)));
    s = bit_cast<V>(bit_cast<Mask>(either(swapped, even, odd)) ^ ((k & 2) << (kSignBit - 1)));
  }
};

// Computes the matrices [begin, end). A matrix with larger angles, or with an entry that is not finite, takes
// the path of other orders.
template <class T, int N>
struct RotationBody {
  template <int Bytes>
  static FASTPARAM_INLINE void run(const T* X, const T* G, T* out, int64_t, Structure, bool lower,
                                   void* memory, int64_t begin, int64_t end) {
    constexpr int kBytes = std::min(Bytes, 32);  // with 64 bytes, the values do not fit the registers
    using Triangle = TinyTriangle<T, N, kBytes>;
    using Math = LaneMath<T, kBytes / sizeof(T)>;
    using Path = Rotation<N, Math>;
    constexpr int L = Triangle::L, kSize = N * N;
    for (int64_t m = begin; m < end; m += L) {
      const int live = static_cast<int>(std::min<int64_t>(L, end - m));
      typename Math::V a[Path::kHalf], g[Path::kHalf], given[kSize], Q[kSize], squares;
      Triangle::read(X + m * kSize, X + end * kSize, live, lower, a);
      if (lower)
#pragma GCC unroll 16
        for (auto& x : a) x = -x;
      T* const to = out + m * kSize;
      if (G) {
        Columns<T, kBytes, kSize>::read(G + m * kSize, G + end * kSize, live, given);
        squares = Path::of(a, given, nullptr, g);
        if (lower)
#pragma GCC unroll 16
          for (auto& x : g) x = -x;
        Triangle::write(g, live, lower, to);
      } else {
        squares = Path::of(a, nullptr, Q, nullptr);
        Columns<T, kBytes, kSize>::write(Q, live, to);
      }
      const auto told = Math::within(squares);
      if (all(told)) continue;
      for (int l = 0; l < live; ++l)
        if (told[l] == 0)
          run_at<Bytes, LanesBody<T, 0>>(X, G, out, int64_t(N), Structure::skew, lower, memory, m + l,
                                         m + l + 1);
    }
  }
};

}  // namespace fastparam::cpu
