// One padded matrix at a time. Its sums and products run at the CPU's level, by strips that threads share if
// the matrix is large.
#pragma once

#include "../recurrence.h"
#include "steps.h"

namespace fastparam::cpu {

// From this order on, products of known symmetry are computed by halves, for `lanes` per vector.
inline int64_t half_order(int64_t lanes) { return lanes == 16 ? 28 : lanes == 8 ? 20 : 17; }

template <class T>
class Chain : Recurrence<Chain<T>, T> {
  friend class Recurrence<Chain<T>, T>;
  using Base = Recurrence<Chain<T>, T>;
  using Base::dual_, Base::structure_, Base::known;

  const Order order_;
  const bool halves_;
  T* const memory_;

 public:
  Chain(int64_t n, Structure structure, bool with_derivative, T* memory)
      : Base(structure, with_derivative),
        order_(Order::of<T>(n)),
        halves_(n >= half_order(vector_bytes() / sizeof(T))),
        memory_(memory) {}
  static int64_t scratch_bytes(int64_t n, bool with_derivative) {
    return (with_derivative ? 2 : 1) * kMatrices * Order::of<T>(n).size() * static_cast<int64_t>(sizeof(T));
  }

  using Base::expand;
  const Order& order() const { return order_; }
  T* at(Matrix M) const { return memory_ + ((M.derivative ? kMatrices : 0) + M.i) * order_.size(); }
  void transpose(Matrix M, Matrix O) const { transpose(at(M), at(O), T(1)); }
  void mirror(Matrix O, T sign) const { transpose(at(O), at(O), sign); }

  // Computes exp(A) of A = value(0), and the derivative along E = derivative(0). Their columns beyond n are
  // zero. Returns i such that value(i) is exp(A), and derivative(i) is the derivative.
  int run() const {
    const T squares = squares_of(0);
    // An entry that is large or not finite has a large square, so few matrices are searched for their largest
    // entry.
    constexpr T kLarge = 1 << (2 * kLargestExponent);
    const T largest = squares < kLarge ? 0 : largest_of(order_, at(value(0)));
    if (std::isnan(largest)) {
      std::fill_n(memory_, (dual_ ? 2 : 1) * kMatrices * order_.size(), std::numeric_limits<T>::quiet_NaN());
      return 4;
    }
    const int squarings = polynomial(squares, largest);
    int D = 4;
    if (structure_ != Structure::skew) this->add_identity(D);
    for (int i = 1; i <= squarings; ++i) {
      D = this->square(D);
      if (structure_ != Structure::skew || squarings <= kHarmless) continue;
      if (i % kPolished != 0 && i != squarings) continue;
      this->polish(D);
      make(value(D), {{T(1), 0}}, {}, false);
    }
    if (structure_ == Structure::skew) this->add_identity(D);
    return D;
  }

 private:
  void make(Matrix O, Terms<T> terms, Products products, bool half) const {
    Sum<T> sum{order_, at(O), 0, {}, {}, 0, {}, {}, half && halves_};
    for (const Term<T>& term : terms)
      sum.terms[sum.count] = at({O.derivative, term.i}), sum.factors[sum.count++] = term.factor;
    for (const Factors& product : products)
      sum.A[sum.products] = at(product.A), sum.B[sum.products++] = at(product.B);
    add_up(sum);
  }
  void complete(Matrix O, int sign) const {
    if (halves_) mirror(O, static_cast<T>(sign));
  }
  void transpose(const T* M, T* O, T sign) const {
    parallel_tasks<TransposeBody<T>>(order_.n, strips_of(order_.n), &order_, M, O, sign);
  }
  void add_to_diagonal(Matrix O, T x) const {
    for (int64_t i = 0; i < order_.n; ++i) at(O)[i * (order_.stride + 1)] += x;
  }
  void clear_diagonal(Matrix O) const {
    for (int64_t i = 0; i < order_.n; ++i) at(O)[i * (order_.stride + 1)] = 0;
  }

  T squares_of(int i) const {
    T squares;
    run_simd<SquaresBody<T>>(&order_, static_cast<const T*>(at(value(i))), &squares);
    return squares;
  }
  // A bound of the 2-norm of A from the sum of squares of one of its powers. The singular values of a skew
  // matrix come in pairs.
  T bound(T squares, int power) const {
    const T norm = std::sqrt(structure_ == Structure::skew ? squares / 2 : squares);
    return power == 1   ? norm
           : power == 2 ? std::sqrt(norm)
           : power == 3 ? std::cbrt(norm)
                        : std::sqrt(std::cbrt(norm));
  }
  T bound_of(int i, int power) const { return bound(squares_of(i), power); }

  // Changes value(i) from a power of A to that of A / 2^s. E is not scaled: it stands for E / 2^s.
  void scale(int i, int power, int s) const {
    if (s == 0) return;
    make(value(i), {{std::ldexp(T(1), -power * s), i}}, {}, false);
    if (dual_ && power > 1) make(derivative(i), {{std::ldexp(T(1), -(power - 1) * s), i}}, {}, false);
  }

  // Evaluates the polynomial with the fewest products that a bound of the norm allows. Returns s.
  int polynomial(T squares, T largest) const {
    const auto& known_polynomials = polynomials(structure_, T());
    const int before = largest > 0 ? std::max(0, std::ilogb(largest) + 1 - kLargestExponent) : 0;
    scale(0, 1, before);
    this->second_power();
    const T second = bound_of(1, 2);
    T norm = second;
    if (!known()) {
      const T first = std::ldexp(bound(squares, 1), -before);
      norm = std::min(first, std::max(second, std::cbrt(second * second * first)));
    }
    if (before == 0 && norm <= known_polynomials.theta8) {
      this->degree8(known_polynomials.v8);
      return 0;
    }

    this->third_power();
    if (before == 0 && norm <= known_polynomials.theta12) {
      this->degree12(known_polynomials.v12);
      return 0;
    }
    norm = std::min(norm, known() ? bound_of(2, 3) : std::max(second, bound_of(2, 3)));
    if constexpr (sizeof(T) == 4) {
      const T theta = known_polynomials.theta12;
      if (known() && halves_ && norm > theta) {
        make(value(3), {}, {{value(2), value(2)}}, true);
        complete(value(3), 1);
        norm = std::min(norm, bound_of(3, 6));
      }
      const int s = scale_powers(3, norm, theta);
      this->degree12(known_polynomials.v12);
      return before + s;
    } else {
      this->sixth_power();
      if (known()) norm = std::min(norm, bound_of(3, 6));
      const int s = scale_powers(4, norm, known_polynomials.theta18);
      this->degree18(known_polynomials.v18);
      return before + s;
    }
  }
  int scale_powers(int count, T norm, T theta) const {
    const int s = norm > theta ? static_cast<int>(std::ceil(std::log2(norm / theta) - T(1e-6))) : 0;
    for (int i = 0; i < count; ++i) scale(i, i == 3 ? 6 : i + 1, s);
    return s;
  }
};

}  // namespace fastparam::cpu
