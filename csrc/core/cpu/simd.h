// Runs a kernel body at the instruction level of the CPU, and defines the vectors that bodies are written
// with.
//
//   struct Body { template <int Bytes> static FASTPARAM_INLINE void run(...); };  // Bytes: its width
//   run_simd<Body>(...);
//
// The level is the lower of torch's level, which ATEN_CPU_CAPABILITY=default|avx2|avx512 selects, and the
// level of the CPU. Every function that a body calls must be FASTPARAM_INLINE, lambdas included. A function
// that is not inlined is compiled for the baseline.
#pragma once

#include <c10/macros/Export.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <string>
#include <utility>
#include <vector>

#include "../inline.h"

namespace at {
TORCH_API std::string get_cpu_capability();  // declared in ATen/Version.h, which includes most of ATen
}

namespace fastparam::cpu {

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__APPLE__)
#define FASTPARAM_X86_LEVELS 1
template <class Body, class... A>
__attribute__((target("arch=x86-64-v4,prefer-vector-width=512"))) auto run_v4(A... a) {
  return Body::template run<64>(a...);
}
template <class Body, class... A>
__attribute__((target("arch=x86-64-v3"))) auto run_v3(A... a) {
  return Body::template run<32>(a...);
}
#endif

struct Level {
  const char* name;  // torch's name, in lower case
  int bytes;         // per vector register
};

// The levels that this CPU can run, lowest first.
inline std::vector<Level> supported_levels() {
  std::vector<Level> levels{{"default", 16}};
#ifdef FASTPARAM_X86_LEVELS
  if (!(__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi") &&
        __builtin_cpu_supports("bmi2")))
    return levels;
  levels.push_back({"avx2", 32});
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512cd") && __builtin_cpu_supports("avx512dq") &&
      __builtin_cpu_supports("avx512vl"))
    levels.push_back({"avx512", 64});
#endif
  return levels;
}

// Bytes per vector register at torch's level, or at the CPU's if that is lower: torch trusts the variable
// even if the CPU does not support its level.
inline int bytes_at(const std::string& torchs, int largest) {
  return std::min(torchs == "AVX512" ? 64 : torchs == "AVX2" ? 32 : 16, largest);
}

// Bytes per vector register at the level in use: 16, 32 (AVX2) or 64 (AVX-512).
inline int vector_bytes() {
  static const int bytes = bytes_at(at::get_cpu_capability(), supported_levels().back().bytes);
  return bytes;
}

template <class Body, class... A>
__attribute__((noinline)) auto run_baseline(A... a) {
  return Body::template run<16>(a...);
}

// Calls a body from another one of this width, out of line, so that its code is compiled once instead of in
// every caller.
template <int Bytes, class Body, class... A>
FASTPARAM_INLINE auto run_at(A... a) {
#ifdef FASTPARAM_X86_LEVELS
  if constexpr (Bytes == 64) return run_v4<Body>(a...);
  else if constexpr (Bytes == 32) return run_v3<Body>(a...);
  else
#endif
    return run_baseline<Body>(a...);
}

template <class Body, class... A>
auto run_simd(A... a) {
#ifdef FASTPARAM_X86_LEVELS
  if (vector_bytes() == 64) return run_v4<Body>(a...);
  if (vector_bytes() == 32) return run_v3<Body>(a...);
#endif
  return run_baseline<Body>(a...);
}

// ---- vectors of N elements (GCC and clang vector extensions) ----------------------------------------------

template <class T, int N>
struct VecOf {
  typedef T type __attribute__((vector_size(N * sizeof(T))));
};
template <class T, int N>
using Vec = typename VecOf<T, N>::type;

template <int Size>
struct UIntOf;
template <>
struct UIntOf<2> {
  using type = uint16_t;
};
template <>
struct UIntOf<4> {
  using type = uint32_t;
};
template <>
struct UIntOf<8> {
  using type = uint64_t;
};

template <class V>
FASTPARAM_INLINE V load(const void* p) {
  V v;
  std::memcpy(&v, p, sizeof(V));
  return v;
}
template <class V>
FASTPARAM_INLINE void store(void* p, const V& v) {
  std::memcpy(p, &v, sizeof(V));
}

// Stores a vector of whole cache lines, aligned, without bringing them into the caches. A fence makes such
// stores visible to other threads.
template <class V>
FASTPARAM_INLINE void store_past_caches(void* p, const V& v) {
#ifdef __SSE2__
  for (size_t i = 0; i < sizeof(V); i += 16)
    __builtin_ia32_movntps(static_cast<float*>(p) + i / 4,
                           load<Vec<float, 4>>(reinterpret_cast<const char*>(&v) + i));
#else
  store(p, v);
#endif
}
FASTPARAM_INLINE void fence_past_caches() {
#ifdef __SSE2__
  __builtin_ia32_sfence();
#endif
}

template <class To, class From>
FASTPARAM_INLINE To bit_cast(const From& from) {
  static_assert(sizeof(To) == sizeof(From));
  return load<To>(&from);
}

// The elements of a and b, numbered consecutively, at the given positions.
template <class T, int N>
FASTPARAM_INLINE Vec<T, N> shuffle(const Vec<T, N>& a, const Vec<T, N>& b, const Vec<T, N>& positions) {
#ifdef __clang__
  Vec<T, N> y;
  for (int i = 0; i < N; ++i) y[i] = positions[i] < N ? a[positions[i]] : b[positions[i] - N];
  return y;
#else
  return __builtin_shuffle(a, b, positions);
#endif
}

// The elements of a and b, numbered consecutively, at the positions Pick::at(i).
template <class Pick, class T, int N, size_t... I>
FASTPARAM_INLINE Vec<T, N> pick(const Vec<T, N>& a, const Vec<T, N>& b, std::index_sequence<I...>) {
#ifdef __clang__
  return __builtin_shufflevector(a, b, Pick::template at<N>(I)...);
#else
  using Index = Vec<typename UIntOf<sizeof(T)>::type, N>;
  return __builtin_shuffle(a, b, Index{Pick::template at<N>(I)...});
#endif
}

// For each 16 bytes: the groups of Group elements in the first (Half 0) or second half of a and of b,
// alternating.
template <int Width, int Group, int Half>
struct Zip {
  template <int N>
  static constexpr int at(int i) {
    const int lane = i / Width * Width, group = i % Width / Group;
    return (group % 2 != 0 ? N : 0) + lane + Half * Width / 2 + group / 2 * Group + i % Group;
  }
};
// Divides a and b into parts of Width elements, two (Count 2) or four (Count 4) each. Picks part First and
// then every Step-th part of a, and the same of b.
template <int Width, int First, int Step>
struct Parts {
  template <int N>
  static constexpr int at(int i) {
    const int part = i / Width, half = N / Width / 2;
    return (part < half ? 0 : N) + (First + part % half * Step) * Width + i % Width;
  }
};

template <class T, int N, int Group>
FASTPARAM_INLINE void zip_rows(Vec<T, N> (&row)[N]) {
  constexpr int kWidth = std::min(static_cast<int>(16 / sizeof(T)), N);
  constexpr auto all = std::make_index_sequence<N>();
  Vec<T, N> next[N];
#pragma GCC unroll 16
  for (int r = 0; r < N; r += 2 * Group)
#pragma GCC unroll 16
    for (int g = 0; g < Group; ++g) {
      next[r + 2 * g] = pick<Zip<kWidth, Group, 0>, T, N>(row[r + g], row[r + g + Group], all);
      next[r + 2 * g + 1] = pick<Zip<kWidth, Group, 1>, T, N>(row[r + g], row[r + g + Group], all);
    }
#pragma GCC unroll 16
  for (int r = 0; r < N; ++r) row[r] = next[r];
  if constexpr (2 * Group < kWidth) zip_rows<T, N, 2 * Group>(row);
}

// Transposes an N x N tile in registers. First the squares of 16 bytes are transposed in place, because
// shuffles within 16 bytes are cheapest, and then those squares are exchanged.
template <class T, int N>
FASTPARAM_INLINE void transpose(Vec<T, N> (&row)[N]) {
  constexpr int kWidth = std::min(static_cast<int>(16 / sizeof(T)), N);
  constexpr auto all = std::make_index_sequence<N>();
  using V = Vec<T, N>;
  zip_rows<T, N, 1>(row);
#pragma GCC unroll 16
  for (int c = 0; c < kWidth; ++c)
    if constexpr (N == 2 * kWidth) {
      const V a = row[c], b = row[kWidth + c];
      row[c] = pick<Parts<kWidth, 0, 1>, T, N>(a, b, all);
      row[kWidth + c] = pick<Parts<kWidth, 1, 1>, T, N>(a, b, all);
    } else if constexpr (N == 4 * kWidth) {
      V *const r0 = row + c, *const r1 = r0 + kWidth, *const r2 = r1 + kWidth, *const r3 = r2 + kWidth;
      const V a = pick<Parts<kWidth, 0, 1>, T, N>(*r0, *r1, all),
              b = pick<Parts<kWidth, 2, 1>, T, N>(*r0, *r1, all);
      const V d = pick<Parts<kWidth, 0, 1>, T, N>(*r2, *r3, all),
              e = pick<Parts<kWidth, 2, 1>, T, N>(*r2, *r3, all);
      *r0 = pick<Parts<kWidth, 0, 2>, T, N>(a, d, all);
      *r1 = pick<Parts<kWidth, 1, 2>, T, N>(a, d, all);
      *r2 = pick<Parts<kWidth, 0, 2>, T, N>(b, e, all);
      *r3 = pick<Parts<kWidth, 1, 2>, T, N>(b, e, all);
    }
}

}  // namespace fastparam::cpu
