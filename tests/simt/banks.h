// Counts the bank conflicts of a kernel and checks their bound.
#pragma once
#include "simt.h"  // before the device code

#include "check.h"
#include "wavefronts.h"

// Runs a kernel and counts. `most` is the bound of the ratio.
template <class... P, class... A>
void count(const char* name, size_t bytes, int n, double most, dim3 block, size_t shared,
           void (*kernel)(P...), A... arguments) {
  simt::start_recording();
  simt::launch(1, block, shared, kernel, arguments...);
  const simt::Wavefronts sum = simt::stop_recording();
  std::printf("%-28s %zu bytes, order %3d: %7ld of %7ld, ratio %.2f\n", name, bytes, n, sum.counted,
              sum.without_conflicts, sum.ratio());
  CHECK(sum.without_conflicts > 0 && sum.ratio() <= most, "%s: more than %.2f", name, most);
}

// Small numbers, so that no matrix fails the guard.
template <class T>
std::vector<T> skew(int n, int batch) {
  std::vector<T> x(static_cast<size_t>(batch) * n * n);
  for (int i = 0; i < batch * n * n; ++i) {
    const int r = i / n % n, c = i % n;
    x[i] = r == c ? T(0) : T(r < c ? 1 : -1) / T(8 * n);
  }
  return x;
}
