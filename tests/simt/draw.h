// Random numbers and schedules for the tests of kernels that compute.
#pragma once
#include "simt.h"  // before the device code

#include <array>

inline std::mt19937 generator(1);
inline double normal() {
  static std::normal_distribution<double> distribution;
  return distribution(generator);
}

template <class X, class Y>
double distance(const X& x, const Y& y, int count) {
  double sum = 0;
  for (int i = 0; i < count; ++i) sum += std::pow(static_cast<double>(x[i]) - static_cast<double>(y[i]), 2);
  return std::sqrt(sum);
}
template <class X>
bool all_finite(const X& x, int count) {
  for (int i = 0; i < count; ++i)
    if (!std::isfinite(static_cast<double>(x[i]))) return false;
  return true;
}

// Runs under every schedule. If quick, it runs under one of them, chosen by `turn`.
template <class F>
void each_schedule(bool quick, int turn, F run) {
  constexpr std::array orders = {simt::Order::forward, simt::Order::reverse, simt::Order::random};
  for (int s = 0; s < 3; ++s) {
    if (quick && s != turn % 3) continue;
    simt::schedule(orders[s], static_cast<unsigned>(turn + 1));
    run();
  }
}
