// Masks as words: read from bits or bytes in memory, and written back to bytes.
#pragma once

#include <algorithm>

#include "../../core/cpu/bits.h"

namespace fastparam::cpu {

constexpr uint64_t kOnes = 0x0101010101010101;

// 8 bytes as 8 bits, least significant first; every byte except 0 counts as true.
FASTPARAM_INLINE uint64_t bits_of_bytes(uint64_t bytes) {
  const uint64_t some =
      ((bytes & 0x7F * kOnes) + 0x7F * kOnes) | bytes;    // the highest bit of a byte: is it not 0?
  return (some >> 7 & kOnes) * 0x0102040810204080 >> 56;  // byte i moves to bit 56 + i; no two terms overlap
}

FASTPARAM_INLINE uint64_t bytes_of_bits(uint64_t bits) {
  const uint64_t apart = (bits & 0xFF) * kOnes & 0x8040201008040201;  // of byte i only bit i
  return (apart + 0x7F * kOnes) >> 7 & kOnes;
}

// `count` bytes, at most 8, as the first bytes of a word in memory order.
FASTPARAM_INLINE uint64_t load_bytes(const uint8_t* p, int64_t count) {
  uint64_t word = 0;
  if (count == 8) std::memcpy(&word, p, 8);
  else
    for (int64_t i = 0; i < count; ++i) word |= static_cast<uint64_t>(p[i]) << 8 * i;
  return word;
}

// The bits of `count` elements, at most 64.
FASTPARAM_INLINE uint64_t word_of_bits(const uint8_t* mask, int64_t count) {
  return load_bytes(mask, (count + 7) / 8);
}
FASTPARAM_INLINE uint64_t word_of_bytes(const uint8_t* mask, int64_t count) {
  uint64_t word = 0;
  for (int64_t i = 0; i < count; i += 8)
    word |= bits_of_bytes(load_bytes(mask + i, std::min<int64_t>(8, count - i))) << i;
  return word;
}

}  // namespace fastparam::cpu
