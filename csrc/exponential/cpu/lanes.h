// Tiny matrices, one per lane of a vector, each squared as often as it needs.
#pragma once

#include "../../core/cpu/dense/lane_masks.h"
#include "../../core/cpu/dense/lanes.h"
#include "../recurrence.h"

namespace fastparam::cpu {

template <class T, int Bytes, int N>
class LaneChain;
// A sum with products, which is compiled as a separate function.
template <class T, int N>
struct LaneSum {
  template <int Bytes>
  static FASTPARAM_INLINE void run(const LaneChain<T, Bytes, N>* chain, Matrix O, Terms<T> terms,
                                   Products products) {
    chain->make_here(O, terms, products);
  }
};

template <class T, int Bytes, int N>
class LaneChain : SideBySide<T, Bytes, N>, Recurrence<LaneChain<T, Bytes, N>, T> {
  using Tile = SideBySide<T, Bytes, N>;
  using Base = Recurrence<LaneChain<T, Bytes, N>, T>;
  friend Base;
  friend LaneSum<T, N>;
  using Base::dual_, Base::structure_, Base::known;
  using Tile::L, Tile::n, Tile::stride;
  using typename Tile::V;
  using Mask = MaskOf<T, L>;

  V* const memory_;

 public:
  FASTPARAM_INLINE LaneChain(int64_t order, Structure structure, bool with_derivative, void* memory)
      : Tile(order),
        Base(structure, with_derivative),
        memory_(static_cast<V*>(memory)) {}

  // Computes the matrices [begin, end) of a batch.
  FASTPARAM_INLINE void run(const T* X, const T* G, T* out, bool lower, int64_t begin, int64_t end) const {
    const int size = n * n;
    V* const ones = memory_ + 2 * kMatrices * n * stride;
    for (int j = 0; j < n + L; ++j) ones[j] = T(1) - V{};
    for (int64_t m = begin; m < end; m += L) {
      const int live = static_cast<int>(std::min<int64_t>(L, end - m));
      Tile::gather(X + m * size, size, live, Tile::place, at(value(0)));
      if (dual_) Tile::gather(G + m * size, size, live, Tile::place, at(derivative(0)));
      if (known()) this->expand(lower);
      const Matrix result = finish(chain(), lower);
      Tile::scatter(at(result), ones, size, live, Tile::place, out + m * size);
    }
  }

 private:
  FASTPARAM_INLINE V* at(Matrix M) const {
    return memory_ + ((M.derivative ? kMatrices : 0) + M.i) * n * stride;
  }
  template <class F>
  FASTPARAM_INLINE void each(const F& f) const {
    for (int i = 0; i < n; ++i)
      for (int e = i * stride; e < i * stride + n; ++e) f(e);
  }

  template <int Count>
  FASTPARAM_INLINE void add(V* O, const V* const* terms, const T* factors) const {
    each([&](int e) __attribute__((always_inline)) {
      V v{};
#pragma GCC unroll 6
      for (int t = 0; t < Count; ++t) v += factors[t] * terms[t][e];
      O[e] = v;
    });
  }
  FASTPARAM_INLINE void make(Matrix O, Terms<T> terms, Products products, bool) const {
    run_at<Bytes, LaneSum<T, N>>(this, O, terms, products);
  }
  FASTPARAM_INLINE void make_here(Matrix O, Terms<T> terms, Products products) const {
    const V* of[kMostTerms];
    T factors[kMostTerms];
    int count = 0;
    for (const Term<T>& term : terms) of[count] = at({O.derivative, term.i}), factors[count++] = term.factor;
    switch (count) {
      case 1: add<1>(at(O), of, factors); break;
      case 2: add<2>(at(O), of, factors); break;
      case 3: add<3>(at(O), of, factors); break;
      case 4: add<4>(at(O), of, factors); break;
      case 5: add<5>(at(O), of, factors); break;
      case 6: add<6>(at(O), of, factors); break;
    }
    Prefetch none;
    bool begun = count > 0;
    for (const Factors& product : products) {
      if (begun) Tile::template product<false, true>(at(product.A), at(product.B), at(O), none);
      else Tile::template product<false>(at(product.A), at(product.B), at(O), none);
      begun = true;
    }
  }
  FASTPARAM_INLINE void complete(Matrix, int) const {}
  FASTPARAM_INLINE void transpose(Matrix M, Matrix O) const {
    for (int i = 0; i < n; ++i)
      for (int j = 0; j < n; ++j) at(O)[j * stride + i] = at(M)[i * stride + j];
  }
  FASTPARAM_INLINE void mirror(Matrix O, T sign) const {
    for (int i = 0; i < n; ++i)
      for (int j = i + 1; j < n; ++j) at(O)[j * stride + i] = sign * at(O)[i * stride + j];
  }
  FASTPARAM_INLINE void add_to_diagonal(Matrix O, T x) const {
    for (int i = 0; i < n; ++i) at(O)[i * (stride + 1)] += x;
  }
  FASTPARAM_INLINE void clear_diagonal(Matrix O) const {
    for (int i = 0; i < n; ++i) at(O)[i * (stride + 1)] = V{};
  }

  // ---- decisions, one per lane

  static FASTPARAM_INLINE Mask above(const V& a, T b) { return bit_cast<Mask>(a > b); }
  FASTPARAM_INLINE void scale(int i, int power, const V& by) const {
    V f = by;
    for (int p = 1; p < power; ++p) f *= by;
    each([&](int e) __attribute__((always_inline)) { at(value(i))[e] *= f; });
    if (!dual_ || power == 1) return;
    f = f / by;
    each([&](int e) __attribute__((always_inline)) { at(derivative(i))[e] *= f; });
  }
  FASTPARAM_INLINE V squares_of(int i) const {
    V sum{};
    each([&](int e) __attribute__((always_inline)) { sum += at(value(i))[e] * at(value(i))[e]; });
    return structure_ == Structure::skew ? sum * T(0.5) : sum;
  }
  // The number of halvings after which a norm is at most theta, from the sum of squares of the `power`-th
  // power.
  static FASTPARAM_INLINE V halvings(const V& squares, T theta, int power) {
    T limit = 1, step = 1;
    for (int p = 0; p < 2 * power; ++p) limit *= theta, step *= 2;
    V count{};
    for (Mask more = above(squares, limit); any(more); limit *= step, more = above(squares, limit))
      count += only(T(1) - V{}, more);
    return count;
  }
  static FASTPARAM_INLINE V smaller(const V& a, const V& b) { return either(at_most<T, L>(a, b), a, b); }
  static FASTPARAM_INLINE V larger(const V& a, const V& b) { return either(at_most<T, L>(a, b), b, a); }
  // 2^-count
  static FASTPARAM_INLINE V half_to(V count) {
    V power = T(1) - V{};
    for (Mask more = above(count, T(0)); any(more); count -= T(1), more = above(count, T(0)))
      power = either(more, power * T(0.5), power);
    return power;
  }

  // Sets matrices with entries that are not finite to 0. Returns NaN in their lanes, and 0 in the others.
  FASTPARAM_INLINE V clean(V& largest) const {
    V poison{};
    largest = V{};
    each([&](int e) __attribute__((always_inline)) {
      V& x = at(value(0))[e];
      poison += x * T(0);
      largest = larger(magnitude<T, L>(x), largest);
    });
    const Mask finite = bit_cast<Mask>(poison == T(0));
    if (all(finite)) return poison;
    largest = only(largest, finite);
    each([&](int e) __attribute__((always_inline)) { at(value(0))[e] = only(at(value(0))[e], finite); });
    return poison;
  }

  struct Result {
    int i;
    V poison;
  };
  FASTPARAM_INLINE Result chain() const {
    const auto& coefficients = polynomials(structure_, T());
    V largest;
    const V poison = clean(largest);
    V before{};
    for (Mask more = above(largest, T(1 << kLargestExponent)); any(more);
         more = above(largest, T(1 << kLargestExponent))) {
      before += only(T(1) - V{}, more);
      largest = either(more, largest * T(0.5), largest);
    }
    const bool large = any(above(before, T(0)));
    if (large) scale(0, 1, half_to(before));

    this->second_power();
    this->third_power();
    constexpr bool kSingle = sizeof(T) == 4;
    T theta;
    if constexpr (kSingle) theta = coefficients.theta12;
    else theta = coefficients.theta18;
    const V second = halvings(squares_of(1), theta, 2), third = halvings(squares_of(2), theta, 3);
    V s =
        known() ? smaller(second, third) : smaller(halvings(squares_of(0), theta, 1), larger(second, third));
    if constexpr (!kSingle) this->sixth_power();
    if (any(above(s, T(0)))) {
      const V by = half_to(s);
      for (int i = 0; i < (kSingle ? 3 : 4); ++i) scale(i, i == 3 ? 6 : i + 1, by);
    }
    if constexpr (kSingle) this->degree12(coefficients.v12);
    else this->degree18(coefficients.v18);

    s += before;
    int D = 4;
    T done = 0;
    if (structure_ != Structure::skew) this->add_identity(D);
    for (Mask more = above(s, done); any(more); more = above(s, done)) {
      const int next = this->square(D);
      keep(value(next), value(D), more);
      if (dual_) keep(derivative(next), derivative(D), more);
      D = next, done += 1;
      if (structure_ == Structure::skew && any(above(s, T(kHarmless)))) polish_some(D, s, done);
    }
    if (structure_ == Structure::skew) this->add_identity(D);
    return {D, poison};
  }
  // Keeps O in the lanes of the mask, and copies M to O in the others.
  FASTPARAM_INLINE void keep(Matrix O, Matrix M, const Mask& mask) const {
    if (all(mask)) return;
    each([&](int e) __attribute__((always_inline)) { at(O)[e] = either(mask, at(O)[e], at(M)[e]); });
  }
  FASTPARAM_INLINE void polish_some(int D, const V& s, T done) const {
    Mask due = above(s, T(kHarmless)) & bit_cast<Mask>(s >= done);
    if (static_cast<int>(done) % kPolished != 0) due &= bit_cast<Mask>(s == done);
    if (!any(due)) return;
    this->polish(D);
    keep(value(0), value(D), due);
    make(value(D), {{T(1), 0}}, {}, false);
  }

  // The matrix to write: exp, the derivative, or the gradient of the triangle.
  FASTPARAM_INLINE Matrix finish(const Result& result, bool lower) const {
    const Matrix O{dual_, result.i};
    V* const x = at(O);
    if (!all(bit_cast<Mask>(result.poison == T(0))))
      each([&](int e) __attribute__((always_inline)) { x[e] += result.poison; });
    if (!dual_ && structure_ == Structure::symmetric) mirror(O, 1);
    if (dual_ && known()) {
      const T sign = structure_ == Structure::skew ? -1 : 1;
      for (int i = 0; i < n; ++i) {
        if (structure_ == Structure::skew) x[i * (stride + 1)] = V{};
        for (int j = i + 1; j < n; ++j) {
          V &upper = x[i * stride + j], &below = x[j * stride + i];
          const V both = lower ? below + sign * upper : upper + sign * below;
          upper = lower ? V{} : both;
          below = lower ? both : V{};
        }
      }
    }
    return O;
  }
};

template <class T, int N>
struct LanesBody {
  template <int Bytes>
  static FASTPARAM_INLINE void run(const T* X, const T* G, T* out, int64_t n, Structure structure, bool lower,
                                   void* memory, int64_t begin, int64_t end) {
    LaneChain<T, Bytes, N>(n, structure, G != nullptr, memory).run(X, G, out, lower, begin, end);
  }
};

}  // namespace fastparam::cpu
