// masked_prune, pack_mask and unpack_mask on CPU, in one pass over memory.
//
// Every kind of mask is converted to words of 64 bits, with one bit per element, and a word is spread over
// the lanes of vectors. Elements are moved bit for bit, as x & (all ones or none), so that NaN and -0 under
// the mask become +0. An element of 16 bytes is two parts of 8 bytes with the same bit.
#include <ATen/EmptyTensor.h>
#include <torch/library.h>

#include <algorithm>

#include "../../core/cpu/parallel.h"
#include "../prune.h"
#include "mask_bits.h"

namespace fastparam {
namespace {

using namespace fastparam::cpu;

constexpr int64_t kStreamBytes = 12 << 20;  // outputs of at least this size are written past the caches
// But not from this size on: such memory is newly mapped, and its zeroed pages are already in the caches.
constexpr int64_t kFreshBytes = 32 << 20;
constexpr int64_t kAhead = 4096;  // how far ahead of such stores the input is fetched: a few percent faster
constexpr int64_t kLine = 64;     // bytes of a cache line
constexpr int64_t kWord = 64;     // elements per word of the mask; threads get whole words

// ---- masked_prune -----------------------------------------------------------------------------------------

enum class Kind { bits, bytes, one };  // the mask of a row: one bit or byte per element, or one for all

template <class Part>
struct Map {
  const Part* in;
  Part* out;
  const uint8_t* mask;
  const MaskedRows* rows;
  int64_t elements;
};

template <class Part, int Parts, Kind kind, bool Streamed, int Bytes>
struct Prune {
  // The bits of a vector must fit into one lane.
  static constexpr int kLanes = std::min<int>(Bytes / sizeof(Part), 8 * sizeof(Part)),
                       kElements = kLanes / Parts;
  using Row = Vec<Part, kLanes>;

  Row places;  // in each lane, the bit of its element

  FASTPARAM_INLINE Prune() {
    for (int lane = 0; lane < kLanes; ++lane) places[lane] = static_cast<Part>(Part(1) << lane / Parts);
  }

  FASTPARAM_INLINE void put(Part* y, const Row& value) const {
    if constexpr (Streamed) store_past_caches(y, value);
    else store(y, value);
  }

  FASTPARAM_INLINE Row kept(const Part* x, uint64_t word) const {
    const Row bits = static_cast<Part>(word) - Row{};
    return load<Row>(x) & bit_cast<Row>((bits & places) == places);
  }

  // For a mask of bytes: from AVX2 on, they are widened at once.
  static constexpr bool kWidens = kind == Kind::bytes && Parts == 1 && Bytes >= 32;
  FASTPARAM_INLINE Row kept(const Part* x, const uint8_t* mask) const {
    return load<Row>(x) & __builtin_convertvector(load<Vec<int8_t, kLanes>>(mask) != 0, Row);
  }

  static FASTPARAM_INLINE void fetch(const Part* x) {
    for (size_t byte = 0; byte < kWord * Parts * sizeof(Part); byte += kLine)
      __builtin_prefetch(reinterpret_cast<const char*>(x) + kAhead + byte);
  }

  // At most one word.
  FASTPARAM_INLINE void some(const Part* x, Part* y, uint64_t word, int64_t count) const {
    int64_t i = 0;
    for (; i + kElements <= count; i += kElements) put(y + i * Parts, kept(x + i * Parts, word >> i));
    for (; i < count; ++i)
      for (int part = 0; part < Parts; ++part)
        y[i * Parts + part] = x[i * Parts + part] & static_cast<Part>(-(word >> i & 1));
  }

  // One whole word, one vector after the other. The stores in between keep the loads in order, which suits
  // the hardware prefetcher.
  FASTPARAM_INLINE void whole(const Part* x, Part* y, const uint8_t* mask) const {
    const uint64_t word = kWidens ? 0 : word_at(mask, kWord);
#pragma GCC unroll 32
    for (int i = 0; i < kWord; i += kElements) {
      if constexpr (kWidens) put(y + i, kept(x + i, mask + i));
      else put(y + i * Parts, kept(x + i * Parts, word >> i));
    }
  }

  static FASTPARAM_INLINE uint64_t word_at(const uint8_t* mask, int64_t count) {
    if constexpr (kind == Kind::bits) return word_of_bits(mask, count);
    if constexpr (kind == Kind::bytes) return word_of_bytes(mask, count);
    return *mask ? ~uint64_t(0) : 0;
  }

  // Elements of one row. The mask of the first one is bit or byte `place`.
  FASTPARAM_INLINE void run(const Part* x, Part* y, const uint8_t* mask, int64_t place, int64_t count) const {
    if constexpr (kind == Kind::bits) {
      if (const int64_t before = place % 8; before != 0) {
        const int64_t head = std::min(count, 8 - before);
        some(x, y, static_cast<uint64_t>(mask[place / 8]) >> before, head);
        x += head * Parts, y += head * Parts, place += head, count -= head;
      }
    }
    mask += kind == Kind::bits ? place / 8 : place;
    for (; count >= kWord; count -= kWord, x += kWord * Parts, y += kWord * Parts) {
      if constexpr (Streamed) fetch(x);
      whole(x, y, mask);
      mask += kind == Kind::bits ? kWord / 8 : kind == Kind::bytes ? kWord : 0;
    }
    if (count > 0) some(x, y, word_at(mask, count), count);
  }
};

// The position of an element in X, and of its mask, while rows are traversed. The values that every row
// needs are copied from `rows`, so that they stay in registers.
struct Cursor {
  const MaskedRows& rows;
  const MaskedRows::Dimension row, last;  // the last of the outer dimensions
  // x and place belong to the first element of the row, x in elements and place in bits or bytes. index is
  // the index in `last`.
  int64_t column, x = 0, place = 0, index = 0;
  // The indices in the other dimensions. With more than 64 of size 2 or more, numel() would not fit an
  // int64_t.
  int64_t above[64];

  __attribute__((noinline)) Cursor(const MaskedRows& rows, int64_t element)
      : rows(rows),
        row(rows.row),
        last(rows.outer.empty() ? MaskedRows::Dimension{1, 0, 0} : rows.outer.back()),
        column(element % row.size) {
    int64_t rest = element / row.size;
    index = rest % last.size, rest /= last.size, x = index * last.X, place = index * last.mask;
    for (int d = static_cast<int>(rows.outer.size()) - 2; d >= 0; rest /= rows.outer[d].size, --d) {
      above[d] = rest % rows.outer[d].size;
      x += above[d] * rows.outer[d].X, place += above[d] * rows.outer[d].mask;
    }
  }

  FASTPARAM_INLINE int64_t mask() const { return place + column * row.mask; }

  // Never moves beyond the end of the row.
  FASTPARAM_INLINE void advance(int64_t count) {
    column += count;
    if (column < row.size) return;
    column = 0, x += last.X, place += last.mask;
    if (++index == last.size) carry();
  }

 private:
  // Not inlined, because it is rare and every instance of a kernel would contain a copy.
  __attribute__((noinline)) void carry() {
    index = 0, x -= last.size * last.X, place -= last.size * last.mask;
    for (int d = static_cast<int>(rows.outer.size()) - 2; d >= 0; --d) {
      x += rows.outer[d].X, place += rows.outer[d].mask;
      if (++above[d] < rows.outer[d].size) break;
      x -= above[d] * rows.outer[d].X, place -= above[d] * rows.outer[d].mask, above[d] = 0;
    }
  }
};

template <class Part, int Parts, Kind kind, bool Streamed>
struct PruneBody {
  template <int Bytes>
  static FASTPARAM_INLINE void run(const Map<Part>* map, int64_t begin, int64_t end) {
    const Prune<Part, Parts, kind, Streamed, Bytes> prune;
    const int64_t last = std::min(end * kWord, map->elements);
    Cursor cursor(*map->rows, begin * kWord);
    for (int64_t at = begin * kWord; at < last;) {
      const int64_t count = std::min(cursor.row.size - cursor.column, last - at);
      prune.run(map->in + (cursor.x + cursor.column) * Parts, map->out + at * Parts, map->mask, cursor.mask(),
                count);
      at += count;
      cursor.advance(count);
    }
    if constexpr (Streamed) fence_past_caches();
  }
};

// Rows much shorter than a word (the masks of 3 x 3 kernels): a word is gathered from several rows, and X
// must be dense.
constexpr int64_t kShortRow = 32;

template <class Part, int Parts, Kind kind>
struct PruneShortBody {
  static FASTPARAM_INLINE uint64_t bits_at(const uint8_t* mask, int64_t place, int64_t count) {
    const uint64_t all = (uint64_t(1) << count) - 1;
    if constexpr (kind == Kind::bits)
      return load_bytes(mask + place / 8, (place % 8 + count + 7) / 8) >> place % 8 & all;
    if constexpr (kind == Kind::bytes) return word_of_bytes(mask + place, count);
    return all & -static_cast<uint64_t>(mask[place] != 0);  // no branch: masks are unpredictable
  }

  template <int Bytes>
  static FASTPARAM_INLINE void run(const Map<Part>* map, int64_t begin, int64_t end) {
    const Prune<Part, Parts, kind, false, Bytes> prune;
    const int64_t last = std::min(end * kWord, map->elements);
    Cursor cursor(*map->rows, begin * kWord);
    for (int64_t at = begin * kWord; at < last; at += kWord) {
      uint64_t word = 0;
      const int64_t wanted = std::min(kWord, last - at);
      for (int64_t have = 0; have < wanted;) {
        const int64_t count = std::min(cursor.row.size - cursor.column, wanted - have);
        word |= bits_at(map->mask, cursor.mask(), count) << have;
        have += count;
        cursor.advance(count);
      }
      prune.some(map->in + at * Parts, map->out + at * Parts, word, wanted);
    }
  }
};

template <class Body, class M>
void parallel_words(const M& map) {
  parallel<Body>((map.elements + kWord - 1) / kWord, kWord, &map);
}

// Rows of whole words start on cache lines, and on whole bytes of the mask. So does a single row.
template <class Part, int Parts>
bool streamed(const Map<Part>& map) {
  const int64_t bytes = map.elements * Parts * static_cast<int64_t>(sizeof(Part));
  return bytes >= kStreamBytes && bytes < kFreshBytes && reinterpret_cast<uintptr_t>(map.out) % kLine == 0 &&
         (map.rows->outer.empty() || map.rows->row.size % kWord == 0);
}

template <class Part, int Parts, Kind kind>
void run(const Map<Part>& map) {
  if (!map.rows->outer.empty() && map.rows->row.size <= kShortRow && map.rows->X.is_contiguous())
    parallel_words<PruneShortBody<Part, Parts, kind>>(map);
  else if (streamed<Part, Parts>(map)) parallel_words<PruneBody<Part, Parts, kind, true>>(map);
  else parallel_words<PruneBody<Part, Parts, kind, false>>(map);
}

template <class Part, int Parts = 1>
void run(const MaskedRows& rows, Tensor& Y) {
  const Map<Part> map{static_cast<const Part*>(rows.X.const_data_ptr()),
                      static_cast<Part*>(Y.mutable_data_ptr()),
                      static_cast<const uint8_t*>(rows.mask.const_data_ptr()), &rows, Y.numel()};
  if (rows.packed) run<Part, Parts, Kind::bits>(map);
  else if (rows.row.mask == 1) run<Part, Parts, Kind::bytes>(map);
  else run<Part, Parts, Kind::one>(map);
}

Tensor masked_prune(const Tensor& X, const Tensor& mask) {
  check_prune(X, mask);
  Tensor Y = at::detail::empty_cpu(X.sizes(), X.options());  // like at::empty, without the dispatcher
  if (Y.numel() == 0) return Y;
  const MaskedRows rows(X, mask);
  if (Y.element_size() == 16) run<uint64_t, 2>(rows, Y);
  else with_bits(Y, [&](auto zero) { run<decltype(zero)>(rows, Y); });
  return Y;
}

// ---- pack_mask, unpack_mask -------------------------------------------------------------------------------

struct MaskBytes {
  const uint8_t* in;
  uint8_t* out;
  int64_t elements;
};

struct PackBody {
  template <int>
  static FASTPARAM_INLINE void run(const MaskBytes* map, int64_t begin, int64_t end) {
    for (int64_t i = begin * kWord; i < end * kWord; i += kWord) {
      const int64_t count = std::min(kWord, map->elements - i), bytes = (count + 7) / 8;
      const uint64_t word =
          count == kWord ? word_of_bytes(map->in + i, kWord) : word_of_bytes(map->in + i, count);
      for (int64_t byte = 0; byte < bytes; ++byte)
        map->out[i / 8 + byte] = static_cast<uint8_t>(word >> 8 * byte);
    }
  }
};

struct UnpackBody {
  template <int>
  static FASTPARAM_INLINE void run(const MaskBytes* map, int64_t begin, int64_t end) {
    const int64_t last = std::min(end * kWord, map->elements);
    int64_t i = begin * kWord;
    for (; i + 8 <= last; i += 8) store(map->out + i, bytes_of_bits(map->in[i / 8]));
    for (; i < last; ++i) map->out[i] = map->in[i / 8] >> i % 8 & 1;
  }
};

Tensor pack_mask(const Tensor& mask) {
  check_pack(mask);
  Tensor packed = empty_packed(mask);
  const Tensor dense = mask.contiguous();
  if (dense.numel() > 0)
    parallel_words<PackBody>(MaskBytes{static_cast<const uint8_t*>(dense.const_data_ptr()),
                                       packed.mutable_data_ptr<uint8_t>(), dense.numel()});
  return packed;
}

Tensor unpack_mask(const Tensor& packed, c10::SymIntArrayRef size) {
  check_unpack(packed, size);
  Tensor mask = empty_unpacked(packed, size);
  const Tensor dense = packed.contiguous();
  if (mask.numel() > 0)
    parallel_words<UnpackBody>(MaskBytes{dense.const_data_ptr<uint8_t>(),
                                         static_cast<uint8_t*>(mask.mutable_data_ptr()), mask.numel()});
  return mask;
}

}  // namespace

TORCH_LIBRARY_IMPL(fastparam, CPU, m) {
  m.impl("masked_prune", &masked_prune);
  m.impl("pack_mask", &pack_mask);
  m.impl("unpack_mask", &unpack_mask);
}

}  // namespace fastparam
