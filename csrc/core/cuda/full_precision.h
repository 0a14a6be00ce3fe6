// Matrix products of the library in full precision, whatever the user has chosen for their own products.
#pragma once
#include <ATen/BlasBackend.h>
#include <ATen/Context.h>

#include <mutex>

namespace fastparam::cuda {

// While one exists, float32 products do not use TF32. NoTF32Guard alone is not enough: the handle of cuBLAS
// follows it, but torch's calls of cuBLASLt only follow the setting of the user. So cuBLAS is the preferred
// library as well. That choice belongs to the process, and other threads, such as those of autograd, can be
// here at the same time: the first to enter changes it, and the last to leave restores it.
class FullPrecision {
  struct Choice {
    std::mutex mutex;
    int users = 0;
    at::BlasBackend before = at::BlasBackend::Default;
  };
  static Choice& choice() {
    static Choice one;
    return one;
  }
  const at::NoTF32Guard no_tf32_;

 public:
  FullPrecision() {
    Choice& c = choice();
    const std::lock_guard lock(c.mutex);
    if (c.users++ > 0) return;
    c.before = at::globalContext().blasPreferredBackend();
    if (c.before != at::BlasBackend::Cublas)
      at::globalContext().setBlasPreferredBackend(at::BlasBackend::Cublas);
  }
  ~FullPrecision() {
    Choice& c = choice();
    const std::lock_guard lock(c.mutex);
    if (--c.users == 0 && c.before != at::BlasBackend::Cublas)
      at::globalContext().setBlasPreferredBackend(c.before);
  }
  FullPrecision(const FullPrecision&) = delete;
  FullPrecision& operator=(const FullPrecision&) = delete;
};

}  // namespace fastparam::cuda
