// The chain of recurrence.h as a list of steps. The host writes the list, and the kernels execute it, so one
// loop around one product computes everything. This file does not depend on torch.
#pragma once

#include "../recurrence.h"

namespace fastparam::cuda {

// The number of matrices of a chain that are kept, each in a place of a work space. Derivatives have as many.
// Number 7 of Recurrence takes the place of number 5, which is no longer needed by then. Number 3, A^6,
// exists only in float64.
template <class A>
constexpr int kPlaces = sizeof(A) == 8 ? 7 : 6;
template <class A>
constexpr signed char place_of(Matrix M) {
  const int i = M.i == 7 ? 5 : M.i;
  return static_cast<signed char>((M.derivative ? kPlaces<A> : 0) + (sizeof(A) == 4 && i > 3 ? i - 1 : i));
}

// O = the sum of factor * term (or its transpose) + left right + diagonal I. O is not a factor of the
// product.
template <class A>
struct Step {
  A factors[kMostTerms], diagonal;
  signed char terms[kMostTerms], count, O, left, right;  // places; left < 0 if there is no product
  bool transposed;
  // With `half`, tiles below the diagonal are not computed. The last step for such an O mirrors it with the
  // sign `mirror`, which is otherwise 0.
  bool half;
  signed char mirror;
};

// A range of steps. Those up to `end` are always executed, and those from there to `more` if a polish follows
// the squaring.
struct Part {
  int begin, end, more;
};

template <class A>
struct Program {
  static constexpr int kMost = 40;
  Step<A> steps[kMost];
  Part powers, polynomial, squares[2];  // squares: from D in 4, from D in 5
  A theta;
  Structure structure;
  bool dual;
  int count = 0;

  static Program of(Structure structure, bool dual);

  // The part of turn -1, of turn 0, and then of each squaring.
  __device__ __forceinline__ const Part& part(int turn) const {
    return turn < 0 ? powers : turn == 0 ? polynomial : squares[(turn - 1) % 2];
  }
  // Whether a polish follows the turn-th of `squarings` squarings.
  __device__ __forceinline__ bool polishes(int turn, int squarings) const {
    return structure == Structure::skew && squarings > kHarmless && turn > 0 && turn <= squarings &&
           (turn % kPolished == 0 || turn == squarings);
  }
};

template <class A>
class Recorder : Recurrence<Recorder<A>, A> {
  using Base = Recurrence<Recorder<A>, A>;
  friend Base;
  Program<A>& program_;

 public:
  explicit Recorder(Program<A>& program) : Base(program.structure, program.dual), program_(program) {}

  void record() const {
    const auto& v = polynomials(program_.structure, A());
    program_.powers = part([&] {
      this->second_power(), this->third_power();
      if constexpr (sizeof(A) == 8) this->sixth_power();
    });
    program_.polynomial = part([&] {
      if constexpr (sizeof(A) == 8) program_.theta = v.theta18, this->degree18(v.v18);
      else program_.theta = v.theta12, this->degree12(v.v12);
      if (program_.structure != Structure::skew) this->add_identity(4);
    });
    for (int D : {4, 5}) {
      int next = D;
      program_.squares[D - 4] = part([&] { next = this->square(D); });
      if (program_.structure != Structure::skew) continue;
      this->polish(next);
      make(value(next), {{A(1), 0}}, {}, false);
      program_.squares[D - 4].more = program_.count;
    }
  }

 private:
  template <class F>
  Part part(const F& f) const {
    const int begin = program_.count;
    f();
    return {begin, program_.count, program_.count};
  }
  // The last step that writes O.
  Step<A>& maker(Matrix O) const {
    int i = program_.count - 1;
    while (program_.steps[i].O != place_of<A>(O)) --i;
    return program_.steps[i];
  }
  Step<A>& add(Matrix O, Terms<A> terms) const {
    Step<A>& step = program_.steps[program_.count++];
    step = {};
    step.O = place_of<A>(O);
    step.left = step.right = -1;
    for (const Term<A>& term : terms) {
      step.factors[step.count] = term.factor;
      step.terms[step.count++] = place_of<A>({O.derivative, term.i});
    }
    return step;
  }

  // A step has one product, so a second one is added in another step.
  void make(Matrix O, Terms<A> terms, Products products, bool half) const {
    Step<A>* step = &add(O, terms);
    step->half = half;
    for (const Factors& product : products) {
      if (step->left >= 0) step = &add(O, {{A(1), O.i}}), step->half = half;
      step->left = place_of<A>(product.A), step->right = place_of<A>(product.B);
    }
  }
  void complete(Matrix O, int sign) const { maker(O).mirror = static_cast<signed char>(sign); }
  void transpose(Matrix M, Matrix O) const {
    Step<A>& step = add(O, {});
    step.factors[0] = 1, step.terms[0] = place_of<A>(M), step.count = 1;
    step.transposed = true;
  }
  void add_to_diagonal(Matrix O, A x) const { maker(O).diagonal += x; }
};

template <class A>
Program<A> Program<A>::of(Structure structure, bool dual) {
  Program program{};
  program.structure = structure, program.dual = dual;
  Recorder<A>(program).record();
  return program;
}

}  // namespace fastparam::cuda
