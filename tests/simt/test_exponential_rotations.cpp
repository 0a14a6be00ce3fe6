// The kernel of csrc/exponential/cuda/rotations.cuh.   ./test_exponential_rotations [quick]
#include "simt.h"  // before the device code

#include "../../csrc/exponential/cuda/rotations.cuh"
#include "exponential_case.h"

template <class T>
static void launch(const Batch<T>& batch, const Program<acc_t<T>>&) {
  const auto blocks = static_cast<unsigned>((batch.count + kRotations - 1) / kRotations);
  if (batch.n == 1) return simt::launch(blocks, kRotations, 0, exponential_numbers<T>, batch);
  with_constant<2, 3, 4>(batch.n, [&](auto N) {
    simt::launch(blocks, kRotations, 0, exponential_rotations<T, decltype(N)::value>, batch);
  });
}

// The cosine and the sine of angles have all digits, however many quarters they contain.
template <class A>
static void check_angles() {
  for (int i = 0; i < 20000; ++i) {
    const A r = static_cast<A>(std::ldexp(normal(), i % (ThreadMath<A>::kLargestAngle + 2)));
    A c, s;
    Angle<ThreadMath<A>>::cos_sin(r, c, s);
    const long double error = std::max(std::abs(c - std::cos(static_cast<long double>(r))),
                                       std::abs(s - std::sin(static_cast<long double>(r))));
    CHECK(error <= 2 * std::numeric_limits<A>::epsilon(), "r=%g: error %Lg", static_cast<double>(r), error);
  }
}

int main(int argc, char**) {
  const bool quick = argc > 1;
  int turn = 0;
  constexpr double bad = -1;
  const auto check = [&](auto zero, const std::vector<double>& norms) {
    for (int n = 2; n <= 4; ++n)
      for (bool lower : {false, true})
        for (bool dual : {false, true}) {
          ExponentialCase<decltype(zero)> test(n, Structure::skew, lower, dual, norms);
          each_schedule(quick, turn++, [&] { test.verify(launch<decltype(zero)>); });
        }
  };
  // on both sides of the series, of multiples of pi / 4, and of the largest angle, in more than one block
  std::vector<double> norms{0,      1e-20,  1e-8,   1e-3,   0.7853, 0.7854, 0.9999,
                            1.0001, 1.5707, 1.5708, 3.1415, 3.1416, bad};
  for (int i = 0; i < 120; ++i) norms.push_back(std::pow(10, -3 + i / 12.));
  norms.insert(norms.end(), {bad, 1e9, 1e15, 1e20, 1e37});
  guarded("angles", [&] { check_angles<float>(), check_angles<double>(); });
  guarded("float", [&] { check(float{}, norms); });
  norms.insert(norms.end(), {1e100, 1e300});
  guarded("double", [&] { check(double{}, norms); });
  guarded("order 1", [&] {
    each_kind(false, 0, [&](Structure structure, bool lower, bool dual) {
      const std::vector<double> numbers{0, 1e-20, 1, bad, 20, 60, bad};
      ExponentialCase<float>(1, structure, lower, dual, numbers).verify(launch<float>);
      ExponentialCase<double>(1, structure, lower, dual, numbers).verify(launch<double>);
      ExponentialCase<simt::half>(1, structure, lower, dual, {1, bad, 5}).verify(launch<simt::half>);
    });
  });
  guarded("half types",
          [&] { check(simt::half{}, {1, 3, bad, 30}), check(simt::bfloat16{}, {0.1, bad, 2, 1e3}); });
  return report();
}
