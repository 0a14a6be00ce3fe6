// Device memory for the tests, with guards around it. Included by simt.h.
#pragma once
#include <cstdint>
#include <cstring>
#include <vector>
#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/asan_interface.h>
#endif

namespace simt {

// ---- guarded buffers --------------------------------------------------------------------------------------
// Device memory of a test. It is 0xFF (NaN) until it is written, and is surrounded by 0xFF in one buffer and
// 0x7F (huge) in the next one, so that a copy from the guards of one buffer to those of another is detected.
// `shift` elements break the 64-byte alignment.
template <class T>
class Buffer {
 public:
  explicit Buffer(size_t count, size_t shift = 0)
      : count_(count),
        bytes_((count + shift) * sizeof(T) + 3 * kGuard, guard_) {
    const size_t misaligned = reinterpret_cast<uintptr_t>(bytes_.data()) % 64;
    offset_ = kGuard + (64 - misaligned) % 64 + shift * sizeof(T);
    std::memset(bytes_.data() + offset_, 0xFF, count * sizeof(T));
    forbid(true);
  }
  T* data() { return reinterpret_cast<T*>(bytes_.data() + offset_); }
  T& operator[](size_t i) { return data()[i]; }
  size_t size() const { return count_; }
  ~Buffer() { forbid(false); }
  Buffer(const Buffer&) = delete;
  bool intact() const {
    forbid(false);
    for (size_t i = 0; i < bytes_.size(); ++i)
      if ((i < offset_ || i >= offset_ + count_ * sizeof(T)) && bytes_[i] != guard_) return false;
    forbid(true);
    return true;
  }

 private:
  void forbid([[maybe_unused]] bool forbidden) const {  // also reads, under AddressSanitizer
#ifdef __SANITIZE_ADDRESS__
    const unsigned char *begin = bytes_.data(), *data = begin + offset_, *end = data + count_ * sizeof(T);
    if (forbidden) {
      __asan_poison_memory_region(begin, data - begin);
      __asan_poison_memory_region(end, begin + bytes_.size() - end);
    } else __asan_unpoison_memory_region(begin, bytes_.size());
#endif
  }
  static constexpr size_t kGuard = 256;
  static inline int made_ = 0;
  const unsigned char guard_ = ++made_ % 2 ? 0xFF : 0x7F;
  size_t count_, offset_;
  std::vector<unsigned char> bytes_;
};

}  // namespace simt
