// exp of skew matrices of order 2 to 4 in closed form, with one matrix per lane of a vector. For order 2 it
// is a rotation. For order 3, with A x = w x x and t = |w|^2, it is Rodrigues' formula. For order 4, A maps x
// to p x + x q for quaternions p and q without real parts, and exp(A) maps x to exp(p) x exp(q).
//
// Gradients are derived from these formulas, so no recurrence is repeated.
#pragma once

#include "../../core/cpu/dense/lane_masks.h"
#include "../../core/cpu/dense/tiny.h"
#include "lanes.h"

namespace fastparam::cpu {

// Coefficients of x^2i in alternating series. The chord and the slopes use closed forms from t = 1 on, where
// these are accurate.
template <class T>
struct Series {
  static constexpr int kTerms = sizeof(T) == 4 ? 6 : 9;
  T sine[kTerms], cosine[kTerms];             // sin x / x and cos x, for x up to pi / 4
  T chord[kTerms];                            // (1 - cos x) / x^2
  T sine_slope[kTerms], chord_slope[kTerms];  // minus twice the derivatives of sin x / x and chord by x^2
  constexpr Series() : sine(), cosine(), chord(), sine_slope(), chord_slope() {
    double factorial = 1;  // of 2 i
    for (int i = 0; i < kTerms; ++i) {
      const double even = 2 * i + 2;
      cosine[i] = static_cast<T>(1 / factorial);
      sine[i] = static_cast<T>(1 / (factorial * (even - 1)));
      factorial *= even * (even - 1);
      chord[i] = static_cast<T>(1 / factorial);
      sine_slope[i] = static_cast<T>(even / (factorial * (even + 1)));
      chord_slope[i] = static_cast<T>(even / (factorial * (even + 1) * (even + 2)));
    }
  }
  // pi / 2 in three parts. The multiples of the first two are exact for angles up to kLargestAngle.
  static constexpr T kHalfPi[] = {sizeof(T) == 4 ? T(0x1.92p+0) : T(0x1.921fb544p+0),
                                  sizeof(T) == 4 ? T(0x1.fb4p-12) : T(0x1.0b4611a6p-34),
                                  sizeof(T) == 4 ? T(0x1.4442d18469899p-24) : T(0x1.3198a2e037073p-69)};
  static constexpr T kLargestAngle = sizeof(T) == 4 ? T(1 << 13) : T(1 << 20);
};
template <class T>
constexpr Series<T> kSeries;

template <class T, int L>
struct Angle {
  using V = Vec<T, L>;
  using Mask = MaskOf<T, L>;
  // sine: divided by the angle; slopes: twice the derivatives by the square of the angle
  V cosine, sine, chord, sine_slope, chord_slope;

  static FASTPARAM_INLINE V alternating(const T (&coefficients)[Series<T>::kTerms], const V& x2) {
    V sum = coefficients[Series<T>::kTerms - 1] - V{};
#pragma GCC unroll 16
    for (int i = Series<T>::kTerms - 2; i >= 0; --i) sum = coefficients[i] - x2 * sum;
    return sum;
  }

  // The cosine and the sine of r, 0 <= r <= kLargestAngle.
  static FASTPARAM_INLINE void cos_sin(const V& r, V& c, V& s) {
    constexpr int kSignBit = 8 * sizeof(T) - 1;
    constexpr T kRound = sizeof(T) == 4 ? T(0x1.8p23) : T(0x1.8p52);  // a sum with it is an integer
    const V rounded = r * T(0.63661977236758134308) + kRound, quarters = rounded - kRound;
    const Mask k = bit_cast<Mask>(rounded);
    constexpr auto& part = Series<T>::kHalfPi;
    const V x = ((r - quarters * part[0]) - quarters * part[1]) - quarters * part[2], x2 = x * x;
    const V even = alternating(kSeries<T>.cosine, x2), odd = x * alternating(kSeries<T>.sine, x2);
    const Mask swapped = -(k & 1);
    c = bit_cast<V>(bit_cast<Mask>(either(swapped, odd, even)) ^ (((k + 1) & 2) << (kSignBit - 1)));
    s = bit_cast<V>(bit_cast<Mask>(either(swapped, even, odd)) ^ ((k & 2) << (kSignBit - 1)));
  }

  // `t` is the square of the angle.
  FASTPARAM_INLINE explicit Angle(const V& t) {
    V r = t + (sizeof(T) == 4 ? T(1e-30) : T(1e-300));  // not 0, so that 1 / r is finite
    for (int l = 0; l < L; ++l) r[l] = sizeof(T) == 4 ? __builtin_sqrtf(r[l]) : __builtin_sqrt(r[l]);
    cos_sin(r, cosine, sine);
    const V inverse = T(1) / r, inverse2 = inverse * inverse;
    sine *= inverse;
    const Mask small = bit_cast<Mask>(t < T(1));
    chord = either(small, alternating(kSeries<T>.chord, t), (T(1) - cosine) * inverse2);
    sine_slope = either(small, -alternating(kSeries<T>.sine_slope, t), (cosine - sine) * inverse2);
    chord_slope = either(small, -alternating(kSeries<T>.chord_slope, t), (sine - T(2) * chord) * inverse2);
  }
};

template <class T, int N, int Bytes>
struct Rotation : TinyTriangle<T, N, Bytes> {
  using Triangle = TinyTriangle<T, N, Bytes>;
  using Triangle::kHalf, Triangle::L, Triangle::place;
  using typename Triangle::V;
  using Angles = Angle<T, L>;
  using Mask = typename Angles::Mask;

  static FASTPARAM_INLINE V dot(const V* a, const V* b) { return a[0] * b[0] + a[1] * b[1] + a[2] * b[2]; }
  static FASTPARAM_INLINE Mask within(const V& t) {
    return bit_cast<Mask>(t <= Series<T>::kLargestAngle * Series<T>::kLargestAngle);
  }

  // Each function sets Q = exp(A) or, with G, the gradient g of the entries a of A above the diagonal. It
  // returns the lanes in which the angles are small enough.

  static FASTPARAM_INLINE Mask order2(const V* a, const V* G, V* Q, V* g) {
    const Mask sign = bit_cast<Mask>(a[0]) & bit_cast<Mask>(T(-0.0) - V{});
    V c, s;
    Angles::cos_sin(bit_cast<V>(bit_cast<Mask>(a[0]) ^ sign), c, s);
    s = bit_cast<V>(bit_cast<Mask>(s) ^ sign);
    if (G) g[0] = c * (G[1] - G[2]) - s * (G[0] + G[3]);
    else Q[0] = Q[3] = c, Q[1] = s, Q[2] = -s;
    return within(a[0] * a[0]);
  }

  static FASTPARAM_INLINE Mask order3(const V* a, const V* G, V* Q, V* g) {
    const V w[3] = {-a[2], a[1], -a[0]};
    const V t = dot(w, w);
    const Angles of(t);
    if (G) {
      const V k[3] = {G[7] - G[5], G[2] - G[6], G[3] - G[1]};  // <G, dA> = k . dw
      V h[3];                                                  // (G + G^T) w
#pragma GCC unroll 16
      for (int i = 0; i < 3; ++i)
        h[i] = (G[3 * i] + G[i]) * w[0] + (G[3 * i + 1] + G[3 + i]) * w[1] + (G[3 * i + 2] + G[6 + i]) * w[2];
      const V f =
          of.sine_slope * dot(k, w) + T(0.5) * of.chord_slope * dot(h, w) - of.sine * (G[0] + G[4] + G[8]);
#pragma GCC unroll 16
      for (int i = 0; i < 3; ++i) {
        const V d = f * w[i] + of.chord * h[i] + of.sine * k[i];
        g[2 - i] = i == 1 ? d : -d;
      }
    } else {
#pragma GCC unroll 16
      for (int i = 0; i < 3; ++i) {
        const V chord = of.chord * w[i];
        Q[4 * i] = of.cosine + chord * w[i];
#pragma GCC unroll 16
        for (int j = i + 1; j < 3; ++j) {
          const V even = chord * w[j], odd = of.sine * a[place(i, j)];
          Q[3 * i + j] = even + odd, Q[3 * j + i] = even - odd;
        }
      }
    }
    return within(t);
  }

  // In the basis 1, i, j, k, the product of elements r and c is sign(r, c) times element r ^ c.
  static constexpr T sign(int r, int c) {
    return r == 0 || c == 0 ? T(1) : r == c ? T(-1) : (c - r + 3) % 3 == 1 ? T(1) : T(-1);
  }

  static FASTPARAM_INLINE Mask order4(const V* a, const V* G, V* Q, V* g) {
    // A_0i = -(p_i + q_i), and A_jk = s (p_i - q_i), where j < k are the indices other than 0 and i
    V p[3], q[3];
    constexpr int kFirst[] = {2, 1, 1}, kLast[] = {3, 3, 2};
#pragma GCC unroll 16
    for (int i = 0; i < 3; ++i) {
      const V sum = -a[i], difference = sign(i + 1, kLast[i]) * a[place(kFirst[i], kLast[i])];
      p[i] = T(0.5) * (sum + difference), q[i] = T(0.5) * (sum - difference);
    }
    const V tp = dot(p, p), tq = dot(q, q);
    const Angles of_p(tp), of_q(tq);
    const V u[] = {of_p.cosine, of_p.sine * p[0], of_p.sine * p[1], of_p.sine * p[2]};
    const V v[] = {of_q.cosine, of_q.sine * q[0], of_q.sine * q[1], of_q.sine * q[2]};
    if (G) {
      V gu[4] = {}, gv[4] = {};
#pragma GCC unroll 16
      for (int i = 0; i < 4; ++i)
#pragma GCC unroll 16
        for (int j = 0; j < 4; ++j) {
          V h{};  // the gradient of u_i v_j
#pragma GCC unroll 16
          for (int k = 0; k < 4; ++k) h += sign(i, k) * sign(j ^ k, j) * G[4 * (i ^ k) + (j ^ k)];
          gu[i] += h * v[j], gv[j] += h * u[i];
        }
      const V fp = of_p.sine_slope * dot(p, gu + 1) - of_p.sine * gu[0];
      const V fq = of_q.sine_slope * dot(q, gv + 1) - of_q.sine * gv[0];
#pragma GCC unroll 16
      for (int i = 0; i < 3; ++i) {
        const V gp = T(0.5) * (of_p.sine * gu[i + 1] + fp * p[i]);
        const V gq = T(0.5) * (of_q.sine * gv[i + 1] + fq * q[i]);
        g[i] = -(gp + gq);
        g[place(kFirst[i], kLast[i])] = sign(i + 1, kLast[i]) * (gp - gq);
      }
    } else {
#pragma GCC unroll 16
      for (int r = 0; r < 4; ++r)
#pragma GCC unroll 16
        for (int c = 0; c < 4; ++c) {
          Q[4 * r + c] = V{};
#pragma GCC unroll 16
          for (int k = 0; k < 4; ++k) Q[4 * r + c] += sign(r ^ k, k) * sign(c, k ^ c) * (u[r ^ k] * v[k ^ c]);
        }
    }
    return within(tp) & within(tq);
  }

  static FASTPARAM_INLINE Mask of(const V* a, const V* G, V* Q, V* g) {
    if constexpr (N == 2) return order2(a, G, Q, g);
    else if constexpr (N == 3) return order3(a, G, Q, g);
    else return order4(a, G, Q, g);
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
    using Path = Rotation<T, N, kBytes>;
    constexpr int L = Path::L, kSize = N * N;
    for (int64_t m = begin; m < end; m += L) {
      const int live = static_cast<int>(std::min<int64_t>(L, end - m));
      typename Path::V a[Path::kHalf], g[Path::kHalf], given[kSize], Q[kSize];
      typename Path::Mask told;
      Path::read(X + m * kSize, X + end * kSize, live, lower, a);
      if (lower)
#pragma GCC unroll 16
        for (auto& x : a) x = -x;
      T* const to = out + m * kSize;
      if (G) {
        Columns<T, kBytes, kSize>::read(G + m * kSize, G + end * kSize, live, given);
        told = Path::of(a, given, nullptr, g);
        if (lower)
#pragma GCC unroll 16
          for (auto& x : g) x = -x;
        Path::write(g, live, lower, to);
      } else {
        told = Path::of(a, nullptr, Q, nullptr);
        Columns<T, kBytes, kSize>::write(Q, live, to);
      }
      if (all(told)) continue;
      for (int l = 0; l < live; ++l)
        if (told[l] == 0)
          run_at<Bytes, LanesBody<T>>(X, G, out, int64_t(N), Structure::skew, lower, memory, m + l,
                                      m + l + 1);
    }
  }
};

}  // namespace fastparam::cpu
