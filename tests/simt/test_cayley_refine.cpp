// The kernel of csrc/cayley/cuda/refine.cuh.   ./test_cayley_refine [quick]
#include "simt.h"  // before the device code

#include "../../csrc/cayley/cuda/refine.cuh"
#include "cayley_case.h"

// The simulated machine has room for 1024 threads.
struct Team {
  int teams, size, columns;  // columns: at a time
};

template <class T, int N>
static void launch(const Given<T>& given, acc_t<T>* D, unsigned* flags, int batch, const Team& team,
                   Buffer<double>& memory) {
  Buffer<unsigned> arrived(team.teams);
  for (int t = 0; t < team.teams; ++t) arrived[t] = 0;
  simt::launch_together(
      static_cast<unsigned>(team.teams * team.size), Refiner<T, N>::kThreads, Refiner<T, N>::kSharedBytes,
      refine<T, N>,
      Refine<T>{given, D, flags, memory.data(), arrived.data(), batch, team.teams, team.columns});
  CHECK(memory.intact() && arrived.intact(), "n=%d: wrote outside", given.n);
}

// (I + aA)^-1 - I, with an error of Frobenius norm `error`.
template <class R>
static std::vector<R> near_inverse(const Matrix& aA, int n, double error) {
  std::vector<R> d = cayley_reference<R>(aA, n);
  for (int i = 0; i < n * n; ++i)
    d[i] = (d[i] - (i / n == i % n ? 1 : 0)) / 2 + static_cast<R>(error / n * normal());
  return d;
}

template <class A>
static bool is_poison(Buffer<A>& buffer) {
  return std::all_of(buffer.data(), buffer.data() + buffer.size(), [](A x) { return std::isnan(x); });
}

enum Kind { kRefined, kIdle, kFar, kSpoilt, kOther, kKinds };

// Matrices of all kinds in one batch. Only those that are flagged, skew and near their inverse are changed
// for good, and those that are not flagged are not touched.
template <class T, class R, int N>
static void refines(int n, Layout layout, double norm, double error, Team team, bool quick, int turn) {
  using A = acc_t<T>;
  const int batch = 7, square = n * n;
  Input<T> input(n, batch, layout, turn % 2 ? 1 : -0.3, turn % 3);
  Buffer<A> start(static_cast<size_t>(batch) * square);
  std::vector<std::vector<R>> exact(batch);
  const auto kind = [&](int b) { return (b + turn) % kKinds; };
  for (int b = 0; b < batch; ++b) {
    Matrix a = skew_of(turn % kFamilyCount, n, norm);
    if (kind(b) == kSpoilt) a[1] = NAN, a[n] = NAN;
    input.put(b, a);
    exact[b] = near_inverse<R>(input.aA[b], n, 0);
    const auto d = near_inverse<R>(input.aA[b], n, kind(b) == kFar ? 40 : error);
    for (int i = 0; i < square; ++i) start[b * square + i] = static_cast<A>(d[i]);
  }
  each_schedule(quick, turn, [&] {
    Buffer<A> D(start.size());
    std::copy(start.data(), start.data() + start.size(), D.data());
    Buffer<unsigned> flags(batch);
    for (int b = 0; b < batch; ++b)
      flags[b] = kind(b) == kIdle ? 0 : kind(b) == kOther ? kFailed | kNotSkew : kFailed;
    const std::vector<unsigned> before(flags.data(), flags.data() + batch);
    Buffer<double> memory(team.teams * RefineMemory(n, team.columns, N).template words<A>());
    launch<T, N>(input.given(), D.data(), flags.data(), batch, team, memory);
    CHECK(D.intact() && flags.intact(), "n=%d: wrote outside", n);
    for (int b = 0; b < batch; ++b) {
      const A *const d = &D[b * square], *const old = &start[b * square];
      const bool same = std::memcmp(d, old, square * sizeof(A)) == 0;
      if (kind(b) == kRefined) {
        const double left = distance(d, exact[b], square);
        CHECK(flags[b] == 0 && left <= kEnough * std::sqrt(n) * kEpsilon<A>,
              "size %zu n=%d norm=%g error=%g layout=%d columns=%d: %.1e left", sizeof(T), n, norm, error,
              static_cast<int>(layout), team.columns, left);
      } else {
        CHECK(flags[b] == before[b], "n=%d kind %d: the flag has changed", n, kind(b));
        CHECK(same, "n=%d kind %d: has changed", n, kind(b));
      }
    }
  });
}

// If no matrix is flagged, the work space is not touched.
static void idle() {
  Input<float> input(40, 2, Layout::upper, 1);
  for (int b = 0; b < 2; ++b) input.put(b, skew_of(0, 40, 1));
  Buffer<float> D(2 * 1600);
  Buffer<unsigned> flags(2);
  flags[0] = 0, flags[1] = kNotSkew;
  Buffer<double> memory(RefineMemory(40, 64, 32).words<float>());
  launch<float, 32>(input.given(), D.data(), flags.data(), 2, {1, 3, 64}, memory);
  CHECK(is_poison(memory) && is_poison(D), "idle, but memory was written");
  flags[0] = kFailed;
  for (int i = 0; i < 1600; ++i) D[i] = 0;
  launch<float, 32>(input.given(), D.data(), flags.data(), 2, {1, 3, 64}, memory);
  CHECK(!is_poison(memory), "the test of idleness sees nothing");
}

// A small product of residual and change proves nothing if the residual is not small, as for large aA and any
// small M.
static void not_near() {
  const int n = 33;
  Input<float> input(n, 1, Layout::upper, 1);
  input.put(0, skew_of(0, n, 1e8));
  Buffer<float> D(n * n);
  Buffer<unsigned> flags(1);
  for (int i = 0; i < n * n; ++i) D[i] = i / n == i % n ? -1 : static_cast<float>(1e-10 * normal());
  flags[0] = kFailed;
  Buffer<double> memory(RefineMemory(n, 64, 32).words<float>());
  launch<float, 32>(input.given(), D.data(), flags.data(), 1, {1, 3, 64}, memory);
  CHECK(flags[0] == kFailed, "accepted, but not near the inverse");
}

// A sum has twice the digits of its type.
static void sums() {
  for (int turn = 0; turn < 20; ++turn) {
    Sum<double> sum;
    long double exact = 0;
    for (int i = 0; i < 50; ++i) {
      const double a = normal() * std::pow(10., turn), b = normal();
      add_product(sum, a, b);
      exact += static_cast<long double>(a) * b;
    }
    sum.add(static_cast<double>(-exact));  // what is left is the rounding of the exact sum
    exact -= static_cast<double>(exact);
    CHECK(std::fabs(sum.get() - static_cast<double>(exact)) <= 1e-17 * std::pow(10., turn),
          "turn %d: %.3e instead of %.3e", turn, sum.get(), static_cast<double>(exact));
  }
}

int main(int argc, char**) {
  const bool quick = argc > 1;
  int turn = 0;
  const auto each_team = [&](auto zero, auto digits, std::initializer_list<int> orders, double norm) {
    using T = decltype(zero);
    using R = decltype(digits);
    for (int n : orders)
      for (Layout layout : kLayouts)
        for (double error : {1e-3, 0.5}) {
          if (quick && (turn % 3 || n > 64)) {
            ++turn;
            continue;
          }
          const int tiles = (n + 31) / 32, size = 1 + turn % 5, columns = 32 * (1 + turn % tiles);
          refines<T, R, 32>(n, layout, norm, error / std::max(1., norm), {1 + turn % 3, size, columns}, quick,
                            turn);
          if (turn % 4 == 0)
            refines<T, R, 64>(n, layout, norm, error / std::max(1., norm), {1 + turn % 2, 2, 64}, quick,
                              turn);
          ++turn;
        }
  };
  guarded("sums", sums);
  guarded("idle", idle);
  guarded("not near", not_near);
  guarded("float", [&] { each_team(float{}, double{}, {3, 31, 32, 33, 65, 70}, 5); });
  guarded("float, large", [&] { each_team(float{}, double{}, {33, 64}, 1e3); });
  using Longer = long double;
  guarded("double", [&] { each_team(double{}, Longer{}, {5, 36}, 20); });
  guarded("half", [&] { each_team(simt::half{}, double{}, {34}, 1); });
  return report();
}
