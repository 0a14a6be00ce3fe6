// masked_prune, pack_mask and unpack_mask as in prune.h. Elements are moved bit for bit; a pruned element is
// +0, whatever its value was.
//
// A thread moves several chunks of 16 bytes (V elements; single elements if the rows of the mask do not allow
// it) and requests all of them before it writes any, so that each thread has 64 bytes in flight. V is at
// most 8, so the packed mask of a chunk is in one byte, which neighbours share through L1. If the mask
// consists of rows, its position is found once per chunk by one division for each dimension beyond the
// first, in 32 bits if they suffice, and a thread moves fewer chunks, because more simultaneous divisions do
// not fit in the registers.
#pragma once
#include "../../core/cuda/common.cuh"

namespace fastparam::cuda {

template <bool InRows>
constexpr int kItems = InRows ? 2 : 4;
constexpr int kMaskDepth = 6;  // dimensions of a mask after merging

struct alignas(16) Sixteen {
  unsigned long long v[2];
};  // an element of complex128

// X (dense), Y, and the dimensions of the mask, last one first. Strides are in bits for a packed mask, and
// otherwise in bytes. The stride of the last dimension is 1, or 0 if all elements of a row have the same
// mask.
template <class T, class Index>
struct Pruning {
  const T* in;
  T* out;
  const unsigned char* mask;
  Index count;
  bool aligned;  // whether `in` is at a multiple of 16 bytes
  int depth;
  Index size[kMaskDepth];
  long long stride[kMaskDepth];

  template <bool InRows>
  __device__ __forceinline__ long long place(Index element) const {
    if (!InRows) return static_cast<long long>(element) * stride[0];
    long long found = 0;
    for (int d = 0; d < depth; ++d) {
      const Index above = element / size[d];
      found += static_cast<long long>(element - above * size[d]) * stride[d];
      element = above;
    }
    return found;
  }
};

template <bool Packed>
__device__ __forceinline__ unsigned kept_at(const unsigned char* mask, long long place) {
  return Packed ? static_cast<unsigned>(mask[place >> 3]) >> (place & 7) : mask[place] ? ~0u : 0u;
}

// The masks of V elements: bit v is the mask of element v.
template <int V, bool Packed, bool InRows, class T, class Index>
__device__ __forceinline__ unsigned kept(const Pruning<T, Index>& p, Index element) {
  const long long place = p.template place<InRows>(element);
  if (Packed || V == 1 || p.stride[0] == 0) return kept_at<Packed>(p.mask, place);
  const auto bytes = load<V>(p.mask + place);
  unsigned bits = 0;
#pragma unroll
  for (int v = 0; v < V; ++v) bits |= static_cast<unsigned>(bytes.v[v] != 0) << v;
  return bits;
}

template <class T, int V>
__device__ __forceinline__ Pack<T, V> pruned(Pack<T, V> x, unsigned bits) {
#pragma unroll
  for (int v = 0; v < V; ++v)
    if (!(bits >> v & 1)) x.v[v] = T{};
  return x;
}

// V > 1 needs an output at a multiple of 16 bytes, an input at a multiple of 4, and a mask whose rows,
// strides and, if its bytes are read together, address are multiples of V. Without InRows, the mask has one
// dimension, and the last chunk can be incomplete. 4 blocks per processor have 64 KB in flight, and need no
// register spills.
template <class T, int V, bool Packed, bool InRows, class Index>
__global__ void __launch_bounds__(kBlock, 4) prune(const __grid_constant__ Pruning<T, Index> p) {
  const Index first = (static_cast<Index>(blockIdx.x) * kBlock + threadIdx.x) * V,
              step = static_cast<Index>(gridDim.x) * kBlock * V;
  constexpr int kMine = kItems<InRows>;
  Pack<T, V> x[kMine];
  unsigned bits[kMine];
#pragma unroll
  for (int i = 0; i < kMine; ++i) {
    const Index e = first + i * step;
    if (e < p.count && p.count - e >= V) x[i] = load<V>(p.in + e, p.aligned);
  }
#pragma unroll
  for (int i = 0; i < kMine; ++i) {
    const Index e = first + i * step;
    if (e < p.count && p.count - e >= V) bits[i] = kept<V, Packed, InRows>(p, e);
  }
#pragma unroll
  for (int i = 0; i < kMine; ++i) {
    const Index e = first + i * step;
    if (e >= p.count) break;
    if (p.count - e >= V) store_global<V>(p.out + e, pruned<T, V>(x[i], bits[i]));
    else
      for (Index k = e; k < p.count; ++k)
        store<1>(p.out + k, pruned<T, 1>(load<1>(p.in + k),
                                         kept_at<Packed>(p.mask, static_cast<long long>(k) * p.stride[0])));
  }
}

// 8 bytes, 0 or not, as 8 bits, and back. No two terms of the products overlap.
constexpr unsigned long long kEach = 0x0101010101010101;
__device__ __forceinline__ unsigned char bits_of_bytes(unsigned long long bytes) {
  const unsigned long long some = ((bytes & 0x7F * kEach) + 0x7F * kEach) | bytes;
  return static_cast<unsigned char>((some >> 7 & kEach) * 0x0102040810204080 >> 56);
}
__device__ __forceinline__ unsigned long long bytes_of_bits(unsigned char bits) {
  return (((bits * kEach) & 0x8040201008040201) + 0x7F * kEach) >> 7 & kEach;
}

// A thread writes one byte of the packed mask. `wide`: the address of the bools is a multiple of 8.
static __global__ void __launch_bounds__(kBlock)
    pack(const unsigned char* mask, unsigned char* packed, long long count, bool wide) {
  const long long byte = static_cast<long long>(blockIdx.x) * kBlock + threadIdx.x, left = count - 8 * byte;
  if (left <= 0) return;
  unsigned long long bytes = 0;
  if (wide && left >= 8) bytes = *reinterpret_cast<const unsigned long long*>(mask + 8 * byte);
  else
    for (int i = 0; i < 8 && i < left; ++i)
      bytes |= static_cast<unsigned long long>(mask[8 * byte + i]) << 8 * i;
  packed[byte] = bits_of_bytes(bytes);
}

// A thread reads one byte of the packed mask. The address of the bools is a multiple of 8.
static __global__ void __launch_bounds__(kBlock)
    unpack(const unsigned char* packed, unsigned char* mask, long long count) {
  const long long byte = static_cast<long long>(blockIdx.x) * kBlock + threadIdx.x, left = count - 8 * byte;
  if (left <= 0) return;
  const unsigned long long bytes = bytes_of_bits(packed[byte]);
  if (left >= 8) *reinterpret_cast<unsigned long long*>(mask + 8 * byte) = bytes;
  else
    for (int i = 0; i < left; ++i) mask[8 * byte + i] = static_cast<unsigned char>(bytes >> 8 * i);
}

}  // namespace fastparam::cuda
