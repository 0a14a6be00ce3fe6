// Launches: the blocks that run together, their turns, and their shared memory. Included by simt.h.
#pragma once

namespace simt {

inline void poison_static_shared() {
  dl_iterate_phdr(
      [](dl_phdr_info* info, size_t, void*) {
        for (int i = 0; i < info->dlpi_phnum; ++i)
          if (info->dlpi_phdr[i].p_type == PT_TLS && info->dlpi_tls_data)
            std::memset(info->dlpi_tls_data, 0xFF, info->dlpi_phdr[i].p_memsz);
        return 1;  // the program itself comes first; leave the libraries alone
      },
      nullptr);
}

inline std::string list_of(State state) {
  std::string text;
  int found = 0;
  for (int t = 0; t < machine.count; ++t)
    if (machine.threads[t].state == state && ++found <= 12) text += " " + std::to_string(t);
  return found == 0 ? " none" : text + (found > 12 ? " ... (" + std::to_string(found) + ")" : "");
}

// Runs the blocks that run together, from blockIdx on.
inline void run_blocks() {
  const unsigned first = blockIdx.x;
  machine.arrived.assign(machine.count / machine.size, 0);
  for (int t = 0; t < machine.count; ++t) machine.threads[t].state = State::ready;
  std::vector<int> turns(machine.count);
  std::iota(turns.begin(), turns.end(), 0);
  if (machine.order == Order::reverse) std::reverse(turns.begin(), turns.end());
  for (bool progress = true; progress;) {
    progress = false;
    if (machine.order == Order::random) std::shuffle(turns.begin(), turns.end(), machine.random);
    for (int t : turns) {
      const State before = machine.threads[t].state;
      if (before != State::ready && before != State::spinning) continue;
      machine.current = t;
      const int block = t / machine.size, i = t % machine.size;
      threadIdx = {i % blockDim.x, i / blockDim.x % blockDim.y, i / blockDim.x / blockDim.y};
      blockIdx.x = first + block;
      machine.dynamic = machine.memory + block * machine.stride;
      machine.threads[t].state = State::ready;
      switch_to(machine.scheduler, machine.threads[t]);
      progress = progress || before == State::ready || machine.threads[t].state != State::spinning;
      if (!machine.error.empty()) return;
    }
  }
  for (int t = 0; t < machine.count; ++t)
    if (machine.threads[t].state != State::done) {
      machine.error = "deadlock in block " + std::to_string(blockIdx.x) + ": at the block barrier" +
                      list_of(State::block_wait) + "; at a warp operation" + list_of(State::warp_wait) +
                      "; spinning" + list_of(State::spinning) + "; finished" + list_of(State::done);
      return;
    }
}

// The shared memory of several blocks, with guards around each part.
class SharedMemory {
 public:
  SharedMemory(size_t bytes, unsigned blocks)
      : bytes_(bytes),
        blocks_(blocks),
        memory_(blocks * (bytes + 16 + 2 * kGuard) + 16) {
    machine.stride = (bytes + 15) / 16 * 16 + 2 * kGuard;
    machine.memory = memory_.data() + kGuard;
    machine.memory += (16 - reinterpret_cast<uintptr_t>(machine.memory) % 16) % 16;
  }
  void fill() {
    for (unsigned b = 0; b < blocks_; ++b) {
      std::memset(begin(b) - kGuard, 0x5A, kGuard);
      std::memset(begin(b), 0xFF, bytes_);
      std::memset(begin(b) + bytes_, 0x5A, kGuard);
    }
  }
  void forbid([[maybe_unused]] bool forbidden) {
#ifdef __SANITIZE_ADDRESS__
    for (unsigned b = 0; b < blocks_; ++b)
      if (forbidden) __asan_poison_memory_region(begin(b) + bytes_, kGuard);
      else __asan_unpoison_memory_region(begin(b) + bytes_, kGuard);
#endif
  }
  bool intact() const {
    const auto is_guard = [](unsigned char byte) { return byte == 0x5A; };
    for (unsigned b = 0; b < blocks_; ++b)
      if (!std::all_of(begin(b) - kGuard, begin(b), is_guard) ||
          !std::all_of(begin(b) + bytes_, begin(b) + bytes_ + kGuard, is_guard))
        return false;
    return true;
  }

 private:
  static unsigned char* begin(unsigned block) { return machine.memory + block * machine.stride; }
  static constexpr size_t kGuard = 1024;
  const size_t bytes_;
  const unsigned blocks_;
  std::vector<unsigned char> memory_;
};

// `together` blocks run at a time.
template <class... P, class... A>
void launch_by(unsigned together, dim3 grid, dim3 block, size_t shared_bytes, void (*kernel)(P...),
               A... args) {
  gridDim = grid;
  blockDim = block;
  machine.size = static_cast<int>(block.x * block.y * block.z);
  machine.count = machine.size * static_cast<int>(together);
  if (machine.size < 1 || machine.count > kMaxThreads || (together > 1 && machine.size % 32 != 0))
    throw Error("block size " + std::to_string(machine.size));
  if (machine.threads.empty()) machine.threads.resize(kMaxThreads);
  for (int t = 0; t < machine.count; ++t)
    if (!machine.threads[t].stack) make_thread(machine.threads[t]);
  machine.body = [=] { kernel(static_cast<P>(args)...); };
  machine.error.clear();
  SharedMemory memory(shared_bytes, together);
  for (blockIdx.z = 0; blockIdx.z < grid.z; ++blockIdx.z)
    for (blockIdx.y = 0; blockIdx.y < grid.y; ++blockIdx.y)
      for (unsigned x = 0; x < grid.x && machine.error.empty(); x += together) {
        blockIdx.x = x;
        poison_static_shared();
        memory.fill();
        memory.forbid(true);
        run_blocks();
        memory.forbid(false);
        if (!memory.intact()) machine.error = "write outside dynamic shared memory";
      }
  if (!machine.error.empty()) {
    for (Thread& thread : machine.threads)  // the unfinished contexts cannot be used again
      if (thread.stack) {
#ifdef __SANITIZE_ADDRESS__
        __asan_unpoison_memory_region(thread.stack, kStack);
#endif
        munmap(thread.stack, kStack);
        thread = Thread{};
      }
    throw Error(machine.error);
  }
}

template <class... P, class... A>
void launch(dim3 grid, dim3 block, size_t shared_bytes, void (*kernel)(P...), A... args) {
  launch_by(1, grid, block, shared_bytes, kernel, args...);
}
// A cooperative launch of one row of blocks without static shared memory.
template <class... P, class... A>
void launch_together(unsigned grid, dim3 block, size_t shared_bytes, void (*kernel)(P...), A... args) {
  launch_by(grid, grid, block, shared_bytes, kernel, args...);
}

}  // namespace simt
