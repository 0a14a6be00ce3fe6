// symmetric, skew and their adjoints on batches of n x n matrices, as in triangular.cpp. The map is data:
// the mirrored entries are xor-ed with `flip`, and the diagonal is and-ed with `diagonal`. `lower` tells
// which triangle is given (read by the maps, filled by their adjoints).
//
// For n <= kFlat, a thread keeps the position of one element in a matrix and processes this position in
// several matrices. For larger n, a group of threads processes one pair of mirrored tiles, so that each
// element is read once and written once, by rows. The calculation behind both, for an H200 (132 processors,
// 4.3 TB/s, latency about 0.7 us: to keep memory busy, a processor needs 23 KB in flight, and has to serve
// 19 bytes per clock):
//   - A thread requests all its data before it uses any: 64 bytes (tiles by 16 bytes; the adjoint 128), and
//     16 or more in the flat kernel. With 4 to 8 blocks on a processor, 32 to 128 KB are in flight.
//   - The 16-byte accesses of a warp are 4 rows of 128 bytes, which are whole cache lines.
//   - Tiles are a whole number of cache lines wide: 64 elements of 2 or 4 bytes (128, 256 bytes), 32 doubles
//     (256).
//   - Shared memory serves 128 bytes per clock. A tile passes through it once in each direction without bank
//     conflicts (counted over every access of every Shape): 256 clocks of 2640 for 64 x 64 floats, 192 of
//     1320 for 64 x 64 halves.
// The weak spot is an n that is not a multiple of 16 bytes: processed element by element, the accesses of a
// warp begin anywhere in a sector of 32 bytes, so that they touch three sectors instead of two (2-byte
// types), or five instead of four.
#pragma once
#include "../../core/cuda/tiles.cuh"

namespace fastparam::cuda {

// A batch of input matrices, a contiguous batch of output matrices, and the map.
template <class Bits>
struct Triangular {
  const Bits* in;
  Bits* out;
  long long batch_stride, row_stride;
  unsigned batch;
  int n;  // a matrix of a larger order does not fit in memory
  Bits flip, diagonal;
  bool lower;
  bool aligned = false;  // whether `in` and its strides are multiples of 16 bytes

  // Returns whether (r, c) is strictly inside the given triangle.
  __device__ __forceinline__ bool given(int r, int c) const { return lower ? r > c : r < c; }
};

// ---- small matrices ---------------------------------------------------------------------------------------

// Row and column are computed once for kFlatItems elements, so n need not be a template parameter: the two
// divisions cost 5 to 10 instructions per element, and memory leaves time for 27 (2 bytes) or 55 (4 bytes).
// The mirrored element is read directly from global memory, because a warp reads the lines of the same few
// matrices. The number of lines grows with n: at 16, there are 8 lines for 128 bytes of output, 3/4 of the
// rate of L1.
constexpr int kFlat = 16;
template <class T>
constexpr int kFlatItems = sizeof(T) == 2 ? 8 : 4;

// The number of matrices that a block processes, and its threads: at n = 12, 160 instead of 256, of which 144
// have work.
template <class T>
constexpr int flat_matrices(int n) {
  return kBlock / (n * n) * kFlatItems<T>;
}
constexpr int flat_threads(int n) { return round_up(kBlock / (n * n) * n * n, 32); }

template <class T, bool Adjoint>
__global__ void __launch_bounds__(kBlock) triangular_flat(const Triangular<BitsOf<T>> m) {
  using Bits = BitsOf<T>;
  constexpr int kItems = kFlatItems<T>;
  const int size = m.n * m.n, together = kBlock / size;
  const int mine = static_cast<int>(threadIdx.x) / size,
            element = static_cast<int>(threadIdx.x) - mine * size;
  if (mine >= together) return;
  const int r = element / m.n, c = element - r * m.n;
  const bool given = m.given(r, c), mirrored = m.given(c, r);
  const Bits keep = r == c ? m.diagonal : static_cast<Bits>(~Bits(0));

  const long long first = static_cast<long long>(blockIdx.x) * (together * kItems) + mine;
  const long long here = r * m.row_stride + c, there = c * m.row_stride + r;
  const Bits* x = m.in + first * m.batch_stride;
  Bits* y = m.out + first * size + element;
  const long long step = together * m.batch_stride;

  Bits a[kItems], b[kItems];
#pragma unroll
  for (int i = 0; i < kItems; ++i) {
    const bool inside = first + i * together < m.batch;
    a[i] = b[i] = 0;
    if (inside && !(Adjoint && mirrored)) a[i] = x[i * step + (Adjoint || !mirrored ? here : there)];
    if (Adjoint && inside && given) b[i] = x[i * step + there];
  }
#pragma unroll
  for (int i = 0; i < kItems; ++i) {
    if (first + i * together >= m.batch) break;
    Bits value = a[i] & keep;
    if (Adjoint && given) value = sum<T>(a[i], b[i] ^ m.flip);
    if (!Adjoint && mirrored) value = a[i] ^ m.flip;
    y[static_cast<long long>(i) * together * size] = value;
  }
}

// ---- tiles ------------------------------------------------------------------------------------------------

// How a tile of Order x Order elements is divided among a group of threads, V neighbours at a time, and its
// layout in shared memory.
//
// V > 1: chunks of 16 bytes. 8 threads along a row, in 4 rows, form a warp (more rows if a row has fewer
// chunks). Chunk c / V of row k is stored at c / V ^ k / V. A row is written by 8 threads into 8 different
// 16-byte banks. A column is gathered element by element: the threads along it are in the rows k = V j + v,
// j = 0..7, and its neighbours, V rows together, share a chunk, so they use 8 different 16-byte banks times
// V positions.
//
// V = 1: rows are padded to an odd number of words, and a warp reads 32 neighbours. There are no conflicts
// in either direction for 2, 4 and 8 bytes.
template <class Bits, int V, int Order>
struct Shape {
  static constexpr int kSlots = Order * Order / V;
  static constexpr int kThreads = smaller(kBlock, larger(32, kSlots / 4));  // per group
  static constexpr int kItems = kSlots / kThreads;
  static constexpr int kGroups = kBlock / kThreads;  // per block, at most
  static constexpr int kAcross = V > 1 ? smaller(8, Order / V) : 32;
  static constexpr int kStride = V > 1 ? Order : Order + (sizeof(Bits) == 2 ? 2 : 1);
  static constexpr int kElements = (Order * kStride + kWide<Bits> - 1) / kWide<Bits> * kWide<Bits>;

  static __device__ __forceinline__ int place(int k, int c) {
    return k * kStride + (V > 1 ? c ^ k / V % kAcross * V : c);
  }
  // Position number i of the thread: the row and the first column.
  static __device__ __forceinline__ int row(int thread, int i) {
    return (thread + i * kThreads) / kAcross % Order;
  }
  static __device__ __forceinline__ int column(int thread, int i) {
    const int slot = thread + i * kThreads;
    return (slot / kAcross / Order * kAcross + slot % kAcross) * V;
  }
};

// The pair of tiles of a group: the given one starts at (row, column), and the mirrored one at (column,
// row).
template <class Bits, int V, int Order>
struct Pair {
  const Bits* in;
  Bits* out;
  long long row_stride;
  int n, row, column;
  bool diagonal, aligned;

  __device__ __forceinline__ Pair(const Triangular<Bits>& m, unsigned k, unsigned pairs)
      : row_stride(m.row_stride),
        aligned(m.aligned) {
    const unsigned tiles = (static_cast<unsigned>(m.n) + Order - 1) / Order;
    n = k < pairs ? m.n : 0;  // a group without work takes part in the barriers and accesses no memory
    unsigned matrix;
    int I, J;
    tile_pair(k, tiles, matrix, I, J);
    row = (m.lower ? J : I) * Order;
    column = (m.lower ? I : J) * Order;
    diagonal = I == J;
    in = m.in + matrix * m.batch_stride;
    out = m.out + static_cast<long long>(matrix) * m.n * m.n;
  }
  __device__ __forceinline__ bool in_given(int r, int c) const { return row + r < n && column + c < n; }
  __device__ __forceinline__ bool in_mirrored(int r, int c) const { return column + r < n && row + c < n; }
  __device__ __forceinline__ Pack<Bits, V> given(int r, int c) const {
    return load<V>(in + (row + r) * row_stride + column + c, aligned);
  }
  __device__ __forceinline__ Pack<Bits, V> mirrored(int r, int c) const {
    return load<V>(in + (column + r) * row_stride + row + c, aligned);
  }
  __device__ __forceinline__ Bits* given_out(int r, int c) const {
    return out + static_cast<long long>(row + r) * n + column + c;
  }
  __device__ __forceinline__ Bits* mirrored_out(int r, int c) const {
    return out + static_cast<long long>(column + r) * n + row + c;
  }
};

// V = kWide needs an n that is a multiple of 16 bytes, so that the rows of the output are, and an input whose
// address and strides are multiples of 4 bytes. A block has one to kGroups groups.
template <class Bits, int V, int Order>
__global__ void __launch_bounds__(kBlock) triangular_forward(const Triangular<Bits> m, unsigned pairs) {
  using S = Shape<Bits, V, Order>;
  __shared__ uint4 memory[S::kGroups][S::kElements / kWide<Bits>];
  const int thread = threadIdx.x % S::kThreads, group = threadIdx.x / S::kThreads;
  Bits* tile = reinterpret_cast<Bits*>(memory[group]);
  const Pair<Bits, V, Order> pair(m, blockIdx.x * (blockDim.x / S::kThreads) + group, pairs);

  // Data that is entirely in the other triangle is not loaded.
  const auto is_loaded = [&](int r, int c) {
    return pair.in_given(r, c) && (!pair.diagonal || (m.lower ? c <= r : c + V > r));
  };
  Pack<Bits, V> x[S::kItems];
#pragma unroll
  for (int i = 0; i < S::kItems; ++i) {
    const int r = S::row(thread, i), c = S::column(thread, i);
    if (is_loaded(r, c)) x[i] = pair.given(r, c);
  }
#pragma unroll
  for (int i = 0; i < S::kItems; ++i) {
    const int r = S::row(thread, i), c = S::column(thread, i);
    if (!is_loaded(r, c)) continue;
    store<V>(tile + S::place(r, c), x[i]);
    if (!pair.diagonal) store_global<V>(pair.given_out(r, c), x[i]);
  }
  __syncthreads();
#pragma unroll
  for (int i = 0; i < S::kItems; ++i) {
    const int r = S::row(thread, i), c = S::column(thread, i);
    if (!pair.in_mirrored(r, c)) continue;
    Pack<Bits, V> y;
#pragma unroll
    for (int v = 0; v < V; ++v) {
      y.v[v] = tile[S::place(c + v, r)] ^ m.flip;
      if (pair.diagonal && m.given(r, c + v)) y.v[v] = x[i].v[v];
      if (pair.diagonal && r == c + v) y.v[v] = x[i].v[v] & m.diagonal;
    }
    store_global<V>(pair.mirrored_out(r, c), y);
  }
}

template <class T, int V, int Order>
__global__ void __launch_bounds__(kBlock) triangular_adjoint(const Triangular<BitsOf<T>> m, unsigned pairs) {
  using Bits = BitsOf<T>;
  using S = Shape<Bits, V, Order>;
  __shared__ uint4 memory[S::kGroups][S::kElements / kWide<Bits>];
  const int thread = threadIdx.x % S::kThreads, group = threadIdx.x / S::kThreads;
  Bits* tile = reinterpret_cast<Bits*>(memory[group]);
  const Pair<Bits, V, Order> pair(m, blockIdx.x * (blockDim.x / S::kThreads) + group, pairs);

  Pack<Bits, V> g[S::kItems], h[S::kItems];  // of the given and of the mirrored tile
#pragma unroll
  for (int i = 0; i < S::kItems; ++i) {
    const int r = S::row(thread, i), c = S::column(thread, i);
    if (pair.in_mirrored(r, c)) h[i] = pair.mirrored(r, c);
    if (!pair.diagonal && pair.in_given(r, c)) g[i] = pair.given(r, c);
  }
#pragma unroll
  for (int i = 0; i < S::kItems; ++i) {
    const int r = S::row(thread, i), c = S::column(thread, i);
    if (!pair.in_mirrored(r, c)) continue;
    store<V>(tile + S::place(r, c), h[i]);
    if (pair.diagonal) g[i] = h[i];
    else store_global<V>(pair.mirrored_out(r, c), Pack<Bits, V>{});
  }
  __syncthreads();
#pragma unroll
  for (int i = 0; i < S::kItems; ++i) {
    const int r = S::row(thread, i), c = S::column(thread, i);
    if (!pair.in_given(r, c)) continue;
    Pack<Bits, V> d;
#pragma unroll
    for (int v = 0; v < V; ++v) {
      d.v[v] = sum<T>(g[i].v[v], tile[S::place(c + v, r)] ^ m.flip);
      if (pair.diagonal && !m.given(r, c + v))
        d.v[v] = r == c + v ? static_cast<Bits>(g[i].v[v] & m.diagonal) : Bits(0);
    }
    store_global<V>(pair.given_out(r, c), d);
  }
}

}  // namespace fastparam::cuda
