// The kernels of csrc/triangular/cuda/triangular.cuh, after the tests of the shim.   ./test_triangular
// [quick]
#include "simt.h"  // before the device code

#include "../../csrc/triangular/cuda/triangular.cuh"
#include "check.h"
#include "test_shim.h"

using namespace fastparam::cuda;
using simt::Buffer;

// ---- one case: a batch in memory, the entries that may be read, the expected result -----------------------

struct Layout {
  int n, batch, row_pad = 0;  // row_stride - n
  int batch_pad = 0;          // batch_stride - n row_stride; kBroadcast: batch_stride = 0
  size_t shift = 0;           // elements by which `in` is misaligned, and `out` unless it is written wide
};
constexpr int kBroadcast = -1;

template <class T, bool Adjoint>
struct Case {
  using Bits = BitsOf<T>;
  const Layout layout;
  const bool skew, lower;
  const int n = layout.n;
  const long long row_stride = n + layout.row_pad,
                  batch_stride = layout.batch_pad == kBroadcast ? 0 : n * row_stride + layout.batch_pad;
  Buffer<Bits> x, y;

  Case(Layout layout, bool skew, bool lower, int vector)
      : layout(layout),
        skew(skew),
        lower(lower),
        x((layout.batch - 1) * batch_stride + (n - 1) * row_stride + n, layout.shift),
        y(static_cast<size_t>(layout.batch) * n * n, vector > 1 ? 0 : layout.shift) {
    std::mt19937_64 random(static_cast<unsigned>(n * 64 + layout.batch));
#ifdef __SANITIZE_ADDRESS__
    __asan_poison_memory_region(x.data(), x.size() * sizeof(Bits));
#endif
    for (int b = 0; b < layout.batch; ++b)
      for (int i = 0; i < n; ++i)
        for (int j = 0; j < n; ++j) {
          if (!readable(i, j, vector)) continue;  // stays NaN, and inaccessible under AddressSanitizer
          Bits& element = x[b * batch_stride + i * row_stride + j];
#ifdef __SANITIZE_ADDRESS__
          __asan_unpoison_memory_region(&element, sizeof(Bits));
#endif
          if (used(i, j))
            element = Adjoint
                          ? bit_cast<Bits>(static_cast<T>(static_cast<acc_t<T>>(random() % 4001 / 500. - 4)))
                          : static_cast<Bits>(random());
        }
  }
  bool given(int i, int j) const { return lower ? i > j : i < j; }
  bool used(int i, int j) const { return Adjoint ? i != j || !skew : given(i, j) || (i == j && !skew); }
  // The adjoint reads all entries. The map reads those that share an access of `vector` elements with the
  // given triangle or the diagonal.
  bool readable(int i, int j, int vector) const {
    const int first = j / vector * vector, last = first + vector - 1;
    return Adjoint || (lower ? first <= i : last >= i);
  }
  Bits want(int b, int i, int j) {
    auto at = [&](int r, int c) { return x[b * batch_stride + r * row_stride + c]; };
    const Bits sign = static_cast<Bits>(skew ? Bits(1) << (8 * sizeof(Bits) - 1) : 0);
    if (i == j) return skew ? Bits(0) : at(i, i);
    if (!Adjoint) return given(i, j) ? at(i, j) : static_cast<Bits>(at(j, i) ^ sign);
    if (!given(i, j)) return 0;
    const acc_t<T> g = static_cast<acc_t<T>>(bit_cast<T>(at(i, j))),
                   h = static_cast<acc_t<T>>(bit_cast<T>(at(j, i)));
    return bit_cast<Bits>(static_cast<T>(skew ? g - h : g + h));
  }
  Triangular<Bits> map() {
    const Bits sign = static_cast<Bits>(Bits(1) << (8 * sizeof(Bits) - 1)), all = static_cast<Bits>(~Bits(0));
    return {x.data(),
            y.data(),
            batch_stride,
            row_stride,
            static_cast<unsigned>(layout.batch),
            n,
            skew ? sign : Bits(0),
            skew ? Bits(0) : all,
            lower,
            layout.shift == 0 && (row_stride | batch_stride) % kWide<Bits> == 0};
  }
  void verify(const char* kernel) {
    int wrong = 0;
    for (int b = 0; b < layout.batch; ++b)
      for (int i = 0; i < n; ++i)
        for (int j = 0; j < n; ++j) wrong += y[(static_cast<size_t>(b) * n + i) * n + j] != want(b, i, j);
    CHECK(wrong == 0, "%s: size %zu n=%d batch=%d pads %d %d skew=%d lower=%d adjoint=%d: %d wrong", kernel,
          sizeof(T), n, layout.batch, layout.row_pad, layout.batch_pad, skew, lower, Adjoint, wrong);
    CHECK(x.intact() && y.intact(), "%s: size %zu n=%d: wrote outside", kernel, sizeof(T), n);
  }
};

// ---- launches ---------------------------------------------------------------------------------------------

template <class T, bool Adjoint>
void flat(Layout layout, bool skew, bool lower) {
  Case<T, Adjoint> test(layout, skew, lower, 1);
  const int per_block = flat_matrices<T>(layout.n);
  simt::launch((layout.batch + per_block - 1) / per_block, flat_threads(layout.n), 0,
               triangular_flat<T, Adjoint>, test.map());
  test.verify("flat");
}

template <class T, bool Adjoint, int V, int Order>
void tiles(Layout layout, bool skew, bool lower, int groups) {
  using S = Shape<BitsOf<T>, V, Order>;
  Case<T, Adjoint> test(layout, skew, lower, V);
  const unsigned side = (layout.n + Order - 1) / Order, pairs = layout.batch * (side * (side + 1) / 2);
  groups = std::min(groups, S::kGroups);
  const unsigned blocks = (pairs + groups - 1) / groups;
  if constexpr (Adjoint)
    simt::launch(blocks, groups * S::kThreads, 0, triangular_adjoint<T, V, Order>, test.map(), pairs);
  else
    simt::launch(blocks, groups * S::kThreads, 0, triangular_forward<BitsOf<T>, V, Order>, test.map(), pairs);
  test.verify(V > 1 ? "tiles, wide" : "tiles");
}

// ---- the cases --------------------------------------------------------------------------------------------

int turn = 0;  // walks through the combinations of which not all are tested

template <class T, bool Adjoint>
void flat_sizes() {
  for (int n = 1; n <= kFlat; ++n)
    for (int flags = 0; flags < 4; ++flags) {
      const int block = flat_matrices<T>(n), batches[] = {1, block - 1, block, block + 1, 2 * block + 3},
                batch = batches[turn++ % 5];
      const Layout layouts[] = {{n, batch}, {n, batch, 3, 0, 1}, {n, batch, 0, 5}, {n, batch, 2, kBroadcast}};
      flat<T, Adjoint>(layouts[turn % 4], flags & 1, flags & 2);
      flat<T, Adjoint>(layouts[0], flags & 1, flags & 2);
    }
}

template <class T, bool Adjoint, int Order>
void tile_sizes(bool quick) {
  constexpr int V = kWide<T>;
  for (int n : {1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 24, 31, 32, 33, 40, 63, 64, 65, 96, 100, 128, 130}) {
    if (quick && n > Order + 8) break;
    for (int flags = 0; flags < 4; ++flags) {
      const int batch = n > 64 ? 1 + turn % 2 : 1 + turn % 5, groups = 1 + turn % 3 * 2;
      const Layout layouts[] = {
          {n, batch}, {n, batch, 1, 0, 1}, {n, batch, 0, 3, 2}, {n, batch, 5, kBroadcast, 3}};
      tiles<T, Adjoint, 1, Order>(layouts[++turn % 4], flags & 1, flags & 2, groups);
      constexpr int W = kNarrow<BitsOf<T>>;
      const Layout wide[] = {
          {n, batch},          {n, batch, V}, {n, batch, 0, 3 * V}, {n, batch, 2 * V, kBroadcast},
          {n, batch, 0, 0, W}, {n, batch, W}, {n, batch, 0, 3 * W}};
      if (n % V == 0) tiles<T, Adjoint, V, Order>(wide[turn / 2 % 7], flags & 1, flags & 2, groups);
    }
  }
}

static void every_kernel(bool quick) {
  using simt::bfloat16, simt::half;
  flat_sizes<unsigned short, false>(), flat_sizes<unsigned, false>(), flat_sizes<unsigned long long, false>();
  flat_sizes<half, true>(), flat_sizes<bfloat16, true>(), flat_sizes<float, true>(),
      flat_sizes<double, true>();
  tile_sizes<unsigned short, false, 32>(quick), tile_sizes<unsigned, false, 32>(quick),
      tile_sizes<unsigned long long, false, 32>(quick);
  tile_sizes<half, true, 32>(quick), tile_sizes<bfloat16, true, 32>(quick),
      tile_sizes<float, true, 32>(quick), tile_sizes<double, true, 32>(quick);
  tile_sizes<unsigned short, false, 64>(quick), tile_sizes<unsigned, false, 64>(quick);
  tile_sizes<half, true, 64>(quick), tile_sizes<bfloat16, true, 64>(quick),
      tile_sizes<float, true, 64>(quick);
}

// Every pair occurs once, in the order of rows, also at the ends of the range, where products are near 2^32.
static void pairs() {
  for (unsigned tiles = 1; tiles <= 70; ++tiles) {
    std::vector<int> met(tiles * tiles);
    for (unsigned k = 0; k < tiles * (tiles + 1); ++k) {  // two matrices
      unsigned matrix;
      int I, J;
      tile_pair(k, tiles, matrix, I, J);
      CHECK(matrix == k / (tiles * (tiles + 1) / 2) && 0 <= I && I <= J && J < static_cast<int>(tiles),
            "pair %u of %u: %d %d", k, tiles, I, J);
      ++met[I * tiles + J];
    }
    for (unsigned I = 0; I < tiles; ++I)
      for (unsigned J = 0; J < tiles; ++J)
        CHECK(met[I * tiles + J] == (I <= J ? 2 : 0), "pair (%u, %u) of %u", I, J, tiles);
  }
  for (unsigned tiles : {65534u, 65535u})
    for (unsigned back : {1u, tiles, 2 * tiles}) {
      unsigned matrix;
      int I, J;
      tile_pair(tiles / 2 * (tiles | 1) + (tiles % 2 ? tiles : 0) - back, tiles, matrix, I, J);
      CHECK(matrix == 0 && 0 <= I && I <= J && J < static_cast<int>(tiles), "pair of %u", tiles);
    }
}

int main(int argc, char**) {
  const bool quick = argc > 1;
  guarded("shim", shim);
  guarded("pairs", pairs);
  for (auto order : {simt::Order::forward, simt::Order::reverse, simt::Order::random}) {
    simt::schedule(order, 7);
    guarded("kernels", [&] { every_kernel(quick); });
  }
  return report();
}
