// QR by Householder reflections, one at a time, in double, for the few matrices that no faster method
// serves.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>

namespace fastparam::cpu {

// Replaces B by its Householder vectors, below the diagonal, and R. B is r x k with r >= k, in rows `stride`
// apart.
inline void factor(double* B, int64_t stride, int64_t r, int64_t k, double* taus, double* line) {
  for (int64_t j = 0; j < k; ++j) {
    double largest = 0, squares = 0;
    for (int64_t i = j; i < r; ++i) largest = std::max(largest, std::abs(B[i * stride + j]));
    const double scale = largest > 0 ? std::ldexp(1.0, -std::ilogb(largest)) : 1;
    for (int64_t i = j; i < r; ++i) squares += B[i * stride + j] * scale * (B[i * stride + j] * scale);
    const double norm = std::sqrt(squares) / scale, head = B[j * stride + j];
    const double beta = head < 0 ? norm : -norm;
    // NaN if the column has a NaN, which then spreads to all entries
    taus[j] = norm == 0 ? 0 : (beta - head) / beta;
    if (taus[j] == 0) continue;
    for (int64_t i = j + 1; i < r; ++i) B[i * stride + j] /= head - beta;
    B[j * stride + j] = beta;
    std::copy_n(B + j * stride, k, line);
    for (int64_t i = j + 1; i < r; ++i)
      for (int64_t c = j + 1; c < k; ++c) line[c] += B[i * stride + j] * B[i * stride + c];
    for (int64_t c = j + 1; c < k; ++c) line[c] *= taus[j], B[j * stride + c] -= line[c];
    for (int64_t i = j + 1; i < r; ++i)
      for (int64_t c = j + 1; c < k; ++c) B[i * stride + c] -= B[i * stride + j] * line[c];
  }
}

// Replaces Z, r x k, by H Z or, with `transposed`, by H^T Z.
inline void reflect(const double* B, int64_t stride, const double* taus, int64_t r, int64_t k,
                    bool transposed, double* Z, int64_t z_stride, double* line) {
  for (int64_t step = 0; step < k; ++step) {
    const int64_t j = transposed ? step : k - 1 - step;
    if (taus[j] == 0) continue;
    std::copy_n(Z + j * z_stride, k, line);
    for (int64_t i = j + 1; i < r; ++i)
      for (int64_t c = 0; c < k; ++c) line[c] += B[i * stride + j] * Z[i * z_stride + c];
    for (int64_t c = 0; c < k; ++c) line[c] *= taus[j], Z[j * z_stride + c] -= line[c];
    for (int64_t i = j + 1; i < r; ++i)
      for (int64_t c = 0; c < k; ++c) Z[i * z_stride + c] -= B[i * stride + j] * line[c];
  }
}

}  // namespace fastparam::cpu
