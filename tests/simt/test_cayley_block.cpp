// The kernels of csrc/cayley/cuda/block.cuh, with one matrix per block.   ./test_cayley_block [quick]
#include "simt.h"  // before the device code

#include "../../csrc/cayley/cuda/block.cuh"
#include "../../csrc/cayley/cuda/pivoted.cuh"
#include "forward_tests.h"

struct Block {
  static constexpr bool kGuarded = true;
  template <class T>
  static void run(const Given<T>& given, T* Q, long long batch, Limits<acc_t<T>> limits) {
    constexpr int teams = 2;
    Buffer<unsigned> flags(batch + teams);
    const auto launch = [&](auto N) {
      using S = BlockShape<acc_t<T>, decltype(N)::value>;
      simt::launch(static_cast<unsigned>(batch), S::kThreads, S::kSharedBytes, cayley_block<T, S::N>, given,
                   Q, limits, given.layout == Layout::inside ? nullptr : flags.data(), teams);
    };
    const int order = std::max(48, round_up(given.n, 16));
    if constexpr (sizeof(acc_t<T>) == 4) with_constant<48, 64, 80, 96, 112, 128>(order, launch);
    else with_constant<48, 64>(order, launch);
    if (given.layout == Layout::inside) return;
    Buffer<double> memory(teams * TeamMemory<acc_t<T>>::words(given.n, 1, false));
    simt::launch(
        teams, kBlock, 0, repeat_pivoted<T>,
        Repeat<T>{given, Q, flags.data(), nullptr, memory.data(), flags.data() + batch, batch, teams});
    CHECK(flags.intact() && memory.intact(), "n=%d: wrote outside", given.n);
  }
};

// A diagonal block of a larger matrix: (I + D)^-1 - I, for D of any size.
template <class T>
static void inside(int n, int order, int first, double norm, double tolerance) {
  Buffer<T> d(static_cast<size_t>(2) * order * order), m(static_cast<size_t>(2) * n * n);
  std::vector<std::vector<double>> exact(2);
  for (int b = 0; b < 2; ++b) {
    Matrix a = skew_of(0, n, norm);
    for (int i = 0; i < n * n; ++i) {
      if (i / n == i % n) a[i] += std::fabs(normal());
      T& element = d[static_cast<size_t>(b) * order * order + (first + i / n) * order + first + i % n];
      element = static_cast<T>(a[i]);
      a[i] = element;
    }
    exact[b] = cayley_reference<double>(a, n);
    for (int i = 0; i < n * n; ++i) exact[b][i] = (exact[b][i] - (i / n == i % n)) / 2;
  }
  const Given<T> given{
      d.data() + first * order + first, static_cast<long long>(order) * order, order, n, Layout::inside, 1};
  Block::run<T>(given, m.data(), 2, {0, 0});  // limits that no matrix satisfies
  for (int b = 0; b < 2; ++b)
    CHECK(distance(&m[static_cast<size_t>(b) * n * n], exact[b], n * n) <=
              tolerance * std::sqrt(n) * kEpsilon<T>,
          "inside n=%d", n);
  CHECK(d.intact() && m.intact(), "inside n=%d: wrote outside", n);
}

int main(int argc, char**) {
  const bool quick = argc > 1;
  ForwardTests<Block> tests{quick};
  guarded("float", [&] {
    for (int n : {1, 33, 40, 48, 49, 64, 65, 80, 81, 96, 100, 112, 127, 128}) {
      if (quick && n > 65 && n % 16) continue;
      for (int family = 0; family < kFamilyCount; ++family)
        for (double norm : {0.1, 1., 5., 10., 100., 1e4}) {
          if ((quick ? n > 48 : n > 65) && (family + tests.turn) % 3) {
            ++tests.turn;
            continue;
          }
          tests.accurate<float, double>(family, n, n > 65 ? 1 : 2, {norm, 1});
        }
      tests.accurate<float, double>(0, n, 3, {0.1, 1e3, 1});
    }
  });
  guarded("double", [&] {
    for (int n : {2, 33, 47, 48, 60, 64})
      for (double norm : {0.1, 1., 1e3})
        if (!quick || n == 33 || n == 64)
          tests.accurate<double, long double>(tests.turn % kFamilyCount, n, 1, {norm});
  });
  guarded("half types", [&] {
    for (int n : {40, 64, 70})
      tests.rounded<simt::bfloat16>(n, 1. / 256), tests.rounded<simt::half>(n, 1. / 2048);
  });
  guarded("orthogonal", [&] {
    tests.orthogonal<float>({33, 49, 65}, {1e4, 1e6}, 1e-4);
    tests.orthogonal<double>({33, 49}, {1e9, 1e12}, 1e-9);
  });
  guarded("limits", [&] { quick ? tests.limits({33}) : tests.limits({33, 48, 64}); });
  guarded("special values", [&] {
    for (int n : {33, 48, 64}) tests.special(n, 3);
  });
  guarded("whole matrices", [&] {
    for (int n : {33, 48, 64}) tests.whole(n, quick ? 5 : 9);
  });
  guarded("inside", [&] {
    for (int n : {1, 16, 48, 64, 80}) inside<float>(n, n + 7, 3, 1, 3), inside<float>(n, 2 * n, n, 30, 300);
    inside<double>(49, 70, 16, 1, 3);
  });
  return report();
}
