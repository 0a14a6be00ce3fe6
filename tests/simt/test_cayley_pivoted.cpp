// The kernel of csrc/cayley/cuda/pivoted.cuh.   ./test_cayley_pivoted [quick]
#include "simt.h"  // before the device code

#include "../../csrc/cayley/cuda/pivoted.cuh"
#include "forward_tests.h"

// Teams of several blocks wait for each other, which is impossible for blocks that run one after the other.
// So their phases are separate launches here.
struct Phase {
  double* memory;
  int size, k, before;
  void* high;  // null, or of the accumulator's type

  template <class T>
  __device__ Member<T> member(const Given<T>& given) const {
    using A = acc_t<T>;
    return Member<T>(given, TeamMemory<A>(memory, static_cast<A*>(high), given.n, size), blockIdx.x, size);
  }
};
template <class T>
__global__ void fill_phase(const Given<T> given, Phase p, int* finite) {
  const Member<T> member = p.member(given);
  if (!member.fill(given.data)) *finite = 0;
}
template <class T>
__global__ void eliminate_phase(const Given<T> given, Phase p, int* pivot) {
  const Member<T> member = p.member(given);
  const int found = member.eliminate(p.k, p.before);
  if (threadIdx.x == 0) pivot[blockIdx.x] = found;
}
template <class T>
__global__ void collect_phase(const Given<T> given, Phase p, bool finite) {
  p.member(given).collect(p.before, finite);
}
template <class T>
__global__ void write_phase(const Given<T> given, Phase p, T* Q) {
  p.member(given).write(Q);
}
__global__ void defect_phase(const Given<double> given, Phase p, const double* Q) {
  p.member(given).find_defect(Q);
}
__global__ void near_phase(const Given<double> given, Phase p, int* near) {
  const bool found = p.member(given).is_near();
  if (threadIdx.x == 0) *near = found;
}
__global__ void multiply_phase(const Given<double> given, Phase p, const double* Q) {
  p.member(given).multiply_defect(Q);
}
__global__ void take_phase(const Given<double> given, Phase p, double* Q) { p.member(given).take_product(Q); }
template <class T>
__global__ void signs_phase(const Given<T> given, Phase p, T* Q, long long matrix) {
  p.member(given).put_signs(Q, matrix);
}

static int team_size = 1, turn = 0;  // of the next run

// Sets the flags as spread or cayley_block would.
template <class T>
static bool is_skew(const Given<T>& given) {
  for (int i = 0; i < given.n; ++i)
    for (int j = 0; j < given.n; ++j)
      if (given.element(given.data, i, j) != -given.element(given.data, j, i)) return false;
  return true;
}

struct Pivoted {
  static constexpr bool kGuarded = false;
  // Every matrix is flagged, and limits are not used.
  template <class T>
  static void run(const Given<T>& given, T* Q, long long batch, Limits<acc_t<T>>) {
    if (team_size > 1) return by_phases(given, Q, batch);
    using A = acc_t<T>;
    const int teams = 1 + batch % 3;
    const bool in_place = turn++ % 2;
    Buffer<A> D(in_place ? batch * given.n * given.n : 1);
    Buffer<double> memory(teams * TeamMemory<A>::words(given.n, 1, in_place));
    Buffer<unsigned> flags(batch), arrived(teams);
    for (int b = 0; b < batch; ++b) {
      Given<T> one = given;
      one.data = given.matrix(b);
      flags[b] = is_skew(one) ? kFailed : kFailed | kNotSkew;
    }
    for (int t = 0; t < teams; ++t) arrived[t] = 0;
    simt::launch(teams, kBlock, 0, repeat_pivoted<T>,
                 Repeat<T>{given, Q, flags.data(), in_place ? D.data() : nullptr, memory.data(),
                           arrived.data(), batch, teams});
    CHECK(memory.intact() && D.intact() && flags.intact() && arrived.intact(), "n=%d: wrote outside",
          given.n);
  }
  template <class T>
  static void by_phases(const Given<T>& given, T* Q, long long batch) {
    using A = acc_t<T>;
    const bool in_place = turn++ % 2;
    Buffer<A> high(in_place ? given.n * given.n : 1);
    Buffer<double> memory(TeamMemory<A>::words(given.n, team_size, in_place));
    Buffer<int> pivots(team_size), finite(1);
    for (int b = 0; b < batch; ++b) {
      Given<T> one = given;
      one.data = given.data + b * given.batch_stride;
      finite[0] = 1;
      Phase phase{memory.data(), team_size, 0, -1, in_place ? high.data() : nullptr};
      simt::launch(team_size, kBlock, 0, fill_phase<T>, one, phase, finite.data());
      for (; phase.k < given.n; ++phase.k) {
        simt::launch(team_size, kBlock, 0, eliminate_phase<T>, one, phase, pivots.data());
        phase.before = pivots[0];
        for (int i = 1; i < team_size; ++i)
          CHECK(pivots[i] == pivots[0], "n=%d: blocks disagree on pivot %d", given.n, phase.k);
      }
      T* const q = Q + static_cast<long long>(b) * given.n * given.n;
      simt::launch(team_size, kBlock, 0, collect_phase<T>, one, phase, finite[0] != 0);
      simt::launch(team_size, kBlock, 0, write_phase<T>, one, phase, q);
      if constexpr (sizeof(T) == 8)
        for (int step = 0; is_skew(one) && step < kPolishSteps; ++step) {
          simt::launch(team_size, kBlock, 0, defect_phase, one, phase, q);
          simt::launch(team_size, kBlock, 0, near_phase, one, phase, finite.data());
          if (finite[0] == 0) break;
          simt::launch(team_size, kBlock, 0, multiply_phase, one, phase, q);
          simt::launch(team_size, kBlock, 0, take_phase, one, phase, q);
        }
      simt::launch(team_size, kBlock, 0, signs_phase<T>, given, phase, q, b);
    }
    CHECK(memory.intact() && high.intact() && pivots.intact() && finite.intact(), "n=%d: wrote outside",
          given.n);
  }
};

// Matrices that are not flagged are not changed.
static void only_the_flagged() {
  Input<float> input(6, 5, Layout::upper, 1);
  for (int b = 0; b < 5; ++b) input.put(b, skew_of(0, 6, 1));
  Buffer<float> q(5 * 36);
  Buffer<double> memory(2 * TeamMemory<float>::words(6, 1, false));
  Buffer<unsigned> flags(5), arrived(2);
  arrived[0] = arrived[1] = 0;
  for (int b = 0; b < 5; ++b) flags[b] = b % 2;
  simt::launch(
      2, kBlock, 0, repeat_pivoted<float>,
      Repeat<float>{input.given(), q.data(), flags.data(), nullptr, memory.data(), arrived.data(), 5, 2});
  for (int b = 0; b < 5; ++b) CHECK(all_finite(&q[b * 36], 36) == (b % 2 == 1), "flagged: %d", b % 2);
}

int main(int argc, char**) {
  const bool quick = argc > 1;
  ForwardTests<Pivoted> tests{quick};
  guarded("teams of one", only_the_flagged);
  for (int size : {1, 2, 5}) {
    team_size = size;
    guarded("float", [&] {
      for (int n : {1, 2, 5, 9, 32, 33, 40, 65}) {
        if (n > 33 && (quick || size == 5)) continue;
        for (int family = 0; family < kFamilyCount; ++family)
          for (double norm : {0.1, 1., 100., 1e4})
            if (n < 9 || (family + tests.turn) % 5 == 0)
              tests.accurate<float, double>(family, n, 1 + n % 2, {norm});
            else ++tests.turn;
      }
    });
    guarded("double", [&] {
      for (int n : {3, 17})
        for (double norm : {0.5, 1., 1e3})
          tests.accurate<double, long double>(tests.turn % kFamilyCount, n, 2, {norm});
    });
    guarded("half types",
            [&] { tests.rounded<simt::bfloat16>(12, 1. / 256), tests.rounded<simt::half>(9, 1. / 2048); });
    guarded("special values", [&] { tests.special(6, 3); });
    guarded("whole matrices", [&] { tests.whole(5, 9), tests.whole(13, 4); });
  }
  return report();
}
