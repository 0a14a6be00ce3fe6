// The bank conflicts of the exponentials.
#include "simt.h"  // before the device code

#include "../../csrc/exponential/cuda/lanes.cuh"
#include "../../csrc/exponential/cuda/team.cuh"
#include "banks.h"

using namespace fastparam;
using namespace fastparam::cuda;

template <class T>
static Batch<T> batch_of(const std::vector<T>& x, bool dual, std::vector<T>& y, int n) {
  const auto count = static_cast<long long>(x.size()) / (n * n);
  return {x.data(), dual ? x.data() : nullptr, y.data(), count, n, Structure::skew, false, false};
}

template <class T, int N>
static void lanes(double most) {
  using S = LanesShape<T, N>;
  const auto x = skew<T>(N, S::kGroups);
  std::vector<T> y(x.size());
  for (bool dual : {false, true})
    count(dual ? "exponential_lanes, derivative" : "exponential_lanes", sizeof(T), N, most, S::kThreads,
          S::shared_bytes(dual), exponential_lanes<T, N>, Program<T>::of(Structure::skew, dual),
          batch_of(x, dual, y, N));
}

// One block, with tiles of N.
template <class T, int N>
static void team(double most) {
  using S = TileShape<T, N>;
  constexpr int n = 2 * N;
  const auto x = skew<T>(n, 1);
  std::vector<T> y(x.size()), memory(TeamSpace<T, S>(n).words(false));
  unsigned arrived = 0;
  count("exponential_team", sizeof(T), N, most, S::kThreads, sizeof(typename S::Shared),
        exponential_team<T, N>, Program<T>::of(Structure::skew, false),
        TeamCall<T>{batch_of(x, false, y, n), memory.data(), &arrived, 1});
}

int main() {
  guarded("lanes", [] {
    lanes<float, 4>(1.2), lanes<float, 8>(1.26), lanes<float, 16>(1.29), lanes<float, 24>(1.4);
    lanes<float, 32>(1.05);
    lanes<double, 4>(1.05), lanes<double, 8>(1.6), lanes<double, 16>(1.5), lanes<double, 24>(1.41);
    lanes<double, 32>(1.4);
  });
  guarded("teams",
          [] { team<float, 32>(1), team<float, 64>(1.03), team<double, 32>(1.56), team<double, 64>(1.59); });
  return report();
}
