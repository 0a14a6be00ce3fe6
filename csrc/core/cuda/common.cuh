// Shared by the device headers. It depends neither on torch nor on the CUDA runtime: nvcc compiles it, and
// g++ does after tests/simt/simt.h.
#pragma once

namespace fastparam::cuda {

constexpr int kBlock = 256;  // the largest number of threads per block
constexpr unsigned kWholeWarp = 0xFFFFFFFFu;

constexpr int smaller(int a, int b) { return a < b ? a : b; }
constexpr int larger(int a, int b) { return a < b ? b : a; }
constexpr int ceil_pow2(int n) { return n <= 1 ? 1 : 2 * ceil_pow2((n + 1) / 2); }
constexpr int round_up(int n, int to) { return (n + to - 1) / to * to; }

// Numbers as unsigned integers of the same size: moved numbers are copied bit for bit, the sign is flipped
// by xor, and only sums are computed.
template <int Bytes>
struct UIntOf;
template <>
struct UIntOf<1> {
  using type = unsigned char;
};
template <>
struct UIntOf<2> {
  using type = unsigned short;
};
template <>
struct UIntOf<4> {
  using type = unsigned;
};
template <>
struct UIntOf<8> {
  using type = unsigned long long;
};
template <class T>
using BitsOf = typename UIntOf<sizeof(T)>::type;

// The type in which sums are computed: float for the 16-bit types.
template <class T>
struct Accumulator {
  using type = float;
};
template <>
struct Accumulator<double> {
  using type = double;
};
template <class T>
using acc_t = typename Accumulator<T>::type;

template <class To, class From>
__device__ __forceinline__ To bit_cast(From from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  memcpy(&to, &from, sizeof(To));
  return to;
}

// x + y, for the bits of two numbers of type T.
template <class T>
__device__ __forceinline__ BitsOf<T> sum(BitsOf<T> x, BitsOf<T> y) {
  return bit_cast<BitsOf<T>>(
      static_cast<T>(static_cast<acc_t<T>>(bit_cast<T>(x)) + static_cast<acc_t<T>>(bit_cast<T>(y))));
}

// V neighbours, moved in one access.
template <class T, int V>
struct Pack {
  T v[V];
};
template <class T>
constexpr int kWide = 16 / sizeof(T);  // neighbours per widest access

template <int Bytes>
struct WordOf : UIntOf<Bytes> {};
template <>
struct WordOf<16> {
  using type = uint4;
};
template <class T, int V>
using Word = typename WordOf<sizeof(T) * V>::type;

template <int V, class T>
__device__ __forceinline__ Pack<T, V> load(const T* p) {
  const Word<T, V> word = *reinterpret_cast<const Word<T, V>*>(p);
  return bit_cast<Pack<T, V>>(word);
}

// The neighbours that are moved at once if an address is a multiple of 4 bytes, but not of the whole access.
template <class T>
constexpr int kNarrow = larger(1, 4 / static_cast<int>(sizeof(T)));

// In one access if `aligned`, and otherwise in accesses of kNarrow neighbours.
template <int V, class T>
__device__ __forceinline__ Pack<T, V> load(const T* p, bool aligned) {
  if constexpr (V > kNarrow<T>)
    if (!aligned) {
      Pack<Pack<T, kNarrow<T>>, V / kNarrow<T>> parts;
#pragma unroll
      for (int i = 0; i < V / kNarrow<T>; ++i) parts.v[i] = load<kNarrow<T>>(p + i * kNarrow<T>);
      return bit_cast<Pack<T, V>>(parts);
    }
  return load<V>(p);
}

template <int V, class T>
__device__ __forceinline__ void store(T* p, const Pack<T, V>& x) {
  *reinterpret_cast<Word<T, V>*>(p) = bit_cast<Word<T, V>>(x);
}

// Stores to global memory. It is written in PTX, because the compiler splits a 16-byte store whose elements
// come from different branches.
template <int V, class T>
__device__ __forceinline__ void store_global(T* p, const Pack<T, V>& x) {
#ifdef __CUDACC__
  if constexpr (sizeof(x) == 16) {
    const uint4 w = bit_cast<uint4>(x);
    asm volatile("st.global.v4.u32 [%0], {%1, %2, %3, %4};" ::"l"(__cvta_generic_to_global(p)), "r"(w.x),
                 "r"(w.y), "r"(w.z), "r"(w.w)
                 : "memory");
    return;
  }
#endif
  store<V>(p, x);
}

template <class A>
__device__ __forceinline__ bool is_finite(A x) {
  return x - x == A(0);
}

// Four neighbours, moved in accesses of 16 bytes.
template <class A>
struct alignas(16) Four {
  A v[4];
};
template <class A>
__device__ __forceinline__ Four<A> load4(const A* p) {
  return *reinterpret_cast<const Four<A>*>(p);
}
template <class A>
__device__ __forceinline__ void store4(A* p, const Four<A>& x) {
  *reinterpret_cast<Four<A>*>(p) = x;
}

// The first row of the tile of a lane. At N = 32, eight lanes access two rows, whose elements are N + 4
// apart. If they are 4-byte elements, the rows use different banks if they are four rows apart.
template <class S, class A>
__device__ __forceinline__ int tile_row(int lane) {
  const int y = lane / S::kX;
  return S::N == 32 && sizeof(A) == 4 ? y % 2 * 4 + y / 2 : y;
}

// The block's dynamic shared memory.
template <class A>
__device__ __forceinline__ A* dynamic_shared() {
#ifdef __CUDACC__
  extern __shared__ __align__(16) unsigned char memory[];
  return reinterpret_cast<A*>(memory);
#else
  return reinterpret_cast<A*>(simt::machine.dynamic);
#endif
}

}  // namespace fastparam::cuda
