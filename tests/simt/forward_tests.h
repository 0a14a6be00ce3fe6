// The tests of every kernel of the forward map.
#pragma once
#include "simt.h"  // before the device code

#include "cayley_case.h"

// Launch is a type with run<T>(given, Q, batch, limits), and kGuarded, which tells whether limits are used.
template <class Launch>
struct ForwardTests {
  const bool quick;
  int turn = 0;  // walks through the combinations of which not all are tested

  // Matrix b has norm norms[b % size]. The reference is computed in R.
  template <class T, class R>
  int failures_of(int family, int n, int batch, std::vector<double> norms, Limits<acc_t<T>> limits = {}) {
    using A = acc_t<T>;
    const double alphas[] = {1, -1, -0.5};
    Input<T> input(n, batch, kLayouts[turn % 4], alphas[turn / 4 % 3], turn / 2 % 3);
    if (turn % 3 == 1) input.draw_signs();
    std::vector<std::vector<R>> exact(batch);
    std::vector<double> eager;
    for (double norm : norms) eager.push_back(norm > 0.1 ? eager_error<A, R>(family, n, norm) : 0);
    for (int b = 0; b < batch; ++b) {
      input.put(b, skew_of(family, n, norms[b % norms.size()]));
      exact[b] = input.template reference<R>(b);
      double& worst = eager[b % norms.size()];
      worst = std::max(worst, distance(input.template reference<A>(b), exact[b], n * n));
    }
    int wrong = 0;
    each_schedule(quick, turn++, [&] {
      Buffer<T> q(static_cast<size_t>(batch) * n * n, turn % 2);
      Launch::template run<T>(input.given(), q.data(), batch, limits);
      for (int b = 0; b < batch; ++b) {
        const int which = b % norms.size();
        wrong += !(distance(&q[static_cast<size_t>(b) * n * n], exact[b], n * n) <=
                   allowed_error<A>(n, norms[which], eager[which]));
      }
      CHECK(q.intact() && input.x.intact(), "n=%d batch=%d: wrote outside", n, batch);
    });
    return wrong;
  }
  template <class T, class R>
  void accurate(int family, int n, int batch, std::vector<double> norms, Limits<acc_t<T>> limits = {}) {
    const int wrong = failures_of<T, R>(family, n, batch, norms, limits);
    CHECK(wrong == 0, "size %zu %s n=%d batch=%d norm=%g layout=%d limits %g %g: %d too far off", sizeof(T),
          kFamilies[family], n, batch, norms[0], (turn - 1) % 4, static_cast<double>(limits.row),
          static_cast<double>(limits.column), wrong);
  }

  // The limit of the rows is sufficient. The check of the columns alone detects nearly all matrices that
  // fail without both.
  void limits(std::initializer_list<int> orders) {
    constexpr float none = INFINITY;
    int unguarded = 0, by_columns = 0;
    for (int n : orders)
      for (int family = 0; family < kFamilyCount; ++family)
        for (double norm : {10., 1e2, 1e4}) {
          by_columns += failures_of<float, double>(family, n, 2, {norm}, {none, Limits<float>{}.column});
          accurate<float, double>(family, n, 2, {norm}, {Limits<float>{}.row, none});
          unguarded += failures_of<float, double>(family, n, 2, {norm}, {none, none});
        }
    CHECK(unguarded > 4 && 4 * by_columns < unguarded, "unguarded %d failures, with checked columns %d",
          unguarded, by_columns);
  }

  // Q is orthogonal at every promised norm, also for odd orders, where A is singular.
  template <class T>
  void orthogonal(std::vector<int> orders, std::vector<double> norms, double bound) {
    for (int n : orders)
      for (double norm : norms) {
        Input<T> input(n, 2, kLayouts[turn % 4], 1);
        if (turn % 2) input.draw_signs();
        for (int b = 0; b < 2; ++b) input.put(b, skew_of((turn + b) % kFamilyCount, n, norm));
        Buffer<T> q(static_cast<size_t>(2) * n * n);
        simt::schedule(simt::Order::forward, 1);
        Launch::template run<T>(input.given(), q.data(), 2, {});
        for (int b = 0; b < 2; ++b) {
          const double loss = loss_of_orthogonality(&q[b * n * n], n);
          CHECK(loss <= bound, "n=%d norm=%g %s: loses orthogonality by %.1e", n, norm,
                kFamilies[(turn + b) % kFamilyCount], loss);
        }
        ++turn;
      }
  }

  // Results in half types are as accurate as the rounding of the result.
  template <class T>
  void rounded(int n, double ulp) {
    for (Layout layout : kLayouts) {
      Input<T> input(n, 3, layout, 1, 1);
      for (int b = 0; b < 3; ++b) input.put(b, skew_of(0, n, b == 1 ? 100 : 1));
      Buffer<T> q(static_cast<size_t>(3) * n * n, 1);
      Launch::template run<T>(input.given(), q.data(), 3, {});
      for (int b = 0; b < 3; ++b) {
        const auto exact = cayley_reference<double>(input.aA[b], n);
        bool close = true;
        for (int i = 0; i < n * n; ++i)
          close = close && std::fabs(static_cast<float>(q[b * n * n + i]) - exact[i]) <=
                               std::fabs(exact[i]) * ulp + 2e-5;
        CHECK(close, "half type n=%d layout=%d matrix=%d", n, static_cast<int>(layout), b);
      }
    }
  }

  // A matrix with an element that is not finite becomes NaN, and no other matrix is changed. Finite elements
  // of 1e20 are harmless, even if only the columns detect them.
  void special(int n, int batch) {
    for (Layout layout : kLayouts)
      for (double value : {NAN, INFINITY, -INFINITY}) {
        Input<float> input(n, batch, layout, 1);
        for (int b = 0; b < batch; ++b) input.put(b, skew_of(0, n, b % 3 == 0 ? 1e20 : 0.5));
        Matrix spoilt = input.aA[1];
        const int r = turn % (n - 1), c = r + 1 + turn / 2 % (n - 1 - r);  // r < c
        spoilt[r * n + c] = value;
        if (layout != Layout::whole || turn % 2) spoilt[c * n + r] = -value;
        input.put(1, spoilt);
        each_schedule(true, turn++, [&] {
          Buffer<float> q(static_cast<size_t>(batch) * n * n);
          Launch::template run<float>(input.given(), q.data(), batch,
                                      {turn % 2 ? 16 : INFINITY, Limits<float>{}.column});
          for (int b = 0; b < batch; ++b) {
            const float* here = &q[static_cast<size_t>(b) * n * n];
            if (b == 1)
              CHECK(std::all_of(here, here + n * n, [](float x) { return std::isnan(x); }),
                    "n=%d: not NaN throughout", n);
            else if (b % 3 == 0) CHECK(n % 2 || all_finite(here, n * n), "1e20, n=%d matrix=%d", n, b);
            else
              CHECK(distance(here, cayley_reference<double>(input.aA[b], n), n * n) <=
                        8 * std::sqrt(n) * kEpsilon<float>,
                    "neighbour, n=%d matrix=%d", n, b);
          }
        });
      }
  }

  // Whole matrices: skew ones give the bits of their upper triangle, others use row exchanges, and singular
  // ones are not finite.
  void whole(int n, int batch) {
    Input<float> upper(n, batch, Layout::upper, 1), skew(n, batch, Layout::whole, 1),
        any(n, batch, Layout::whole, 1);
    for (int b = 0; b < batch; ++b) {
      const Matrix a = skew_of(0, n, 2);
      upper.put(b, a), skew.put(b, a);
      Matrix other = a;
      const int kind = b % 5, i = b % n, j = (b / 2 + turn) % n;
      if (kind == 0) other[i * n + j] += 1;  // one element differs, possibly on the diagonal
      if (kind == 1)
        for (double& x : other) x = normal();  // any matrix
      if (kind == 2)
        for (int k = 0; k < n; ++k)
          other[k * n + k] = -1, other[k * n + (k + 1) % n] += 5;    // needs exchanges
      if (kind == 3) other.assign(n * n, 0), other[i * n + i] = -1;  // singular
      if (kind == 4) {  // not orthogonal, although the columns of Q are unit vectors
        for (int k = 0; k < n; ++k) {
          double squares = 0;
          for (int r = 0; r < n; ++r) {
            double& q = other[r * n + k];
            q = (r == k ? 1 : 0) + 0.3 / std::sqrt(n) * normal();
            squares += q * q;
          }
          for (int r = 0; r < n; ++r) other[r * n + k] /= std::sqrt(squares);
        }
        other = cayley_reference<double>(other, n);
      }
      any.put(b, other);
    }
    each_schedule(quick, turn++, [&] {
      const size_t size = n * n, all = batch * size;
      Buffer<float> p(all), q(all), r(all), exchanged(all), any_exchanged(all);
      const Limits<float> none_meets{-1, -1};
      Launch::template run<float>(upper.given(), p.data(), batch, {});
      Launch::template run<float>(skew.given(), q.data(), batch, {});
      Launch::template run<float>(any.given(), r.data(), batch, {});
      Launch::template run<float>(upper.given(), exchanged.data(), batch, none_meets);
      Launch::template run<float>(any.given(), any_exchanged.data(), batch, none_meets);
      const auto same = [&](Buffer<float>& one, Buffer<float>& other, int b) {
        return std::memcmp(&one[b * size], &other[b * size], size * sizeof(float)) == 0;
      };
      for (int b = 0; b < batch; ++b) {
        CHECK(same(p, q, b), "whole and triangle differ, n=%d matrix=%d", n, b);
        CHECK(!Launch::kGuarded || n < 4 || !same(p, exchanged, b),
              "rows are exchanged without need, n=%d matrix=%d", n, b);
        CHECK(b % 5 == 3 || same(r, any_exchanged, b), "rows are not exchanged, n=%d matrix=%d", n, b);
        const float* here = &r[b * size];
        const auto exact = cayley_reference<double>(any.aA[b], n);
        double largest = 0;
        for (double x : exact) largest = std::max(largest, std::fabs(x));
        if (b % 5 == 3) CHECK(!all_finite(here, n * n), "singular, n=%d matrix=%d", n, b);
        else
          CHECK(largest > 1e3 || distance(here, exact, n * n) <= 8 * n * largest * largest * kEpsilon<float>,
                "whole, n=%d matrix=%d", n, b);
      }
    });
  }
};
