// What the guard leaves: one matrix in float64, by elimination with row exchanges, and brought back to orthogonality.
#pragma once

#include "cayley_blocks.h"

namespace fastparam::cpu {

constexpr int64_t kLargestPivoted = 256;  // one pivot at a time: beyond, LAPACK is faster

template <class In>
struct Pivoted {
  Forward<double, In> forward;  // S holds aA
  double *Q, *E;                // work spaces like S
};

template <class In>
struct PivotedBody {
  // Q = 2 (I + S)^-1 - I. Rows stay where they are; order[k] is the pivot row of step k.
  template <int W>
  static FASTPARAM_INLINE void invert(const Square<double>& S, int64_t n, double* Q) {
    using V = Vec<double, W>;
    int32_t order[kLargestPivoted], step_of[kLargestPivoted];
    std::fill_n(step_of, n, -1);
    for (int64_t i = 0; i < n; ++i) S.S[i * S.stride + i] += 1;
    for (int64_t k = 0; k < n; ++k) {
      int64_t pivot = -1;
      double largest = -1;
      for (int64_t i = 0; i < n; ++i) {
        const double size = std::abs(S.S[i * S.stride + k]);
        if (step_of[i] < 0 && size > largest) pivot = i, largest = size;
      }
      order[k] = static_cast<int32_t>(pivot), step_of[pivot] = static_cast<int32_t>(k);
      double* const row = S.S + pivot * S.stride;
      const double inverse = 1 / row[k];
      row[k] = 1;
      for (int64_t j = 0; j < S.width; j += W) store(row + j, load<V>(row + j) * inverse);
      for (int64_t i = 0; i < n; ++i) {
        if (i == pivot) continue;
        double* const other = S.S + i * S.stride;
        const double factor = other[k];
        other[k] = 0;
        for (int64_t j = 0; j < S.width; j += W) store(other + j, load<V>(other + j) - factor * load<V>(row + j));
      }
    }
    for (int64_t k = 0; k < n; ++k)
      for (int64_t j = 0; j < n; ++j) Q[k * S.stride + j] = 2 * S.S[order[k] * S.stride + step_of[j]] - (k == j);
  }

  // Newton's iteration for the nearest orthogonal matrix, Q (3 I - Q^T Q) / 2, which squares the distance from it.
  template <int Bytes>
  static FASTPARAM_INLINE void orthogonalize(const Square<double>& S, int64_t n, double* Q, double* E) {
    for (int step = 0; step < 4; ++step) {
      Product<double, Bytes>{Q, S.stride, Q, S.stride, E, S.stride, n, false}.template run<true>(0, n, 0, S.width);
      double far = 0;
      for (int64_t i = 0; i < n; ++i)
        for (int64_t j = 0; j < n; ++j) {
          double& e = E[i * S.stride + j];
          far = std::max(far, std::abs(e - (i == j)));
          e = (i == j ? 1.5 : 0.0) - e / 2;
        }
      if (!(far > 4e-16 && far < 0.5)) return;
      Product<double, Bytes>{Q, S.stride, E, S.stride, S.S, S.stride, n, false}.template run<false>(0, n, 0, S.width);
      std::memcpy(Q, S.S, n * S.stride * sizeof(double));
    }
  }

  template <int Bytes>
  static FASTPARAM_INLINE void run(const Pivoted<In>* p) {
    const auto& [map, m, S, unused] = p->forward;
    const int64_t n = map.n;
    In* const out = map.out + m * n * n;
    bool finite = true;
    for (int64_t i = 0; i < n; ++i)
      for (int64_t j = 0; j < n; ++j) finite &= std::abs(S.S[i * S.stride + j]) <= std::numeric_limits<double>::max();
    if (!finite) return std::fill_n(out, n * n, std::numeric_limits<In>::quiet_NaN()), void();
    std::memset(p->Q, 0, n * S.stride * sizeof(double));
    invert<Bytes / 8>(S, n, p->Q);
    orthogonalize<Bytes>(S, n, p->Q, p->E);
    for (int64_t i = 0; i < n; ++i)
      for (int64_t j = 0; j < n; ++j) out[i * n + j] = static_cast<In>(p->Q[i * S.stride + j]);
  }
};

inline int64_t pivoted_scratch_bytes(int64_t n) { return n > kLargestPivoted ? 0 : 3 * (n + 4) * block_stride(n + 4) * sizeof(double); }

template <class In>
void pivoted_forward(const CayleyMap<In>& map, int64_t m, void* scratch) {
  const Padded<double> padded(map.n, vector_bytes() / sizeof(double));
  const Square<double> S{static_cast<double*>(scratch), padded.rows, padded.width, padded.stride};
  double* const Q = S.S + S.rows * S.stride;
  const Pivoted<In> pivoted{{map, m, S, nullptr}, Q, Q + S.rows * S.stride};
  run_simd<SetBody<double, In>>(&pivoted.forward, int64_t(0), (S.width + kStrip - 1) / kStrip);
  run_simd<PivotedBody<In>>(&pivoted);
}

}  // namespace fastparam::cpu
