// The kernels of csrc/cayley/cuda/large.cuh: the map and its gradient, combined as in cayley_large_cuda.cu,
// with the matrix products of the library replaced by loops.   ./test_cayley_large [quick]
#include "simt.h"  // before the device code

#include "../../csrc/cayley/cuda/block.cuh"
#include "../../csrc/cayley/cuda/large.cuh"
#include "../../csrc/cayley/cuda/pivoted.cuh"
#include "../../csrc/cayley/cuda/refine.cuh"
#include "forward_tests.h"
#include "gradient_case.h"

static unsigned blocks_for(long long items, int per_block) {
  return static_cast<unsigned>((items + per_block - 1) / per_block);
}
static unsigned tile_pairs(long long batch, int n) {
  const int tiles = (n + kSquare - 1) / kSquare;
  return static_cast<unsigned>(batch * (tiles * (tiles + 1) / 2));
}

// c += sign a b of (rows, inner) and (inner, columns).
template <class A>
static void add_product(A* c, int c_row, const A* a, int a_row, const A* b, int b_row, int rows, int inner,
                        int columns, A sign) {
  for (int i = 0; i < rows; ++i)
    for (int j = 0; j < columns; ++j) {
      A sum = 0;
      for (int k = 0; k < inner; ++k) sum += a[i * a_row + k] * b[k * b_row + j];
      c[i * c_row + j] += sign * sum;
    }
}

static int width = 48;  // of a panel

template <class A>
static void invert(A* D, int batch, int n) {
  for (int first = 0; first < n; first += width) {
    const int here = std::min(width, n - first), size = here * n, next = first + here;
    Buffer<A> C(static_cast<size_t>(batch) * size), R(C.size()), W(static_cast<size_t>(batch) * here * here);
    const Given<A> diagonal{
        D + first * n + first, static_cast<long long>(n) * n, n, here, Layout::inside, A(1)};
    using S = BlockShape<A, 48>;
    simt::launch(batch, S::kThreads, S::kSharedBytes, cayley_block<A, 48>, diagonal, W.data(), Limits<A>{},
                 nullptr, 0);
    simt::launch(blocks_for(batch * size, kBlock), kBlock, 0, split_panels<A>, D, W.data(), C.data(),
                 R.data(), batch, n, first, here);
    for (int b = 0; b < batch; ++b) {
      A *const d = D + static_cast<long long>(b) * n * n, *const rows = d + first * n;
      add_product<A>(rows, n, &W[b * here * here], here, &R[b * size], n, here, here, n, 1);
      add_product<A>(d, n, &C[b * size], here, rows, n, first, here, n, -1);
      if (next < n)
        add_product<A>(d + next * n, n, &C[b * size + next * here], here, rows, n, n - next, here, n, -1);
    }
    CHECK(C.intact() && R.intact() && W.intact(), "panels: wrote outside, n=%d", n);
  }
}

struct Large {
  static constexpr bool kGuarded = true;
  static inline int turn = 0, flagged = 0,
                    repeated = 0;  // matrices that needed more than one attempt, or two

  template <class T, int N>
  static void refine_flagged(const Given<T>& given, acc_t<T>* D, unsigned* flags, long long batch) {
    const int n = given.n, most = 1024 / Refiner<T, N>::kThreads, size = 1 + turn % most,
              teams = 1 + turn / 3 % (most / size), tiles = (n + N - 1) / N, columns = N * (1 + turn % tiles);
    const auto words = RefineMemory(n, columns, N).template words<acc_t<T>>();
    Buffer<double> memory(teams * words);
    Buffer<unsigned> arrived(teams);
    for (int t = 0; t < teams; ++t) arrived[t] = 0;
    simt::launch_together(static_cast<unsigned>(teams * size), Refiner<T, N>::kThreads,
                          Refiner<T, N>::kSharedBytes, refine<T, N>,
                          Refine<T>{given, D, flags, memory.data(), arrived.data(), batch, teams, columns});
    CHECK(memory.intact() && arrived.intact(), "refine: wrote outside, n=%d", n);
  }

  template <class T>
  static void run(const Given<T>& given, T* Q, long long batch, Limits<acc_t<T>> limits) {
    using A = acc_t<T>;
    const int n = given.n;
    const long long rows = batch * n;
    Buffer<A> D(batch * n * n), sizes(rows);
    Buffer<unsigned> flags(batch), arrived(1);
    for (int b = 0; b < batch; ++b) flags[b] = 0;
    arrived[0] = 0;
    const auto count = [&] {
      return static_cast<int>(
          std::count_if(flags.data(), flags.data() + batch, [](unsigned flag) { return flag != 0; }));
    };
    const auto finish_to = [&](auto* to) {
      simt::launch(blocks_for(rows, kBlock / 32), kBlock, 0, finish<T>, given, D.data(), to, sizes.data(),
                   flags.data(), rows, limits);
    };
    ++turn;
    simt::launch(tile_pairs(batch, n), kBlock, 0, spread<T>, given, D.data(), flags.data());
    simt::launch(blocks_for(rows, kBlock / 32), kBlock, 0, measure_rows<A>, D.data(), sizes.data(), rows, n);
    invert<A>(D.data(), batch, n);
    finish_to(static_cast<T*>(nullptr));
    flagged += count();
    if (turn % 4 == 0) refine_flagged<T, 64>(given, D.data(), flags.data(), batch);
    else refine_flagged<T, 32>(given, D.data(), flags.data(), batch);
    bool in_place = false;  // as in that file, if the types allow it
    if constexpr (std::is_same_v<T, A>) in_place = turn % 2;
    if constexpr (std::is_same_v<T, A>)
      if (in_place) finish_to(D.data());
    if (!in_place) finish_to(Q);
    repeated += count();
    Buffer<double> memory(TeamMemory<A>::words(n, 1, true));
    T* to = Q;
    if constexpr (std::is_same_v<T, A>)
      if (in_place) to = D.data();
    simt::launch(1, kBlock, 0, repeat_pivoted<T>,
                 Repeat<T>{given, to, flags.data(), D.data(), memory.data(), arrived.data(), batch, 1});
    if (in_place) std::copy(to, to + D.size(), Q);
    CHECK(memory.intact(), "repeat: wrote outside, n=%d", n);
    CHECK(D.intact() && sizes.intact() && flags.intact(), "wrote outside, n=%d", n);
  }
};

// The flagged matrices are those with a row whose norm is not 1, up to a tolerance that grows with the rows
// of aA up to a limit, and whole matrices that are not exactly skew.
static void flags() {
  for (int n : {5, 32, 45}) {
    const long long rows = 3 * n;
    for (int bad = 0; bad < n; bad += n / 3)
      for (float size : {0.f, 10.f, 1e3f, 1e30f, NAN}) {
        Buffer<float> d(rows * n), q(rows * n), sizes(rows);
        for (long long i = 0; i < rows; ++i) sizes[i] = 0;
        for (size_t i = 0; i < d.size(); ++i) d[i] = 0, q[i] = 7;
        sizes[n + (bad + 2) % n] = size * size * n;  // one row of the middle matrix
        const double tolerance = std::min(6. + size, size == size ? 512. : 0) * kEpsilon<float>;
        float& one = d[(n + bad) * n + (bad + 1) % n];
        for (double part : {0.8, 1.2}) {
          one = static_cast<float>(std::sqrt(part * (size == size ? tolerance : 512 * kEpsilon<float>)) / 2);
          Buffer<unsigned> crooked(3);
          for (int b = 0; b < 3; ++b) crooked[b] = 0;
          simt::launch(blocks_for(rows, 8), kBlock, 0, finish<float>,
                       Given<float>{nullptr, 0, 0, n, Layout::upper, 1}, d.data(),
                       part < 1 ? static_cast<float*>(nullptr) : q.data(), sizes.data(), crooked.data(), rows,
                       Limits<float>::of_large());
          CHECK(crooked[0] == 0 && crooked[1] == (part > 1) && crooked[2] == 0,
                "unit rows, n=%d size=%g part=%g", n, static_cast<double>(size), part);
        }
        CHECK(q[0] == 1 && q.intact(), "n=%d: Q is not 2 D + I", n);
      }
  }
}

// The sum of squares of each row.
static void row_sizes() {
  for (int n : {3, 32, 45}) {
    Buffer<float> d(static_cast<size_t>(n) * n), sizes(n);
    for (size_t i = 0; i < d.size(); ++i) d[i] = static_cast<float>(normal());
    simt::launch(blocks_for(n, 8), kBlock, 0, measure_rows<float>, d.data(), sizes.data(), n, n);
    for (int i = 0; i < n; ++i) {
      double sum = 0;
      for (int j = 0; j < n; ++j) sum += d[i * n + j] * d[i * n + j];
      CHECK(std::fabs(sizes[i] - sum) <= 1e-5 * sum, "row %d of %d", i, n);
    }
    CHECK(sizes.intact(), "row sizes: wrote outside, n=%d", n);
  }
}

// A whole matrix is flagged unless it is exactly skew, at any position of the differing element.
static void skewness() {
  for (int n : {3, 32, 45})
    for (int turn = 0; turn < 12; ++turn) {
      Input<float> input(n, 2, Layout::whole, 1);
      const Matrix a = skew_of(0, n, 1);
      input.put(0, a);
      const int r = static_cast<int>(generator() % n), c = turn % 3 ? static_cast<int>(generator() % n) : r;
      Matrix other = a;
      other[r * n + c] = turn == 11 ? NAN : other[r * n + c] * (1 + 1e-6) + (r == c ? 1e-30 : 0);
      input.put(1, other);
      Buffer<float> d(static_cast<size_t>(2) * n * n);
      Buffer<unsigned> flags(2);
      flags[0] = flags[1] = 0;
      simt::launch(tile_pairs(2, n), kBlock, 0, spread<float>, input.given(), d.data(), flags.data());
      CHECK(flags[0] == 0 && flags[1] == (kFailed | kNotSkew), "not skew at (%d, %d) of %d", r, c, n);
    }
}

template <class T>
static void gradients(bool quick) {
  int turn = 0;
  for (int n : {1, 2, 31, 32, 33, 64, 70, 97})
    for (Layout layout : kLayouts) {
      if (quick && n > 64) continue;
      using A = acc_t<T>;
      const int batch = 1 + turn % 3;
      GradientCase<T> test(n, batch, layout, turn % 2 ? 1 : -0.5, turn % 3);
      each_schedule(quick, turn++, [&] {
        test.verify([&](const Gradient<T>& gradient) {
          const int size = n * n;
          Buffer<A> P(batch * size), Z(batch * size);
          std::fill_n(Z.data(), batch * size, A(0));
          simt::launch(blocks_for(batch * size, kBlock), kBlock, 0, add_identity<T>, test.of_q(), P.data(),
                       batch);
          for (int b = 0; b < batch; ++b) {
            std::vector<A> transposed(size), g(size), left(size);
            for (int i = 0; i < size; ++i)
              transposed[i] = P[b * size + i % n * n + i / n],
              g[i] = static_cast<A>(test.g[b * size + i]) *
                     A(test.has_signs && test.signs[b * n + i % n] < 0 ? -1 : 1);
            add_product<A>(left.data(), n, transposed.data(), n, g.data(), n, n, n, n, 1);
            add_product<A>(&Z[b * size], n, left.data(), n, transposed.data(), n, n, n, n, 1);
          }
          simt::launch(tile_pairs(batch, n), kBlock, 0, project<T>, Z.data(), gradient);
          CHECK(P.intact() && Z.intact(), "gradient: wrote outside, n=%d", n);
        });
      });
    }
}

int main(int argc, char**) {
  const bool quick = argc > 1;
  ForwardTests<Large> tests{quick};
  guarded("flags", flags);
  guarded("row sizes", row_sizes);
  guarded("skewness", skewness);
  guarded("float", [&] {
    for (int n : {1, 31, 32, 33, 49, 64, 65, 97, 130}) {
      width = n == 49 ? 16 : n == 64 ? 32 : 48;
      for (int family = 0; family < kFamilyCount; ++family)
        for (double norm : {0.1, 1., 5., 30., 3e2, 1e4}) {
          if ((norm > 5 ? family : family + tests.turn) % 3 || (norm > 5 && n > (quick ? 33 : 97)) ||
              (quick && n > 65)) {
            ++tests.turn;
            continue;
          }
          tests.accurate<float, double>(family, n, n > 64 ? 1 : 2, {norm, 1}, Limits<float>::of_large());
        }
    }
  });
  guarded("attempts", [&] {  // of Gaussian matrices: one at norm 10, refined at 100
    Large::flagged = Large::repeated = 0;
    tests.accurate<float, double>(0, 65, 2, {10., 1.}, Limits<float>::of_large());
    CHECK(Large::flagged == 0, "%d flagged at norm 10", Large::flagged);
    tests.accurate<float, double>(0, 65, 2, {100., 1.}, Limits<float>::of_large());
    CHECK(Large::flagged > 0 && Large::repeated == 0, "of %d flagged at norm 100, %d repeated",
          Large::flagged, Large::repeated);
  });
  guarded("other types", [&] {
    width = 32;
    for (double norm : {0.1, 1., 1e3})
      tests.accurate<double, long double>(tests.turn % kFamilyCount, 40, 2, {norm});
    tests.rounded<simt::bfloat16>(35, 1. / 256), tests.rounded<simt::half>(34, 1. / 2048);
  });
  guarded("orthogonal", [&] {
    width = 32;
    tests.orthogonal<float>({33, 45}, {1e4, 1e6}, 1e-4);
    tests.orthogonal<double>({33, 45}, {1e9, 1e12}, 1e-9);
  });
  guarded("special values", [&] { tests.special(33, 3); });
  guarded("whole matrices", [&] { tests.whole(34, 5); });
  guarded("gradients",
          [&] { gradients<float>(quick), gradients<double>(quick), gradients<simt::half>(true); });
  return report();
}
