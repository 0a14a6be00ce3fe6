// The bank conflicts of the Cayley kernels.
#include "simt.h"  // before the device code

#include "../../csrc/cayley/cuda/block.cuh"
#include "../../csrc/cayley/cuda/gradient.cuh"
#include "banks.h"

using namespace fastparam;
using namespace fastparam::cuda;

template <class T, int N>
static void warp() {
  using S = WarpShape<T, N>;
  const auto x = skew<T>(N, S::kWarps * S::kMatrices);
  std::vector<T> y(x.size());
  for (Layout layout : {Layout::upper, Layout::whole})
    count(layout == Layout::upper ? "cayley_warp, triangle" : "cayley_warp, whole", sizeof(T), N, 1.02,
          S::kThreads, S::kSharedBytes, cayley_warp<T, N>, Given<T>{x.data(), N * N, N, N, layout, T(1)},
          y.data(), static_cast<long long>(S::kWarps * S::kMatrices), Limits<T>::of(N));
}
template <class T, int N>
static void gradient(double most) {
  using S = BackwardShape<T, N>;
  const auto x = skew<T>(N, S::kMatrices);
  std::vector<T> y(x.size());
  const Given<T> given{x.data(), N * N, N, N, Layout::whole, T(1)};
  count("cayley_gradient", sizeof(T), N, most, S::kThreads, S::kSharedBytes, cayley_gradient<T, N>, given,
        given, Gradient<T>{y.data(), N, Layout::upper, T(1)}, static_cast<long long>(S::kMatrices));
}

template <class T, int N>
static void block(double most, double of_gradient) {
  using S = BlockShape<T, N>;
  const auto x = skew<T>(N, 1);
  std::vector<T> y(x.size());
  unsigned flags[1];
  count("cayley_block", sizeof(T), N, most, S::kThreads, S::kSharedBytes, cayley_block<T, N>,
        Given<T>{x.data(), N * N, N, N, Layout::upper, T(1)}, y.data(), Limits<T>::of(N), flags, 0);
  gradient<T, N>(of_gradient);
}

int main() {
  guarded("up to 32", [] {
    warp<float, 4>(), warp<float, 8>(), warp<float, 16>(), warp<float, 24>(), warp<float, 32>();
    warp<double, 4>(), warp<double, 8>(), warp<double, 16>(), warp<double, 24>(), warp<double, 32>();
    gradient<float, 4>(1.38), gradient<float, 8>(1.5), gradient<float, 16>(1.4), gradient<float, 24>(1.2);
    gradient<float, 32>(1.1);
    gradient<double, 4>(1.5), gradient<double, 8>(1.5), gradient<double, 16>(1.4), gradient<double, 24>(1.22);
    gradient<double, 32>(1.17);
  });
  guarded("above", [] {
    block<float, 48>(1.2, 1.12), block<float, 64>(1.2, 1.1), block<float, 80>(1.35, 1.3);
    block<float, 96>(1.25, 1.2), block<float, 112>(1.4, 1.22), block<float, 128>(1.12, 1.05);
    block<double, 48>(1.25, 1.4), block<double, 64>(1.2, 1.56);
  });
  return report();
}
