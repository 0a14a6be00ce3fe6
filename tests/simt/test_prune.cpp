// The kernels of csrc/prune/cuda/prune.cuh.   ./test_prune [quick]
#include "simt.h"  // before the device code

#include <string>

#include "../../csrc/prune/cuda/prune.cuh"
#include "check.h"

using namespace fastparam::cuda;
using simt::Buffer;

// A dimension of the mask, last one first: its size, and whether it is broadcast.
struct Dimension {
  long long size;
  bool broadcast;
};

static bool same(const void* a, const void* b, size_t bytes) { return std::memcmp(a, b, bytes) == 0; }

// X is NaN wherever the mask prunes it, which is the initial content of Buffer. X is misaligned by `shift`
// elements, and so are Y and the mask if they are not accessed in chunks.
template <class T, int V, bool Packed, bool InRows, class Index>
void one(const std::vector<Dimension>& dimensions, int blocks, size_t shift, long long gap) {
  Pruning<T, Index> p{};
  p.depth = static_cast<int>(dimensions.size());
  // the unit of the strides if the masks of a chunk are read together
  const int unit = dimensions[0].broadcast ? 1 : V;
  long long count = 1, reach = 1;  // elements; bits or bytes of the mask
  for (int d = 0; d < p.depth; ++d) {
    p.size[d] = static_cast<Index>(dimensions[d].size);
    p.stride[d] = dimensions[d].broadcast ? 0 : d == 0 ? 1 : (reach + gap) / unit * unit;
    reach += (dimensions[d].size - 1) * p.stride[d];
    count *= dimensions[d].size;
  }
  Buffer<T> x(count, shift), y(count, V > 1 ? 0 : shift);
  Buffer<unsigned char> mask(Packed ? (reach + 7) / 8 : reach, V > 1 ? 0 : shift);
  std::mt19937_64 random(static_cast<unsigned>(count * 8 + V));
  for (size_t i = 0; i < mask.size(); ++i)
    mask[i] = static_cast<unsigned char>(Packed ? random() : random() % 2 * (1 + random() % 2));
  p.in = x.data(), p.out = y.data(), p.mask = mask.data(), p.count = static_cast<Index>(count);
  p.aligned = shift == 0;

  std::vector<bool> keep(count);
  for (long long e = 0; e < count; ++e) {
    long long rest = e, place = 0;
    for (int d = 0; d < p.depth; ++d)
      place += rest % dimensions[d].size * p.stride[d], rest /= dimensions[d].size;
    keep[e] = Packed ? mask[place / 8] >> place % 8 & 1 : mask[place] != 0;
    if (!keep[e]) continue;
    unsigned char bytes[sizeof(T)];
    for (auto& byte : bytes) byte = static_cast<unsigned char>(random());
    std::memcpy(&x[e], bytes, sizeof(T));
  }
  simt::launch(blocks, kBlock, 0, prune<T, V, Packed, InRows, Index>, p);
  int wrong = 0;
  const T zero{};
  for (long long e = 0; e < count; ++e) wrong += !same(&y[e], keep[e] ? &x[e] : &zero, sizeof(T));
  CHECK(wrong == 0, "size %zu V=%d packed=%d rows=%d count=%lld depth=%d row=%lld%s shift=%zu: %d wrong",
        sizeof(T), V, Packed, InRows, count, p.depth, dimensions[0].size,
        dimensions[0].broadcast ? " broadcast" : "", shift, wrong);
  CHECK(x.intact() && y.intact() && mask.intact(), "size %zu V=%d: wrote outside", sizeof(T), V);
}

// Enough blocks for all elements, with 1, 2, ... chunks per thread.
template <class T, int V, bool Packed, bool InRows>
void every_grid(const std::vector<Dimension>& dimensions, size_t shift, long long gap) {
  long long count = 1;
  for (const auto& d : dimensions) count *= d.size;
  const long long chunks = (count + V - 1) / V, blocks = std::max(1LL, (chunks + kBlock - 1) / kBlock);
  for (int items = 1; items <= kItems<InRows>; ++items) {
    const int launched = static_cast<int>((blocks + items - 1) / items);
    if (items % 2) one<T, V, Packed, InRows, unsigned>(dimensions, launched, shift, gap);
    else one<T, V, Packed, InRows, unsigned long long>(dimensions, launched, shift, gap);
  }
}

template <class T, bool Packed>
void flat(bool quick) {
  constexpr int V = kWide<T>;
  for (long long count :
       {1, 2, 3, 7, 8, 9, 15, 16, 17, 63, 64, 65, 255, 257, 1000, 1023, 2049, 8191, 8192, 8200, 20001}) {
    if (quick && count > 2049) break;
    every_grid<T, V, Packed, false>({{count, false}}, 0, 0);
    if (V > 1) every_grid<T, V, Packed, false>({{count, false}}, kNarrow<T>, 0);
    every_grid<T, 1, Packed, false>({{count, false}}, sizeof(T) == 16 ? 0 : count % 3, 0);
    if (!Packed) every_grid<T, V, Packed, false>({{count, true}}, 0, 0);
  }
}

template <class T, bool Packed>
void rows(bool quick) {
  constexpr int V = kWide<T>;
  for (long long row : {1, 3, 8, 9, 24, 33, 64, 100, 256, 264}) {
    if (quick && row > 64) break;
    for (long long others : {1, 2, 17})
      // a packed mask has one element for each element of a row
      for (int last = 0; last <= !Packed; ++last) {
        const bool one_a_row = last;
        const std::vector<std::vector<Dimension>> masks = {
            {{row, one_a_row}, {others, false}},
            {{row, one_a_row}, {others, true}},
            {{row, one_a_row}, {3, true}, {others, false}},
            {{row, one_a_row}, {2, false}, {others, true}, {2, false}},
            {{row, one_a_row}, {2, true}, {1, false}, {others, false}, {2, true}, {2, false}}};
        for (const auto& mask : masks) {
          every_grid<T, 1, Packed, true>(mask, sizeof(T) == 16 ? 0 : others % 3, 3);
          if (row % V == 0)
            every_grid<T, V, Packed, true>(mask, V > 1 ? others % 2 * kNarrow<T> : 0, 2 * V - 1);
        }
      }
  }
}

template <class T>
void of_size(bool quick) {
  flat<T, true>(quick), flat<T, false>(quick), rows<T, true>(quick), rows<T, false>(quick);
}

static void packing() {
  for (long long count : {1, 7, 8, 9, 16, 63, 64, 65, 2047, 2048, 2049, 2056, 5000}) {
    for (size_t shift : {0, 3}) {
      const long long bytes = (count + 7) / 8;
      const int blocks = static_cast<int>((bytes + kBlock - 1) / kBlock);
      Buffer<unsigned char> bools(count, shift), packed(bytes, shift), back(count);
      std::mt19937 random(static_cast<unsigned>(count));
      for (long long i = 0; i < count; ++i)
        bools[i] = static_cast<unsigned char>(random() % 2 ? 0 : random() % 3 ? 1 : random());
      simt::launch(blocks, kBlock, 0, pack, bools.data(), packed.data(), count, shift == 0);
      simt::launch(blocks, kBlock, 0, unpack, packed.data(), back.data(), count);
      int wrong = 0;
      for (long long i = 0; i < 8 * bytes; ++i)
        wrong += (packed[i / 8] >> i % 8 & 1) != (i < count && bools[i] != 0);
      for (long long i = 0; i < count; ++i) wrong += back[i] != (bools[i] != 0);
      CHECK(wrong == 0, "pack, unpack: count=%lld shift=%zu: %d wrong", count, shift, wrong);
      CHECK(bools.intact() && packed.intact() && back.intact(), "pack, unpack: count=%lld: wrote outside",
            count);
    }
  }
}

int main(int argc, char**) {
  const bool quick = argc > 1;
  for (auto order :
       // threads do not interact, so no more schedules are needed
       {simt::Order::forward, simt::Order::reverse}) {
    simt::schedule(order, 7);
    guarded("packing", packing);
    guarded("prune", [&] {
      of_size<unsigned short>(quick), of_size<unsigned>(quick), of_size<unsigned long long>(quick),
          of_size<Sixteen>(quick);
    });
  }
  return report();
}
