// The gradient of the Cayley map in every layout, compared with its formula in double precision.
#pragma once
#include "simt.h"  // before the device code

#include "../../csrc/cayley/cuda/gradient.cuh"
#include "cayley_case.h"

template <class T>
struct GradientCase {
  using A = acc_t<T>;
  const int n, batch;
  const Layout layout;
  const double alpha;
  const long long row_stride, batch_stride;
  Buffer<T> q, g;
  Buffer<A> signs;  // for half of the cases
  bool has_signs;
  std::vector<Matrix> want;  // in the same layout
  double scale = 0;

  GradientCase(int n, int batch, Layout layout, double alpha, int pad)
      : n(n),
        batch(batch),
        layout(layout),
        alpha(alpha),
        row_stride(n + pad),
        batch_stride(n * row_stride + pad),
        q(batch * batch_stride, pad),
        g(static_cast<size_t>(batch) * n * n),
        signs(static_cast<size_t>(batch) * n),
        has_signs(generator() % 2 != 0),
        want(batch) {
    for (size_t i = 0; i < signs.size(); ++i)
      signs[i] = static_cast<A>(static_cast<int>(generator() % 3) - 1);
    for (int b = 0; b < batch; ++b) fill(b);
  }
  Given<T> of_q() {
    return {q.data(),
            batch_stride,
            row_stride,
            n,
            Layout::whole,
            static_cast<A>(alpha),
            has_signs ? signs.data() : nullptr};
  }
  Given<T> of_g() {
    return {g.data(), static_cast<long long>(n) * n, n, n, Layout::whole, static_cast<A>(alpha)};
  }
  size_t size() const { return layout == Layout::packed ? n * (n - 1) / 2 : n * n; }

  // Launch computes the gradient.
  template <class Launch>
  void verify(Launch launch) {
    Buffer<T> d(batch * size());
    launch(Gradient<T>{d.data(), n, layout, static_cast<A>(alpha)});
    double error = 0;
    bool zeros = true;
    for (size_t i = 0; i < d.size(); ++i) {
      const double exact = want[i / size()][i % size()], off = std::fabs(static_cast<A>(d[i]) - exact);
      if (!(off <= error)) error = std::isnan(off) ? INFINITY : off;  // a plain maximum would ignore a NaN
      zeros = zeros && (exact != 0 || static_cast<A>(d[i]) == 0);
    }
    const double epsilon = sizeof(T) == 2 ? 1. / 256 : kEpsilon<A>;
    CHECK(error <= 4 * std::sqrt(n) * epsilon * scale && zeros,
          "gradient size %zu n=%d batch=%d layout=%d: error %.2e of %.2e", sizeof(T), n, batch,
          static_cast<int>(layout), error, scale);
    CHECK(d.intact() && q.intact() && g.intact(), "gradient n=%d batch=%d: wrote outside", n, batch);
  }

 private:
  void fill(int b) {
    const auto exact = cayley_reference<double>(skew_of(0, n, 1), n);
    Matrix p(n * n), h(n * n), t(n * n), u(n * n);  // P, G, T = G^T P, U = P T
    for (int i = 0; i < n * n; ++i) {
      T &qi = q[b * batch_stride + i / n * row_stride + i % n], &gi = g[static_cast<size_t>(b) * n * n + i];
      qi = static_cast<T>(static_cast<A>(exact[i]));
      gi = static_cast<T>(static_cast<A>(normal()));
      const double sign = has_signs && signs[b * n + i % n] < 0 ? -1 : 1;
      p[i] = sign * static_cast<A>(qi) + (i / n == i % n ? 1. : 0.);
      h[i] = sign * static_cast<A>(gi);
    }
    for (int i = 0; i < n; ++i)
      for (int k = 0; k < n; ++k)
        for (int j = 0; j < n; ++j) t[i * n + j] += h[k * n + i] * p[k * n + j];
    for (int i = 0; i < n; ++i)
      for (int k = 0; k < n; ++k)
        for (int j = 0; j < n; ++j) u[i * n + j] += p[i * n + k] * t[k * n + j];
    for (int i = 0; i < n; ++i)
      for (int j = 0; j < n; ++j) {
        scale = std::max(scale, std::fabs(alpha * u[i * n + j]));
        const bool given = layout == Layout::lower ? i > j : i < j;
        if (layout == Layout::whole) want[b].push_back(-alpha / 2 * u[j * n + i]);
        else if (given) want[b].push_back(-alpha / 2 * (u[j * n + i] - u[i * n + j]));
        else if (layout != Layout::packed) want[b].push_back(0);
      }
  }
};
