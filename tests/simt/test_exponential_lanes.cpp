// The kernel of csrc/exponential/cuda/lanes.cuh.   ./test_exponential_lanes [quick]
#include "simt.h"  // before the device code

#include "../../csrc/exponential/cuda/lanes.cuh"
#include "exponential_case.h"

template <class T>
static void launch(const Batch<T>& batch, const Program<acc_t<T>>& program) {
  const int n = batch.n;
  with_constant<4, 8, 16, 24, 32>(
      n <= 4    ? 4
      : n <= 8  ? 8
      : n <= 16 ? 16
      : n <= 24 ? 24
                : 32,
      [&](auto N) {
        using S = LanesShape<acc_t<T>, decltype(N)::value>;
        simt::launch(static_cast<unsigned>((batch.count + S::kGroups - 1) / S::kGroups), S::kThreads,
                     S::shared_bytes(program.dual), exponential_lanes<T, S::N>, program, batch);
      });
}

int main(int argc, char**) {
  const bool quick = argc > 1;
  int turn = 0;
  const auto check = [&](auto zero, int n, const std::vector<double>& norms, double most) {
    using T = decltype(zero);
    each_kind(quick, turn, [&](Structure structure, bool lower, bool dual) {
      std::vector<double> here = norms;
      for (double& norm : here)
        if (structure != Structure::skew || dual) norm = std::min(norm, most);
      ExponentialCase<T> test(n, structure, lower, dual, here);
      each_schedule(quick, turn++, [&] { test.verify(launch<T>); });
    });
    ++turn;
  };
  constexpr double bad = -1;
  // matrices that are squared often, seldom and never, and others that are not finite, side by side
  const std::vector<double> mixed{1,   1e6, 0,    bad, 0.01, 30, bad, 1e3, 5,
                                  0.3, 100, 1e-8, 2,   1e4,  10, 300, 0.1};
  guarded("float", [&] {
    for (int n = 1; n <= 32; ++n) check(float{}, n, n <= 8 ? mixed : std::vector(&mixed[0], &mixed[7]), 20);
  });
  guarded("double", [&] {
    for (int n = 1; n <= 32; ++n) check(double{}, n, {mixed[n % 17], 1e6, bad, 10, 0.2}, 50);
  });
  guarded("half types", [&] {
    for (int n : {1, 3, 8, 12, 16, 20, 24, 31, 32})
      check(simt::half{}, n, {1, 3, bad}, 1), check(simt::bfloat16{}, n, {0.1, bad, 2}, 2);
  });
  guarded("huge entries", [&] {
    for (int n : {2, 5, 16, 23, 32})
      check(float{}, n, {1e20, 1e37, 1}, 1), check(double{}, n, {1e100, 1e300, 1}, 1);
  });
  return report();
}
