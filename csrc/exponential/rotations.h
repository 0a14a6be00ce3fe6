// exp of skew matrices of order 2 to 4 in closed form. For order 2 it is a rotation. For order 3, with
// A x = w x x and t = |w|^2, it is Rodrigues' formula. For order 4, A maps x to p x + x q for quaternions p
// and q without real parts, and exp(A) maps x to exp(p) x exp(q).
//
// Gradients are derived from these formulas, so no recurrence is repeated. This file does not depend on
// torch.
#pragma once

#include "../core/inline.h"

namespace fastparam {

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
};

// Functions of an angle. Math computes with numbers of type V, which may be vectors of T. It has
//   root(x), the square root, and below_one(t, a, b), which is a where t < 1 and b elsewhere,
//   divide(r, x), which subtracts the nearest multiple of pi / 2 from r and returns Turn, and
//   turn(Turn, even, odd, c, s), which sets c and s to the cosine and the sine of r, from those of x.
template <class Math>
struct Angle {
  using T = typename Math::T;
  using V = typename Math::V;
  // sine: divided by the angle; slopes: twice the derivatives by the square of the angle
  V cosine, sine, chord, sine_slope, chord_slope;

  static FASTPARAM_ANYWHERE V alternating(const T (&coefficients)[Series<T>::kTerms], const V& x2) {
    V sum = coefficients[Series<T>::kTerms - 1] - V{};
    FASTPARAM_UNROLL
    for (int i = Series<T>::kTerms - 2; i >= 0; --i) sum = coefficients[i] - x2 * sum;
    return sum;
  }
  static FASTPARAM_ANYWHERE void cos_sin(const V& r, V& c, V& s) {
    constexpr Series<T> series;
    V x;
    const auto turn = Math::divide(r, x);
    const V x2 = x * x;
    Math::turn(turn, alternating(series.cosine, x2), x * alternating(series.sine, x2), c, s);
  }

  // `t` is the square of the angle.
  FASTPARAM_ANYWHERE explicit Angle(const V& t) {
    constexpr Series<T> series;
    const V r = Math::root(t + (sizeof(T) == 4 ? T(1e-30) : T(1e-300)));  // not 0, so that 1 / r is finite
    cos_sin(r, cosine, sine);
    const V inverse = T(1) / r, inverse2 = inverse * inverse;
    sine *= inverse;
    chord = Math::below_one(t, alternating(series.chord, t), (T(1) - cosine) * inverse2);
    sine_slope = Math::below_one(t, -alternating(series.sine_slope, t), (cosine - sine) * inverse2);
    chord_slope = Math::below_one(t, -alternating(series.chord_slope, t), (sine - T(2) * chord) * inverse2);
  }
};

template <int N, class Math>
struct Rotation {
  using T = typename Math::T;
  using V = typename Math::V;
  static constexpr int kHalf = N * (N - 1) / 2;
  // The position of entry (i, j), i < j, among the entries above the diagonal.
  static constexpr FASTPARAM_ANYWHERE int place(int i, int j) { return i * (2 * N - i - 1) / 2 + j - i - 1; }

  static FASTPARAM_ANYWHERE V dot(const V* a, const V* b) { return a[0] * b[0] + a[1] * b[1] + a[2] * b[2]; }

  // Each function sets Q = exp(A) or, with G, the gradient g of the entries a of A above the diagonal. It
  // returns a bound of the squares of the angles.

  static FASTPARAM_ANYWHERE V order2(const V* a, const V* G, V* Q, V* g) {
    V c, s;
    Angle<Math>::cos_sin(a[0], c, s);
    if (G) g[0] = c * (G[1] - G[2]) - s * (G[0] + G[3]);
    else Q[0] = Q[3] = c, Q[1] = s, Q[2] = -s;
    return a[0] * a[0];
  }

  static FASTPARAM_ANYWHERE V order3(const V* a, const V* G, V* Q, V* g) {
    const V w[3] = {-a[2], a[1], -a[0]};
    const V t = dot(w, w);
    const Angle<Math> of(t);
    if (G) {
      const V k[3] = {G[7] - G[5], G[2] - G[6], G[3] - G[1]};  // <G, dA> = k . dw
      V h[3];                                                  // (G + G^T) w
      FASTPARAM_UNROLL
      for (int i = 0; i < 3; ++i)
        h[i] = (G[3 * i] + G[i]) * w[0] + (G[3 * i + 1] + G[3 + i]) * w[1] + (G[3 * i + 2] + G[6 + i]) * w[2];
      const V f =
          of.sine_slope * dot(k, w) + T(0.5) * of.chord_slope * dot(h, w) - of.sine * (G[0] + G[4] + G[8]);
      FASTPARAM_UNROLL
      for (int i = 0; i < 3; ++i) {
        const V d = f * w[i] + of.chord * h[i] + of.sine * k[i];
        g[2 - i] = i == 1 ? d : -d;
      }
    } else {
      FASTPARAM_UNROLL
      for (int i = 0; i < 3; ++i) {
        const V chord = of.chord * w[i];
        Q[4 * i] = of.cosine + chord * w[i];
        FASTPARAM_UNROLL
        for (int j = i + 1; j < 3; ++j) {
          const V even = chord * w[j], odd = of.sine * a[place(i, j)];
          Q[3 * i + j] = even + odd, Q[3 * j + i] = even - odd;
        }
      }
    }
    return t;
  }

  // In the basis 1, i, j, k, the product of elements r and c is sign(r, c) times element r ^ c.
  static constexpr FASTPARAM_ANYWHERE T sign(int r, int c) {
    return r == 0 || c == 0 ? T(1) : r == c ? T(-1) : (c - r + 3) % 3 == 1 ? T(1) : T(-1);
  }

  static FASTPARAM_ANYWHERE V order4(const V* a, const V* G, V* Q, V* g) {
    // A_0i = -(p_i + q_i), and A_jk = s (p_i - q_i), where j < k are the indices other than 0 and i
    V p[3], q[3];
    constexpr int kFirst[] = {2, 1, 1}, kLast[] = {3, 3, 2};
    FASTPARAM_UNROLL
    for (int i = 0; i < 3; ++i) {
      const V sum = -a[i], difference = sign(i + 1, kLast[i]) * a[place(kFirst[i], kLast[i])];
      p[i] = T(0.5) * (sum + difference), q[i] = T(0.5) * (sum - difference);
    }
    const V tp = dot(p, p), tq = dot(q, q);
    const Angle<Math> of_p(tp), of_q(tq);
    const V u[] = {of_p.cosine, of_p.sine * p[0], of_p.sine * p[1], of_p.sine * p[2]};
    const V v[] = {of_q.cosine, of_q.sine * q[0], of_q.sine * q[1], of_q.sine * q[2]};
    if (G) {
      V gu[4] = {}, gv[4] = {};
      FASTPARAM_UNROLL
      for (int i = 0; i < 4; ++i) FASTPARAM_UNROLL
      for (int j = 0; j < 4; ++j) {
        V h{};  // the gradient of u_i v_j
        FASTPARAM_UNROLL
        for (int k = 0; k < 4; ++k) h += sign(i, k) * sign(j ^ k, j) * G[4 * (i ^ k) + (j ^ k)];
        gu[i] += h * v[j], gv[j] += h * u[i];
      }
      const V fp = of_p.sine_slope * dot(p, gu + 1) - of_p.sine * gu[0];
      const V fq = of_q.sine_slope * dot(q, gv + 1) - of_q.sine * gv[0];
      FASTPARAM_UNROLL
      for (int i = 0; i < 3; ++i) {
        const V gp = T(0.5) * (of_p.sine * gu[i + 1] + fp * p[i]);
        const V gq = T(0.5) * (of_q.sine * gv[i + 1] + fq * q[i]);
        g[i] = -(gp + gq);
        g[place(kFirst[i], kLast[i])] = sign(i + 1, kLast[i]) * (gp - gq);
      }
    } else {
      FASTPARAM_UNROLL
      for (int r = 0; r < 4; ++r) FASTPARAM_UNROLL
      for (int c = 0; c < 4; ++c) {
        Q[4 * r + c] = V{};
        FASTPARAM_UNROLL
        for (int k = 0; k < 4; ++k) Q[4 * r + c] += sign(r ^ k, k) * sign(c, k ^ c) * (u[r ^ k] * v[k ^ c]);
      }
    }
    return tp + tq;
  }

  static FASTPARAM_ANYWHERE V of(const V* a, const V* G, V* Q, V* g) {
    if constexpr (N == 2) return order2(a, G, Q, g);
    else if constexpr (N == 3) return order3(a, G, Q, g);
    else return order4(a, G, Q, g);
  }
};

}  // namespace fastparam
