// The kernels of csrc/cayley/cuda/warp.cuh, n <= 32.   ./test_cayley_warp [quick]
#include "simt.h"  // before the device code

#include "../../csrc/cayley/cuda/warp.cuh"
#include "forward_tests.h"

struct Warp {
  static constexpr bool kGuarded = true;
  template <class T>
  static void run(const Given<T>& given, T* Q, long long batch, Limits<acc_t<T>> limits) {
    const int n = given.n;
    with_constant<4, 8, 16, 24, 32>(
        n <= 4    ? 4
        : n <= 8  ? 8
        : n <= 16 ? 16
        : n <= 24 ? 24
                  : 32,
        [&](auto N) {
          using S = WarpShape<acc_t<T>, decltype(N)::value>;
          constexpr int per_block = S::kWarps * S::kMatrices;
          const auto blocks = static_cast<unsigned>((batch + per_block - 1) / per_block);
          simt::launch(blocks, S::kThreads, S::kSharedBytes, cayley_warp<T, S::N>, given, Q, batch, limits);
        });
  }
};

int main(int argc, char**) {
  ForwardTests<Warp> tests{argc > 1};
  guarded("float", [&] {
    for (int n : {1, 2, 3, 4, 5, 7, 8, 9, 12, 15, 16, 17, 23, 24, 25, 31, 32}) {
      for (int family = 0; family < kFamilyCount; ++family)
        for (double norm : {0.01, 0.1, 1., 3., 5., 10., 100., 1e3, 1e4})
          tests.accurate<float, double>(family, n, 3, {norm});
      for (int batch : {1, 2, 33}) tests.accurate<float, double>(0, n, batch, {1});
      // good and bad matrices side by side in a warp: each result must be the same as alone
      for (int family = 0; family < 4; ++family) tests.accurate<float, double>(family, n, 11, {0.1, 1e3, 1});
    }
  });
  guarded("double", [&] {
    for (int n : {1, 3, 4, 6, 8, 9, 16, 17, 24, 29, 32})
      for (double norm : {0.1, 1., 1e3})
        tests.accurate<double, long double>(tests.turn % kFamilyCount, n, 3, {norm, 1});
  });
  guarded("half types", [&] {
    for (int n : {3, 5, 16, 21, 32})
      tests.rounded<simt::bfloat16>(n, 1. / 256), tests.rounded<simt::half>(n, 1. / 2048);
  });
  guarded("orthogonal", [&] {
    tests.orthogonal<float>({2, 3, 4, 5, 9, 17, 25, 32}, {1e4, 1e6}, 1e-4);
    tests.orthogonal<double>({2, 3, 4, 7, 17, 25, 31}, {1e6, 1e9, 1e12}, 1e-9);
  });
  guarded("limits", [&] { tests.limits({8, 16, 24, 32}); });
  guarded("special values", [&] {
    for (int n : {2, 5, 8, 16, 20, 24, 32}) tests.special(n, 9);
  });
  guarded("whole matrices", [&] {
    for (int n : {2, 3, 4, 5, 8, 13, 16, 24, 32}) tests.whole(n, 17);
  });
  return report();
}
