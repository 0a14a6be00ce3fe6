// Batches of matrices: chooses the path, and reads and writes the matrices.
#pragma once

#include "../../core/cpu/dense/widen.h"
#include "chain.h"
#include "lanes.h"
#include "rotations.h"

namespace fastparam::cpu {

// A call for the exponential of A or, with a direction G, for its derivative at A along G. A is X (general)
// or one triangle of X, mirrored. In the second case the derivative is taken at A^T, and becomes the gradient
// of the triangle.
template <class T>
struct Exponential {
  const T *X, *G;
  T* out;
  int64_t n, batch;
  Structure structure;
  bool lower;
};

// ---- one matrix, half types in float32

template <class In>
class OfMatrix {
  using T = compute_t<In>;
  const Exponential<In>& call_;
  const Chain<T> chain_;
  const int64_t n_, stride_;

 public:
  OfMatrix(const Exponential<In>& call, void* memory)
      : call_(call),
        chain_(call.n, call.structure, call.G != nullptr, static_cast<T*>(memory)),
        n_(call.n),
        stride_(chain_.order().stride) {}

  void run(int64_t m) const {
    const bool known = call_.structure != Structure::general;
    read(call_.X + m * n_ * n_, value(0));
    if (call_.G) read(call_.G + m * n_ * n_, derivative(0));
    int result;
    {
      const FlushDenormals flush;
      if (known) chain_.expand(call_.lower);
      result = chain_.run();
      if (call_.G && known) chain_.transpose(derivative(result), value(0));
      else if (call_.structure == Structure::symmetric) chain_.mirror(value(result), 1);
    }
    In* const to = call_.out + m * n_ * n_;
    if (!call_.G) write(chain_.at(value(result)), to);
    else if (known) write_triangle(chain_.at(derivative(result)), chain_.at(value(0)), to);
    else write(chain_.at(derivative(result)), to);
  }

 private:
  void read(const In* from, Matrix O) const {
    T* const to = chain_.at(O);
    const int64_t width = chain_.order().width;
    for (int64_t i = 0; i < width; ++i) {
      const int64_t columns = i < n_ ? n_ : 0;
      std::copy_n(from + i * n_, columns, to + i * stride_);
      std::fill_n(to + i * stride_ + columns, width - columns, T(0));
    }
  }
  void write(const T* L, In* to) const {
    for (int64_t i = 0; i < n_; ++i) std::copy_n(L + i * stride_, n_, to + i * n_);
  }
  // The adjoint of mirroring: adds the gradient of the mirror image, with its sign, to that of an entry.
  void write_triangle(const T* L, const T* images, In* to) const {
    const bool skew = call_.structure == Structure::skew;
    const T sign = skew ? -1 : 1;
    for (int64_t i = 0; i < n_; ++i) {
      const T *l = L + i * stride_, *image = images + i * stride_;
      const int64_t begin = call_.lower ? 0 : i + 1, end = call_.lower ? i : n_;
      std::fill_n(to + i * n_, n_, In(0));
      for (int64_t j = begin; j < end; ++j) to[i * n_ + j] = static_cast<In>(l[j] + sign * image[j]);
      if (!skew) to[i * n_ + i] = static_cast<In>(l[i]);
    }
  }
};

// ---- matrices side by side

template <class T>
int64_t lanes_bytes(int64_t n) {
  return (2 * kMatrices * n * (n | 1) + n + 64 / static_cast<int64_t>(sizeof(T))) * 64;
}

template <class T>
void run_lanes(const Exponential<T>& call, int64_t begin, int64_t end, void* scratch) {
  const FlushDenormals flush;
  const auto run = [&](auto body) {
    run_simd<decltype(body)>(call.X, call.G, call.out, call.n, call.structure, call.lower, scratch, begin,
                             end);
  };
  switch (call.structure == Structure::skew ? call.n : 0) {
    case 2: return run(RotationBody<T, 2>());
    case 3: return run(RotationBody<T, 3>());
    case 4: return run(RotationBody<T, 4>());
  }
  run_lanes_of<LanesBody, T>(call.n, call.X, call.G, call.out, call.n, call.structure, call.lower, scratch,
                             begin, end);
}

template <class T>
void run_lanes(const Exponential<T>& call) {
  if constexpr (sizeof(T) >= 4) {
    over_batch(call.batch, call.n, lanes_bytes<T>(call.n),
               [&](int64_t begin, int64_t end, void* scratch) { run_lanes(call, begin, end, scratch); });
  } else {
    const int64_t size = call.n * call.n, chunk = std::min(chunk_of(size), call.batch),
                  buffer = aligned(chunk * size);
    over_batch(call.batch, call.n, 3 * buffer * sizeof(float) + lanes_bytes<float>(call.n),
               [&](int64_t begin, int64_t end, void* scratch) {
                 float *X = static_cast<float*>(scratch), *G = X + buffer, *out = G + buffer;
                 for (int64_t m = begin; m < end; m += chunk) {
                   const int64_t count = std::min(chunk, end - m);
                   widen(call.X + m * size, count * size, X);
                   if (call.G) widen(call.G + m * size, count * size, G);
                   run_lanes(Exponential<float>{X, call.G ? G : nullptr, out, call.n, count, call.structure,
                                                call.lower},
                             0, count, out + buffer);
                   narrow(out, count * size, call.out + m * size);
                 }
               });
  }
}

// Up to this order, lanes are faster in full batches. The choice of the path depends only on the order, the
// type and the level.
inline int64_t largest_exponential_by_lanes(int64_t lanes) {
  return lanes == 16 ? 16 : lanes == 8 ? 13 : lanes == 4 ? 12 : 8;
}

// Matrices of order 1.
template <class In>
void run_numbers(const Exponential<In>& call) {
  using T = compute_t<In>;
  over_batch(call.batch, 1, 0, [&](int64_t begin, int64_t end, void*) {
    for (int64_t m = begin; m < end; ++m) {
      const T x = call.structure == Structure::skew ? T(0) : static_cast<T>(call.X[m]);
      const T y = std::exp(x) + (x - x);  // NaN if x is not finite
      const T g = call.structure == Structure::skew ? T(0) : call.G ? static_cast<T>(call.G[m]) : T(1);
      call.out[m] = static_cast<In>(call.G ? y * g : y);
    }
  });
}

template <class In>
void run_batch(const Exponential<In>& call) {
  using T = compute_t<In>;
  if (call.n == 1) return run_numbers(call);
  if (call.n <= largest_exponential_by_lanes(vector_bytes() / sizeof(T))) return run_lanes(call);
  over_batch(call.batch, call.n, Chain<T>::scratch_bytes(call.n, call.G != nullptr),
             [&](int64_t begin, int64_t end, void* scratch) {
               const OfMatrix<In> matrix(call, scratch);
               for (int64_t m = begin; m < end; ++m) matrix.run(m);
             });
}

}  // namespace fastparam::cpu
