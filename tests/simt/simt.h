// Runs CUDA device code on the CPU, with one fiber per thread, so that kernels can be tested and sanitized
// without a GPU.
//
//   #include "simt.h"              // before the .cuh under test
//   simt::schedule(simt::Order::random, seed);
//   // throws simt::Error on a deadlock or a bad collective
//   simt::launch(grid, block, shared_bytes, kernel<float>, args...);
//   simt::launch_together(...);   // the same, for blocks that wait for each other
//
// Blocks run one after the other, and those of a cooperative launch together. Threads take turns: a thread
// runs until it has to wait. The shim is stricter than the hardware: a barrier must be reached by every
// thread of the block, and a warp operation by every lane of its mask, with the same operation and mask.
// Shared memory is filled with 0xFF (a NaN, or -1) before each block. Static shared arrays are `thread_local`
// here, so that they are in one segment that can be filled. A test program must not have any other
// thread_local variables.
#pragma once
#include <link.h>
#include <sys/mman.h>
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <functional>
#include <numeric>
#include <random>
#include <stdexcept>
#include <string>
#include <vector>
#if !defined(__x86_64__) || defined(SIMT_UCONTEXT)
#include <ucontext.h>
#define SIMT_USES_UCONTEXT 1
#endif
#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

#include "simt_types.h"

namespace simt {

struct Error : std::runtime_error {
  using std::runtime_error::runtime_error;
};
enum class Order { forward, reverse, random };

constexpr int kMaxThreads = 1024;
#ifdef __SANITIZE_ADDRESS__
constexpr size_t kStack = 256 << 10;
#else
constexpr size_t kStack = 64 << 10;
#endif

enum class State { ready, spinning, block_wait, warp_wait, done };
enum class Op { sync, any, count, shuffle, ballot };

// An execution context, of the scheduler or of a thread.
struct Context {
#ifdef SIMT_USES_UCONTEXT
  ucontext_t machine;
#else
  void* machine = nullptr;
#endif
  char* stack = nullptr;
  void* fake_stack = nullptr;  // of AddressSanitizer
};

struct Thread : Context {
  State state = State::done;
  Op op = Op::sync;
  unsigned mask = 0;
  uint64_t in = 0, out = 0;
  int source = 0;
};

struct Machine {
  Order order = Order::forward;
  std::mt19937 random{1};
  Context scheduler;
  std::vector<Thread> threads;
  int count = 0, size = 0, current = -1;  // threads that run together, of a block; the running one
  std::vector<int> arrived;               // of each block's threads, at its barrier
  std::function<void()> body;
  std::string error;
  unsigned char *dynamic = nullptr, *memory = nullptr;  // of the running block, of the first
  size_t stride = 0;                                    // from one block's to the next one's
  long switches = 0;
};
inline Machine machine;

inline void schedule(Order order, unsigned seed = 1) {
  machine.order = order;
  machine.random.seed(seed);
}

// ---- switching --------------------------------------------------------------------------------------------
#ifndef SIMT_USES_UCONTEXT
extern "C" void simt_switch(void** save, void* load);
asm(".text\n.weak simt_switch\n.type simt_switch,@function\nsimt_switch:\n"
    "pushq %rbp\npushq %rbx\npushq %r12\npushq %r13\npushq %r14\npushq %r15\n"
    "movq %rsp,(%rdi)\nmovq %rsi,%rsp\n"
    "popq %r15\npopq %r14\npopq %r13\npopq %r12\npopq %rbx\npopq %rbp\nret\n");
#endif

inline void switch_to(Context& from, Context& to) {
  ++machine.switches;
#ifdef __SANITIZE_ADDRESS__
  if (to.stack) __sanitizer_start_switch_fiber(&from.fake_stack, to.stack, kStack);
  else {  // back to the scheduler, whose bounds AddressSanitizer reported
    extern const void* scheduler_stack;
    extern size_t scheduler_size;
    __sanitizer_start_switch_fiber(&from.fake_stack, scheduler_stack, scheduler_size);
  }
#endif
#ifdef SIMT_USES_UCONTEXT
  swapcontext(&from.machine, &to.machine);
#else
  simt_switch(&from.machine, to.machine);
#endif
#ifdef __SANITIZE_ADDRESS__
  __sanitizer_finish_switch_fiber(from.fake_stack, nullptr, nullptr);
#endif
}
#ifdef __SANITIZE_ADDRESS__
inline const void* scheduler_stack = nullptr;
inline size_t scheduler_size = 0;
#endif

inline void thread_main() {
#ifdef __SANITIZE_ADDRESS__
  __sanitizer_finish_switch_fiber(nullptr, &scheduler_stack, &scheduler_size);
#endif
  for (;;) {  // a context is created once and used for every block
    Thread& self = machine.threads[machine.current];
    machine.body();
    self.state = State::done;
    switch_to(self, machine.scheduler);
  }
}

inline void make_thread(Thread& thread) {
  thread = Thread{};
  thread.stack =
      static_cast<char*>(mmap(nullptr, kStack, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
#ifdef SIMT_USES_UCONTEXT
  getcontext(&thread.machine);
  thread.machine.uc_stack.ss_sp = thread.stack;
  thread.machine.uc_stack.ss_size = kStack;
  thread.machine.uc_link = nullptr;
  makecontext(&thread.machine, thread_main, 0);
#else
  void** top = reinterpret_cast<void**>(thread.stack + kStack) - 2;
  *top = reinterpret_cast<void*>(&thread_main);
  thread.machine = top - 6;  // the six saved registers
#endif
}

// ---- waiting ----------------------------------------------------------------------------------------------
inline void wait() {
  Thread& self = machine.threads[machine.current];
  switch_to(self, machine.scheduler);
}
// A thread that asks again and again whether others have come.
inline void spin() {
  machine.threads[machine.current].state = State::spinning;
  wait();
}
inline void fail(const char* what) {  // the scheduler abandons the launch
  machine.error = std::string(what) + " (block " + std::to_string(blockIdx.x) + ", thread " +
                  std::to_string(machine.current) + ")";
  machine.threads[machine.current].state = State::block_wait;
  for (;;) wait();
}

inline int block_barrier(Op op, int value) {
  Thread& self = machine.threads[machine.current];
  self.op = op;
  self.in = static_cast<uint64_t>(value != 0);
  self.state = State::block_wait;
  const int block = machine.current / machine.size, first = block * machine.size;
  if (++machine.arrived[block] < machine.size) wait();
  else {  // the last one releases all
    uint64_t sum = 0;
    for (int t = first; t < first + machine.size; ++t) sum += machine.threads[t].in;
    for (int t = first; t < first + machine.size; ++t) {
      if (machine.threads[t].op != op) fail("different block barriers met");
      machine.threads[t].out = op == Op::any ? sum != 0 : sum;
      machine.threads[t].state = State::ready;
    }
    machine.arrived[block] = 0;
  }
  return static_cast<int>(self.out);
}

inline uint64_t warp_collective(Op op, unsigned mask, uint64_t value, int source) {
  Thread& self = machine.threads[machine.current];
  const int base = machine.current & ~31, lane = machine.current & 31;
  if (!(mask >> lane & 1)) fail("a lane calls a warp operation whose mask leaves it out");
  self.op = op;
  self.mask = mask;
  self.in = value;
  self.source = source;
  self.state = State::warp_wait;
  uint64_t votes = 0;
  for (int l = 0; l < 32; ++l) {
    if (!(mask >> l & 1)) continue;
    if (base + l >= machine.count) fail("a warp mask names a lane that does not exist");
    const Thread& other = machine.threads[base + l];
    if (other.state != State::warp_wait) {
      wait();
      return self.out;
    }
    if (other.op != op || other.mask != mask) fail("different warp operations met");
    votes |= static_cast<uint64_t>(other.in != 0) << l;
  }
  for (int l = 0; l < 32; ++l) {  // the last lane computes the results of all lanes
    if (!(mask >> l & 1)) continue;
    Thread& other = machine.threads[base + l];
    if (op == Op::shuffle && !(mask >> other.source & 1)) fail("a shuffle reads a lane outside its mask");
    other.out = op == Op::shuffle ? machine.threads[base + other.source].in : votes;
    other.state = State::ready;
  }
  return self.out;
}

template <class T>
T shuffle(unsigned mask, T value, int source) {
  uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof(T));
  bits = warp_collective(Op::shuffle, mask, bits, source);
  std::memcpy(&value, &bits, sizeof(T));
  return value;
}

}  // namespace simt

#include "simt_launch.h"
#include "simt_memory.h"
#include "simt_names.h"
