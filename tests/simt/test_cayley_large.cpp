// The kernels of csrc/cayley/cuda/large.cuh: the map and its gradient, combined as in cayley_large_cuda.cu,
// with the matrix products of the library replaced by loops.   ./test_cayley_large [quick]
#include "simt.h"  // before the device code

#include "../../csrc/cayley/cuda/block.cuh"
#include "../../csrc/cayley/cuda/large.cuh"
#include "../../csrc/cayley/cuda/pivoted.cuh"
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
  template <class T>
  static void run(const Given<T>& given, T* Q, long long batch, Limits<acc_t<T>> limits) {
    using A = acc_t<T>;
    const int n = given.n;
    const long long rows = batch * n;
    Buffer<A> D(batch * n * n);
    Buffer<unsigned> flags(batch), arrived(1);
    for (int b = 0; b < batch; ++b) flags[b] = 0;
    arrived[0] = 0;
    simt::launch(tile_pairs(batch, n), kBlock, 0, spread<T>, given, D.data(), flags.data());
    simt::launch(blocks_for(rows, kBlock / 32), kBlock, 0, check_rows<A>, D.data(), flags.data(), rows, n,
                 limits);
    invert<A>(D.data(), batch, n);
    bool in_place = false;  // as in that file, if the types allow it
    if constexpr (std::is_same_v<T, A>) in_place = turn++ % 2;
    const auto finish_to = [&](auto* to) {
      simt::launch(blocks_for(rows, kBlock / 32), kBlock, 0, finish<T>, given, D.data(), to, flags.data(),
                   rows, limits);
    };
    if constexpr (std::is_same_v<T, A>)
      if (in_place) finish_to(D.data()), std::copy(D.data(), D.data() + D.size(), Q);
    if (!in_place) finish_to(Q);
    Buffer<double> memory(TeamMemory::words(n, 1, sizeof(T) == 8));
    simt::launch(1, kBlock, 0, repeat_pivoted<T>,
                 Repeat<T>{given, Q, flags.data(), memory.data(), arrived.data(), batch, 1});
    CHECK(D.intact() && flags.intact(), "wrote outside, n=%d", n);
  }
  static inline int turn = 0;
};

// The flagged matrices are those with a large row, those with a row whose norm is not 1, and whole matrices
// that are not exactly skew.
static void flags() {
  for (int n : {5, 32, 45}) {
    const long long rows = 3 * n;
    for (int bad = 0; bad < n; bad += n / 3) {
      Buffer<float> d(rows * n), q(rows * n);
      Buffer<unsigned> large(3), crooked(3);
      for (int b = 0; b < 3; ++b) large[b] = crooked[b] = 0;
      for (size_t i = 0; i < d.size(); ++i) d[i] = 0;
      const int other = (bad + 1) % n;
      float& one = d[(n + bad) * n + other];  // of the middle matrix
      for (float value : {3.99f, 4.01f}) {
        one = value;
        simt::launch(blocks_for(rows, 8), kBlock, 0, check_rows<float>, d.data(), large.data(), rows, n,
                     Limits<float>{});
        CHECK(large[0] == 0 && large[1] == (value > 4) && large[2] == 0, "rows, n=%d", n);
      }
      for (float value : {5e-4f, 2e-3f}) {  // the square of the row is 1 + 4 value^2
        one = value;
        simt::launch(blocks_for(rows, 8), kBlock, 0, finish<float>,
                     Given<float>{nullptr, 0, 0, n, Layout::upper, 1}, d.data(), q.data(), crooked.data(),
                     rows, Limits<float>{});
        CHECK(crooked[0] == 0 && crooked[1] == (value > 1e-3f) && crooked[2] == 0, "unit rows, n=%d", n);
      }
    }
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
  guarded("skewness", skewness);
  guarded("float", [&] {
    for (int n : {1, 31, 32, 33, 49, 64, 65, 97, 130}) {
      width = n == 49 ? 16 : n == 64 ? 32 : 48;
      for (int family = 0; family < kFamilyCount; ++family)
        for (double norm : {0.1, 1., 5., 1e2, 1e4}) {
          if ((norm > 5 ? family : family + tests.turn) % 4 || (norm > 5 && n > (quick ? 33 : 65)) ||
              (quick && n > 65)) {
            ++tests.turn;
            continue;
          }
          tests.accurate<float, double>(family, n, n > 64 ? 1 : 2, {norm, 1});
        }
    }
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
