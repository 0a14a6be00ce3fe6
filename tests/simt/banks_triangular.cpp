// The bank conflicts of the triangular maps by tiles, after a test of the count.
#include "simt.h"  // before the device code

#include "../../csrc/triangular/cuda/triangular.cuh"
#include "banks.h"

namespace fastparam::cuda {

__global__ void strided(int stride) { dynamic_shared<int>()[threadIdx.x * stride] = 0; }
// Even lanes write in two of the four steps, and odd ones in the other two.
__global__ void in_turns() {
  for (unsigned step = 0; step < 4; ++step) {
    if (threadIdx.x % 2 == step % 2) continue;
    dynamic_shared<int>()[threadIdx.x] = 0;
  }
}

}  // namespace fastparam::cuda

using namespace fastparam::cuda;

static void known() {
  for (const auto& [stride, wavefronts] : {std::pair(0, 1), {1, 1}, {2, 2}, {4, 4}, {32, 32}, {33, 1}}) {
    simt::start_recording();
    simt::launch(1, 32, 33 * 32 * sizeof(int), strided, stride);
    const simt::Wavefronts sum = simt::stop_recording();
    CHECK(sum.counted == wavefronts && sum.without_conflicts == 1, "stride %d: %ld", stride, sum.counted);
  }
  simt::start_recording();
  simt::launch(1, 32, 32 * sizeof(int), in_turns);
  const simt::Wavefronts sum = simt::stop_recording();
  CHECK(sum.counted == 4 && sum.without_conflicts == 4, "in turns: %ld", sum.counted);
}

template <class T, int V, int Order>
static void tiles() {
  using Bits = BitsOf<T>;
  using S = Shape<Bits, V, Order>;
  constexpr int n = 2 * Order;
  const std::vector<Bits> x(n * n);
  std::vector<Bits> y(n * n);
  const Triangular<Bits> m{x.data(), y.data(), n * n, n, 1, n, 0, 0, false, true};
  count(V > 1 ? "triangular_forward, wide" : "triangular_forward", sizeof(T), Order, 1, S::kThreads, 0,
        triangular_forward<Bits, V, Order>, m, 3u);
  count(V > 1 ? "triangular_adjoint, wide" : "triangular_adjoint", sizeof(T), Order, 1, S::kThreads, 0,
        triangular_adjoint<T, V, Order>, m, 3u);
}

int main() {
  guarded("known counts", known);
  guarded("tiles", [] {
    using simt::half;
    tiles<half, 1, 32>(), tiles<half, 8, 32>(), tiles<half, 1, 64>(), tiles<half, 8, 64>();
    tiles<float, 1, 32>(), tiles<float, 4, 32>(), tiles<float, 1, 64>(), tiles<float, 4, 64>();
    tiles<double, 1, 32>(), tiles<double, 2, 32>();
  });
  return report();
}
