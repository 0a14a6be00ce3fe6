// Denormal numbers as zeros, for the life of an object and in its thread.
#pragma once

namespace fastparam::cpu {

// Entries near 1e-20 have denormal products, which cost x86 up to 60 times. Threads inherit the mode of the
// one that starts them, and keep it: they are to be started before (threads.h).
class FlushDenormals {
#ifdef __SSE__
  const unsigned saved_ = __builtin_ia32_stmxcsr();

 public:
  FlushDenormals() { __builtin_ia32_ldmxcsr(saved_ | 0x8040); }  // flush to zero, denormals are zero
  ~FlushDenormals() { __builtin_ia32_ldmxcsr(saved_); }
  FlushDenormals(const FlushDenormals&) = delete;
  FlushDenormals& operator=(const FlushDenormals&) = delete;
#else
 public:
  FlushDenormals() {}
#endif
};

}  // namespace fastparam::cpu
