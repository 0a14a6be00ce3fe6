// exp(A) and its derivative along E, independent of how matrices are stored. D = exp(A / 2^s) - I is computed
// as a polynomial, and s squarings turn it into exp(A). The derivative of each matrix is computed along with
// it, product by product, so nothing has to be kept, however large s is.
#pragma once

#include <cmath>
#include <initializer_list>

#include "../core/inline.h"
#include "polynomials.h"

namespace fastparam {

constexpr int kMatrices = 8;  // values in a recurrence, and as many derivatives
// Powers are computed only of matrices whose entries are below 2^kLargestExponent.
constexpr int kLargestExponent = 4;
// Each squaring doubles the distance of a matrix from the orthogonal ones. Up to kHarmless squarings need no
// correction. If there are more, a Newton-Schulz step follows every kPolished squarings, and the last one.
constexpr int kHarmless = 3, kPolished = 8;
constexpr int kMostTerms = 6;  // in a sum

struct Matrix {
  bool derivative;
  int i;
};
constexpr Matrix value(int i) { return {false, i}; }
constexpr Matrix derivative(int i) { return {true, i}; }

template <class T>
struct Term {
  T factor;
  int i;
};
template <class T>
using Terms = std::initializer_list<Term<T>>;
struct Factors {
  Matrix A, B;
};
using Products = std::initializer_list<Factors>;  // at most two

// Self computes matrices. It has the functions
//   make(O, terms, products, half): O = the sum of the terms and the products. The terms are values or
//     derivatives, as O is. With `half`, O is symmetric or skew.
//   complete(O, sign): follows a call with `half`, and sets the other half of O to `sign` times the first.
//   transpose(M, O), mirror(O, sign) of any O, add_to_diagonal(O, x), clear_diagonal(O).
template <class Self, class T>
class Recurrence {
 protected:
  const Structure structure_;
  const bool dual_;

  FASTPARAM_INLINE Recurrence(Structure structure, bool dual) : structure_(structure), dual_(dual) {}
  FASTPARAM_INLINE const Self& self() const { return *static_cast<const Self*>(this); }

  FASTPARAM_INLINE bool known() const { return structure_ != Structure::general; }
  // The parity of sums of powers. It is 0 for a skew matrix, whose even and odd powers differ in parity.
  FASTPARAM_INLINE int parity() const { return structure_ == Structure::symmetric ? 1 : 0; }

  FASTPARAM_INLINE void sum(int O, Terms<T> terms) const {
    self().make(value(O), terms, {}, false);
    if (dual_) self().make(derivative(O), terms, {}, false);
  }
  // The value of O is symmetric (parity 1), skew (-1) or neither (0).
  FASTPARAM_INLINE void product(int O, Terms<T> terms, int X, int Y, int parity) const {
    self().make(value(O), terms, {{value(X), value(Y)}}, parity != 0);
    if (parity != 0) self().complete(value(O), parity);
    if (dual_) derivative_of_product(O, terms, derivative(X), value(Y), value(X), derivative(Y));
  }
  // O = the terms + A B + C D. The derivatives of symmetric matrices are symmetric.
  FASTPARAM_INLINE void derivative_of_product(int O, Terms<T> terms, Matrix A, Matrix B, Matrix C,
                                              Matrix D) const {
    self().make(derivative(O), terms, {{A, B}, {C, D}}, parity() != 0);
    if (parity() != 0) self().complete(derivative(O), 1);
  }

  // Replaces X in value(0) by A, from the triangle of X, or by A^T if there is a derivative. For a symmetric
  // matrix, only the symmetric part of E matters.
  FASTPARAM_INLINE void expand(bool lower) const {
    const bool skew = structure_ == Structure::skew;
    const T sign = skew && lower != dual_ ? -1 : 1;
    if (lower) {  // the upper triangle of tril(X, -1) - tril(X, -1)^T is that of -X^T
      self().transpose(value(0), value(1));
      self().make(value(0), {{sign, 1}}, {}, false);
    } else if (sign < 0) {
      self().make(value(0), {{sign, 0}}, {}, false);
    }
    if (skew) self().clear_diagonal(value(0));
    self().mirror(value(0), skew ? -1 : 1);
    if (dual_ && !skew) {
      self().transpose(derivative(0), derivative(1));
      self().make(derivative(0), {{T(0.5), 0}, {T(0.5), 1}}, {}, false);
    }
  }

  // ---- polynomials of A, A^2, A^3 (and A^6), which are in 0 to 3; the result is in 4

  FASTPARAM_INLINE void second_power() const { product(1, {}, 0, 0, known() ? 1 : 0); }
  FASTPARAM_INLINE void third_power() const {
    product(2, {}, 0, 1, structure_ == Structure::skew ? -1 : parity());
  }
  FASTPARAM_INLINE void sixth_power() const { product(3, {}, 2, 2, known() ? 1 : 0); }

  FASTPARAM_INLINE void degree8(const T* v) const {
    sum(4, {{v[0], 0}, {v[1], 1}});
    product(6, {}, 1, 4, parity());
    sum(7, {{T(2) / 3, 1}, {T(1), 6}});
    sum(5, {{v[3], 0}, {v[4], 1}, {v[5], 6}});
    self().add_to_diagonal(value(5), v[2]);
    product(4, {{T(1), 0}, {v[6], 1}}, 7, 5, parity());
  }
  FASTPARAM_INLINE void degree12(const T* v) const {
    sum(5, {{v[13], 0}, {v[14], 1}, {v[15], 2}});
    product(6, {{v[9], 0}, {v[10], 1}, {v[11], 2}}, 5, 5, parity());
    sum(7, {{v[5], 0}, {v[6], 1}, {v[7], 2}, {T(1), 6}});
    // (q1 + B) B, where the constant terms of q1 and B are multiplied separately, as in degree18
    product(4, {{v[1], 0}, {v[2], 1}, {v[3], 2}, {v[8] + v[4], 6}, {v[8], 7}}, 7, 6, parity());
  }
  FASTPARAM_INLINE void degree18(const T* v) const {
    sum(4, {{v[1], 0}, {v[2], 1}, {v[3], 2}, {v[4], 3}});
    sum(5, {{v[21], 0}, {v[22], 1}, {v[23], 2}, {v[24], 3}});
    product(6, {{v[16], 0}, {v[17], 1}, {v[18], 2}, {v[19], 3}}, 4, 5, parity());
    sum(7, {{v[11], 0}, {v[12], 1}, {v[13], 2}, {v[14], 3}, {T(1), 6}});
    product(4, {{v[6], 0}, {v[7], 1}, {v[8], 2}, {v[9], 3}, {v[15] + v[10], 6}, {v[15], 7}}, 7, 6, parity());
  }

  // ---- squaring, from D in 4 or 5 to the other

  // D <- 2 D + D^2, L <- L + (D L + L D) / 2. L starts as the derivative along E instead of E / 2^s, and is
  // halved by each squaring. If the matrix is not skew, I is added before the squarings, which are
  // P <- P^2 and L <- (P L + L P) / 2, because P - I would lose the digits of a small P.
  FASTPARAM_INLINE int square(int D) const {
    const int next = D == 4 ? 5 : 4;
    const bool skew = structure_ == Structure::skew;
    if (skew) self().make(value(next), {{T(2), D}}, {{value(D), value(D)}}, false);
    else self().make(value(next), {}, {{value(D), value(D)}}, parity() != 0);
    if (parity() != 0) self().complete(value(next), 1);
    if (dual_) {
      self().make(value(0), {{T(0.5), D}}, {}, false);
      if (skew) derivative_of_product(next, {{T(1), D}}, value(0), derivative(D), derivative(D), value(0));
      else derivative_of_product(next, {}, value(0), derivative(D), derivative(D), value(0));
    }
    return next;
  }
  FASTPARAM_INLINE void add_identity(int D) const { self().add_to_diagonal(value(D), T(1)); }

  // The Newton-Schulz step I + D <- (I + D) (I - R / 2) with R = (I + D)^T (I + D) - I. The new D is in
  // value(0). The derivative does not change.
  FASTPARAM_INLINE void polish(int D) const {
    self().transpose(value(D), value(0));
    self().make(value(1), {{T(1), D}, {T(1), 0}}, {{value(0), value(D)}}, true);
    self().complete(value(1), 1);
    self().make(value(2), {{T(-0.5), 1}}, {}, false);
    self().make(value(0), {{T(1), D}, {T(1), 2}}, {{value(D), value(2)}}, false);
  }
};

}  // namespace fastparam
