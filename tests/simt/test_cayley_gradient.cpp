// The kernel of csrc/cayley/cuda/gradient.cuh.   ./test_cayley_backward [quick]
#include "simt.h"  // before the device code

#include "../../csrc/cayley/cuda/gradient.cuh"
#include "gradient_case.h"

template <class T>
static void launch(const Given<T>& Q, const Given<T>& G, const Gradient<T>& gradient, long long batch) {
  const auto run = [&](auto N) {
    using S = BackwardShape<acc_t<T>, decltype(N)::value>;
    simt::launch(static_cast<unsigned>((batch + S::kMatrices - 1) / S::kMatrices), S::kThreads,
                 S::kSharedBytes, cayley_gradient<T, S::N>, Q, G, gradient, batch);
  };
  const int n = gradient.n;
  if (n <= 32)
    with_constant<4, 8, 16, 24, 32>(n <= 4 ? 4 : n <= 8 ? 8 : n <= 16 ? 16 : n <= 24 ? 24 : 32, run);
  else if constexpr (sizeof(acc_t<T>) == 4) with_constant<48, 64, 80, 96, 112, 128>(round_up(n, 16), run);
  else with_constant<48, 64>(round_up(n, 16), run);
}

int main(int argc, char**) {
  const bool quick = argc > 1;
  int turn = 0;
  const auto check = [&](auto zero, int n, int batch) {
    using T = decltype(zero);
    GradientCase<T> test(n, batch, kLayouts[turn % 4], turn / 4 % 2 ? 1 : -0.5, turn / 2 % 3);
    each_schedule(quick, turn++, [&] {
      test.verify([&](const Gradient<T>& gradient) { launch<T>(test.of_q(), test.of_g(), gradient, batch); });
    });
  };
  guarded("float", [&] {
    for (int n :
         {1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 23, 24, 25, 31, 32, 33, 47, 48, 64, 65, 80, 100, 112, 128})
      for (int batch : {1, 2, 3, 33, 1}) {
        if (n > 32 && (batch == 33 || (quick && batch > 1 && n > 48))) continue;
        check(float{}, n, batch);
      }
  });
  guarded("other types", [&] {
    for (int n : {1, 4, 6, 8, 16, 20, 24, 32, 33, 64})
      for (int batch : {1, 5})
        check(double{}, n, batch), check(simt::half{}, n, batch), check(simt::bfloat16{}, n, batch);
  });
  return report();
}
