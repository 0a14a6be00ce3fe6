// The elimination behind the inverse of the Cayley map, Q = Cayley(A) D with signs D. It is no op: the
// inverses in Python call it with numbers in hand.
#include "../cayley.h"

#include <ATen/EmptyTensor.h>

#include <atomic>
#include <tuple>

#include "instances.h"

namespace fastparam {
namespace {

using namespace fastparam::cpu;

// Sizes of A up to which an elimination in double precision without exchanges of rows loses less than
// float32 rounds, and from which Q D counts as a matrix with the eigenvalue -1.
constexpr double kWithoutExchanges = 1e3, kHopeless = 1e6;

// The size of the largest entry of a matrix, or infinity if one is not finite.
template <class T>
double largest_of(const T* A, int64_t n, int64_t stride) {
  T largest = 0;
  bool finite = true;
  for (int64_t i = 0; i < n; ++i)
    for (int64_t j = 0; j < n; ++j) {
      const T size = std::abs(A[i * stride + j]);
      largest = std::max(largest, size);
      finite &= size <= std::numeric_limits<T>::max();
    }
  return finite ? static_cast<double>(largest) : std::numeric_limits<double>::infinity();
}

// The matrices are contiguous.
template <class In>
struct Elimination {
  const In *Q, *given;
  double *A, *D;
  int64_t n;
  void* scratch;

  // A = 2 D (Q + D)^-1 - I, computed in T, unless an entry of A + I is beyond the limit. A sign that is 0 is
  // chosen. Returns the size of the largest entry of A + I.
  template <class T>
  double run(double limit) const {
    const Padded<T> padded(n, vector_bytes() / sizeof(T));
    const Square<T> S{static_cast<T*>(scratch), padded.rows, padded.width, padded.stride};
    T* const signs = S.row(S.rows);
    std::fill_n(S.S, S.rows * S.stride, T(0));
    for (int64_t i = 0; i < n; ++i) std::copy_n(Q + i * n, n, S.row(i));
    std::fill(std::copy_n(D, n, signs), signs + S.rows, T(1));
    invert(S, signs + S.rows, Prefetch(), signs);
    std::copy_n(signs, n, D);
    const double largest = 2 * largest_of(S.S, n, S.stride);
    if (largest > limit) return largest;
    for (int64_t i = 0; i < n; ++i) {
      for (int64_t j = 0; j < n; ++j) A[i * n + j] = 2 * D[i] * S.row(i)[j];
      A[i * n + i] -= 1;
    }
    return largest;
  }
  void exchange() const {
    double* const QD = static_cast<double*>(scratch);
    for (int64_t i = 0; i < n; ++i)
      for (int64_t j = 0; j < n; ++j) QD[i * n + j] = Q[i * n + j] * D[j];
    uint8_t singular = 0;
    solve_batch(CayleyCall<double>{QD, A, nullptr, n, 1, 1.0, Layout::whole, &singular});
    if (singular) A[0] = std::numeric_limits<double>::infinity();
  }
  // Returns whether the given signs serve.
  bool keep(double far) const {
    std::transform(given, given + n, D, [](In s) { return s < 0 ? -1.0 : 1.0; });
    if (std::is_same_v<In, float>) {
      const double hopeless = std::max(kHopeless, 100 * far), largest = run<double>(hopeless);
      if (largest <= kWithoutExchanges) return largest <= far;
      if (largest > hopeless) return false;
    }
    exchange();
    return largest_of(A, n, n) <= far;
  }
  void choose(bool single) const {
    std::fill_n(D, n, 0.0);
    constexpr double kAny = std::numeric_limits<double>::infinity();
    single ? run<In>(kAny) : run<double>(kAny);
  }
};

}  // namespace

// Returns the Cayley maps A of real matrices Q D, which need not be skew, in double precision, the signs D,
// and whether they are not the given ones. Where an entry of A is beyond `far`, and without signs, those are
// chosen by which every pivot of Q + D has size 1 and more if Q is orthogonal. The elimination is well
// conditioned then, and `single` computes it in float32 for a Q in float32.
std::tuple<Tensor, Tensor, bool> eliminate(const Tensor& Q, const Signs& signs, double far, bool single) {
  const int64_t n = Q.size(-1), batch = Q.numel() / (n * n);
  const Tensor q = Q.to(at::toOpMathType(Q.scalar_type())).contiguous(), given = dense(signs, Q);
  const Tensor A = at::detail::empty_cpu(q.sizes(), q.options().dtype(at::kDouble));
  const Tensor D = A.new_empty(q.sizes().slice(0, q.dim() - 1));
  std::atomic<bool> changed{false};
  const auto run = [&](auto zero) {
    using In = decltype(zero);
    const Elimination<In> all{q.const_data_ptr<In>(),
                              signs ? given.const_data_ptr<In>() : nullptr,
                              A.mutable_data_ptr<double>(),
                              D.mutable_data_ptr<double>(),
                              n,
                              nullptr};
    const int64_t bytes = ((n + 5) * largest_stride(n + 4) + block_scratch(n + 4)) * sizeof(double);
    over_batch(batch, n, bytes, [&](int64_t begin, int64_t end, void* scratch) {
      const FlushDenormals flush;
      for (int64_t m = begin; m < end; ++m) {
        const Elimination<In> one{all.Q + m * n * n,
                                  signs ? all.given + m * n : nullptr,
                                  all.A + m * n * n,
                                  all.D + m * n,
                                  n,
                                  scratch};
        if (signs && one.keep(far)) continue;
        changed = true;
        one.choose(single);
      }
    });
  };
  q.scalar_type() == at::kDouble ? run(double{}) : run(float{});
  return {A, D, changed.load()};
}

}  // namespace fastparam
