// The kernel of csrc/exponential/cuda/team.cuh.   ./test_exponential_team [quick]
#include "simt.h"  // before the device code

#include "../../csrc/exponential/cuda/team.cuh"
#include "exponential_case.h"

// The simulated machine has room for 1024 threads.
static int teams = 1, team_size = 1;

template <class T, int N>
static void launch(const Batch<T>& batch, const Program<acc_t<T>>& program) {
  using A = acc_t<T>;
  using S = TileShape<A, N>;
  const TeamSpace<A, S> space(batch.n);
  Buffer<A> memory(teams * space.words(program.dual));
  Buffer<unsigned> arrived(teams);
  for (int t = 0; t < teams; ++t) arrived[t] = 0;
  simt::launch_together(static_cast<unsigned>(teams * team_size), S::kThreads, sizeof(typename S::Shared),
                        exponential_team<T, N>, program,
                        TeamCall<T>{batch, memory.data(), arrived.data(), teams});
  CHECK(memory.intact() && arrived.intact(), "n=%d: wrote outside", batch.n);
}

int main(int argc, char**) {
  const bool quick = argc > 1;
  int turn = 0;
  const auto check = [&](auto zero, int n, const std::vector<double>& norms, double most) {
    using T = decltype(zero);
    each_kind(quick || n > 33, turn, [&](Structure structure, bool lower, bool dual) {
      std::vector<double> here = norms;
      for (double& norm : here)
        if (structure != Structure::skew || dual) norm = std::min(norm, most);
      ExponentialCase<T> test(n, structure, lower, dual, here);
      const bool wide = turn % 3 == 0;
      const int most = wide ? 4 : 16;
      team_size = 1 + turn % most, teams = 1 + turn / 4 % (most / team_size);
      each_schedule(quick || n > 33, turn++, [&] { test.verify(wide ? launch<T, 64> : launch<T, 32>); });
    });
    ++turn;
  };
  constexpr double bad = -1;
  const auto orders = [&](std::vector<int> all, std::vector<int> few) { return quick ? few : all; };
  guarded("float", [&] {
    for (int n : orders({1, 4, 13, 16, 17, 33, 48, 63, 64, 65, 81}, {16, 33, 65}))
      check(float{}, n, {1, 1e6, bad, 0.01, 30}, 20);
    for (int n : orders({129}, {})) check(float{}, n, {3}, 20), check(float{}, n, {300}, 20);
  });
  guarded("double", [&] {
    for (int n : orders({1, 16, 33, 64, 70}, {17, 66})) check(double{}, n, {0.2, 1e6, bad, 10}, 50);
  });
  guarded("half types", [&] {
    for (int n : orders({33, 66}, {33}))
      check(simt::half{}, n, {1, bad}, 1), check(simt::bfloat16{}, n, {bad, 2}, 2);
  });
  guarded("huge entries", [&] {
    for (int n : orders({5, 40}, {5})) check(float{}, n, {1e37, 1}, 1), check(double{}, n, {1e300, 1}, 1);
  });
  return report();
}
