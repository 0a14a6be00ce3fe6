// The gradient -(a/2) P^T (G D) P^T with P = Q D + I and the signs D, restricted to the entries of the
// parameter. With T = G^T P and U = P D T = D T + Q T it equals -(a/2) U^T. In this form no operand of the
// products is transposed, a strip of columns of U needs only the same strip of T, and only P and the first
// term have signs.
//
// If there is an M, it takes the place of P in T, and base^T G is not computed.
#pragma once

#include "../../core/cpu/dense/prefetch.h"
#include "../../core/cpu/dense/product.h"
#include "lanes.h"
#include "signs.h"

namespace fastparam::cpu {

// ---- tiny -------------------------------------------------------------------------------------------------

template <class T, int N>
struct LanesBackward {
  template <int Bytes>
  static FASTPARAM_INLINE void run(const CayleyGradient<T>* call, int64_t begin, int64_t end, void* scratch) {
    using Lane = Lanes<T, Bytes, N>;
    using V = typename Lane::V;
    const Lane lanes(call->n);
    const int n = lanes.n, stride = lanes.stride, size = n * n, entries = static_cast<int>(call->entries());
    V *const P = static_cast<V*>(scratch), *const U = P + n * stride, *const TT = U + n * stride;
    V *const scale = TT + n * stride, *const factors = scale + n + Lane::L;
    lanes.fill_factors(static_cast<T>(-call->alpha / 2), nullptr, Lane::L, scale);
    const int32_t* const taken = call->layout == Layout::packed ? lanes.packed_place : lanes.place;
    for (int64_t m = begin; m < end; m += Lane::L) {
      const int live = static_cast<int>(std::min<int64_t>(Lane::L, end - m));
      const bool negative = call->signs && any_negative<T, Lane::L>(call->signs_of(m), live * n);
      if (negative) lanes.fill_factors(T(1), call->signs_of(m), live, factors);
      const V* const F = negative ? factors : nullptr;
      lanes.gather(call->Q + m * size, size, live, lanes.place, P, F);
      lanes.gather(call->G + m * size, size, live, lanes.place, U, F);
      for (int i = 0; i < n; ++i) P[i * stride + i] += T(1);
      Prefetch next(call->Q + (m + live) * size, call->G + (m + live) * size, call->out + m * entries,
                    live * size * sizeof(T), 2 * ((n + Lane::kColumns - 1) / Lane::kColumns));
      lanes.template product<true>(U, P, TT, next);
      lanes.template product<false>(P, TT, U, next);
      for (int i = 0; i < n; ++i) {
        if (call->layout != Layout::whole) U[i * stride + i] = V{};
        for (int j = i + 1; j < n; ++j) {
          V &upper = U[i * stride + j], &lower = U[j * stride + i];
          const V d = lower - upper;
          if (call->layout == Layout::whole) std::swap(upper, lower);
          else if (call->layout == Layout::lower) upper = V{}, lower = -d;
          else upper = d, lower = V{};
        }
      }
      lanes.scatter(U, scale, entries, live, taken, call->out + m * entries);
    }
  }
};

// ---- one matrix -------------------------------------------------------------------------------------------

// Whether G^T is written to the memory of the gradient first. The columns of a large G, of which a product
// takes a few entries at a time, are too far apart for the caches and the pages that the CPU remembers.
template <class T>
FASTPARAM_INLINE bool turned(const CayleyGradient<T>& call) {
  return call.n >= kTurned && call.layout != Layout::packed;
}

// Threads can share the strips of columns of U, and then the rows of tiles of the gradient.
template <class T, int Bytes>
struct BackwardSteps {
  static constexpr int W = Bytes / sizeof(T);
  static constexpr int64_t kDepth = 256, kRows = 24;  // of one product
  using V = Vec<T, W>;

  const CayleyGradient<T> call;
  const int64_t n, width, stride;
  const T *G, *Q;
  T *D, *U;

  FASTPARAM_INLINE BackwardSteps(const CayleyGradient<T>& call, int64_t m, T* U)
      : call(call),
        n(call.n),
        width((n + W - 1) / W * W),
        stride(Padded<T>(n, W).stride),
        G(call.G + m * n * n),
        Q(call.Q + m * n * n),
        D(call.out + m * call.entries()),
        U(U) {}

  // For small matrices: prefetches Q or G of the next matrix, and the memory that this gradient is written
  // to.
  FASTPARAM_INLINE Prefetch following(const T* now, int64_t m) const {
    if (n > kStrip || m + 1 >= call.batch) return Prefetch();
    return Prefetch(now + n * n, now + n * n, D, call.entries() * sizeof(T), (n + kRows - 1) / kRows);
  }

  // The columns [j, last) of P, or of M; 0 beyond n.
  FASTPARAM_INLINE void copy_columns(int64_t m, int64_t j, int64_t last, T* strip) const {
    const T *const from = call.M ? call.M : call.Q, *const end = from + call.batch * n * n;
    const T* const signs = call.signs_of(m);
    MaskOf<T, W> flips[kStrip / W] = {};
    for (int64_t c = j; signs && c < last; c += W) flips[(c - j) / W] = flips_at<T, W>(signs, c, n);
    for (int64_t i = 0; i < n; ++i)
      for (int64_t c = j; c < last; c += W) {
        const T* q = from + m * n * n + i * n + c;
        V v{};
        if (q + W <= end) v = load<V>(q);
        else std::memcpy(&v, q, (n - c) * sizeof(T));
        v = flipped(v, flips[(c - j) / W]);
        store(strip + i * kStrip + c - j, c + W > n ? only(v, first_lanes<T, W>(n - c)) : v);
      }
    if (call.M) return;
    for (int64_t i = j; i < std::min(last, n); ++i) strip[i * kStrip + i - j] += T(1);
  }

  // O = A B, or A^T B if Transposed, where B is a strip and rows of O are `o_stride` apart. With `add`, the
  // product is added to O.
  template <bool Transposed>
  FASTPARAM_INLINE void product(const T* A, const T* B, T* O, int64_t o_stride, int64_t columns, bool add,
                                Prefetch next) const {
    for (int64_t k = 0; k < n; k += kDepth) {
      const Product<T, Bytes> product{
          A + (Transposed ? k * n : k), n,           B + k * kStrip, kStrip, O, o_stride,
          std::min(kDepth, n - k),      add || k > 0};
      for (int64_t i = 0; i < n; i += kRows) {
        next.tick();
        product.template run<Transposed>(i, std::min(i + kRows, n), 0, columns);
      }
    }
  }

  // The rows [r, r + W) of G as columns of D, in tiles of which the last ones overlap.
  FASTPARAM_INLINE void turn(int64_t r) const {
    r = std::min(r, n - W);
    for (int64_t tile = 0; tile < n; tile += W) {
      const int64_t c = std::min(tile, n - W);
      V t[W];
      for (int l = 0; l < W; ++l) t[l] = load<V>(G + (r + l) * n + c);
      transpose<T, W>(t);
      for (int l = 0; l < W; ++l) store(D + (c + l) * n + r, t[l]);
    }
  }

  // `strips` is work space for P and T.
  FASTPARAM_INLINE void columns(int64_t m, int64_t j, T* strips) const {
    const int64_t last = std::min(j + kStrip, width);
    T *const P = strips, *const TT = strips + n * kStrip;
    copy_columns(m, j, last, P);
    if (turned(call)) product<false>(D, P, TT, kStrip, last - j, false, Prefetch());
    else product<true>(G, P, TT, kStrip, last - j, false, following(G, m));
    const T* const signs = call.signs_of(m);
    for (int64_t i = 0; i < n; ++i) {  // U = D T + Q T
      const auto flips = flips_of<T, W>((signs ? signs[i] : T(0)) - V{});
      for (int64_t c = 0; c < last - j; c += W)
        store(U + i * stride + j + c, flipped(load<V>(TT + i * kStrip + c), flips));
    }
    product<false>(Q, TT, U + j, stride, last - j, true, following(Q, m));
  }

  FASTPARAM_INLINE V read(int64_t i, int64_t j) const { return i < n ? load<V>(U + i * stride + j) : V{}; }
  FASTPARAM_INLINE void write(int64_t i, int64_t j, const V& v) const {
    if (i >= n) return;
    T* d = D + i * n + j;
    if (call.layout == Layout::packed) d -= i * (i + 1) / 2 + i + 1;
    if (j + W <= n) store(d, v);
    else std::memcpy(d, &v, (n - j) * sizeof(T));
  }

  // The tile at (r, c) of the gradient: U^T or U^T - U, times -(a/2).
  FASTPARAM_INLINE void values(int64_t r, int64_t c, V (&t)[W]) const {
    for (int l = 0; l < W; ++l) t[l] = read(c + l, r);
    transpose<T, W>(t);
    const T scale = static_cast<T>(-call.alpha / 2);
    for (int l = 0; l < W; ++l) t[l] = (call.layout == Layout::whole ? t[l] : t[l] - read(r + l, c)) * scale;
  }

  // One row of tiles.
  FASTPARAM_INLINE void collapse(int64_t r) const {
    for (int64_t c = 0; c < n; c += W) {
      const bool wanted =
          call.layout == Layout::whole || c == r || (call.layout == Layout::lower ? c < r : c > r);
      V t[W] = {};
      if (wanted) values(r, c, t);
      if (call.layout == Layout::whole || c != r) {
        if (wanted || call.layout != Layout::packed)
          for (int l = 0; l < W; ++l) write(r + l, c, t[l]);
      } else if (call.layout == Layout::packed) {
        for (int l = 0; l < W; ++l)
          for (int q = l + 1; q < W && c + q < n; ++q)
            D[(r + l) * n + c + q - (r + l) * (r + l + 1) / 2 - (r + l) - 1] = t[l][q];
      } else {
        for (int l = 0; l < W; ++l)
          write(r + l, c,
                only(t[l], call.layout == Layout::lower ? first_lanes<T, W>(l) : ~first_lanes<T, W>(l + 1)));
      }
    }
  }
};

// A task is kStrip rows, or a strip of columns.
template <class T>
struct BackwardColumns {
  template <int Bytes>
  static FASTPARAM_INLINE void run(const CayleyGradient<T>* call, int64_t m, T* U, T* strips, int64_t begin,
                                   int64_t end) {
    const BackwardSteps<T, Bytes> steps(*call, m, U);
    for (int64_t strip = begin; strip < end; ++strip) steps.columns(m, strip * kStrip, strips);
  }
};
template <class T>
struct BackwardTurn {
  template <int Bytes>
  static FASTPARAM_INLINE void run(const CayleyGradient<T>* call, int64_t m, int64_t begin, int64_t end) {
    const BackwardSteps<T, Bytes> steps(*call, m, nullptr);
    for (int64_t r = begin * kStrip; r < std::min(end * kStrip, steps.n); r += Bytes / sizeof(T))
      steps.turn(r);
  }
};
template <class T>
struct BackwardCollapse {
  template <int Bytes>
  static FASTPARAM_INLINE void run(const CayleyGradient<T>* call, int64_t m, T* U, int64_t begin,
                                   int64_t end) {
    const BackwardSteps<T, Bytes> steps(*call, m, U);
    for (int64_t r = begin * kStrip; r < std::min(end * kStrip, steps.n); r += Bytes / sizeof(T))
      steps.collapse(r);
  }
};

}  // namespace fastparam::cpu
