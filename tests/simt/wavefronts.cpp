// The recorder of wavefronts.h. g++ calls these functions before each access to memory (-fsanitize=thread)
// and at the start of each basic block (-fsanitize-coverage=trace-pc) of a program that is compiled with
// these options. This file is compiled without them, and there is no other runtime of the sanitizer.
#include "wavefronts.h"

#include <dlfcn.h>

#include <array>
#include <set>
#include <unordered_map>

namespace simt {
namespace {

// What a thread does next: an access to shared memory, or a basic block (0 bytes).
struct Event {
  uintptr_t pc, address;
  int bytes;
};
bool recording = false;
std::vector<std::vector<Event>> traces;  // of each thread

// Returns whether the code at pc is that of a kernel, not of the shim. Functions that kernels call are
// inlined.
bool in_kernel(const void* pc) {
  static std::unordered_map<const void*, bool> known;
  const auto [place, is_new] = known.try_emplace(pc, false);
  Dl_info info;
  if (is_new && dladdr(pc, &info) && info.dli_sname)
    place->second = std::strspn(info.dli_sname, "_ZNK") ==
                    static_cast<size_t>(std::strstr(info.dli_sname, "9fastparam4cuda") - info.dli_sname);
  return place->second;
}

bool is_shared(uintptr_t address) {
  static uintptr_t begin = 0, end = 0;  // static shared memory (simt_launch.h)
  if (end == 0)
    dl_iterate_phdr(
        [](dl_phdr_info* info, size_t, void*) {
          for (int i = 0; i < info->dlpi_phnum; ++i)
            if (info->dlpi_phdr[i].p_type == PT_TLS && info->dlpi_tls_data) {
              begin = reinterpret_cast<uintptr_t>(info->dlpi_tls_data);
              end = begin + info->dlpi_phdr[i].p_memsz;
            }
          end = std::max<uintptr_t>(end, 1);
          return 1;
        },
        nullptr);
  const auto dynamic = reinterpret_cast<uintptr_t>(machine.dynamic);
  return (address >= dynamic && address < dynamic + machine.stride) || (address >= begin && address < end);
}

void record(const void* pc, uintptr_t address, int bytes) {
  if (!recording || !in_kernel(pc) || (bytes > 0 && !is_shared(address))) return;
  traces[machine.current].push_back({reinterpret_cast<uintptr_t>(pc), address, bytes});
}

// The banks are 4 bytes wide, and serve 32 lanes that access up to 4 bytes each, 16 lanes that access 8, or
// 8 lanes that access 16.
void add_access(Wavefronts& sum, const std::array<const Event*, 32>& lanes, int bytes) {
  const int together = bytes <= 4 ? 32 : 128 / bytes;
  for (int first = 0; first < 32; first += together) {
    std::array<std::set<uintptr_t>, 32> words;
    for (int lane = first; lane < first + together; ++lane)
      if (lanes[lane])
        for (int b = 0; b < bytes; b += 4) {
          const uintptr_t word = (lanes[lane]->address + b) / 4;
          words[word % 32].insert(word);
        }
    size_t most = 0;
    for (const auto& bank : words) most = std::max(most, bank.size());
    sum.counted += static_cast<long>(most);
    sum.without_conflicts += most > 0;
  }
}

// Lets the lanes of a warp take their steps together. Those that are furthest behind in the code go first, so
// lanes that have taken different branches meet again after them.
void add_warp(Wavefronts& sum, const std::vector<Event>* traces) {
  std::array<size_t, 32> done{};
  for (;;) {
    uintptr_t pc = ~uintptr_t(0);
    for (int lane = 0; lane < 32; ++lane)
      if (done[lane] < traces[lane].size()) pc = std::min(pc, traces[lane][done[lane]].pc);
    if (pc == ~uintptr_t(0)) return;
    std::array<const Event*, 32> lanes{};
    int bytes = 0;
    for (int lane = 0; lane < 32; ++lane) {
      if (done[lane] == traces[lane].size() || traces[lane][done[lane]].pc != pc) continue;
      lanes[lane] = &traces[lane][done[lane]++];
      bytes = lanes[lane]->bytes;
    }
    if (bytes > 0) add_access(sum, lanes, bytes);
  }
}

}  // namespace

void start_recording() {
  traces.assign(kMaxThreads, {});
  recording = true;
}
Wavefronts stop_recording() {
  recording = false;
  Wavefronts sum;
  for (int first = 0; first < kMaxThreads; first += 32) add_warp(sum, &traces[first]);
  return sum;
}

}  // namespace simt

#define HERE __builtin_return_address(0)
#define ACCESS(size)                                                                                       \
  extern "C" void __tsan_read##size(void* p) { simt::record(HERE, reinterpret_cast<uintptr_t>(p), size); } \
  extern "C" void __tsan_write##size(void* p) { simt::record(HERE, reinterpret_cast<uintptr_t>(p), size); }
ACCESS(1)
ACCESS(2)
ACCESS(4)
ACCESS(8)
ACCESS(16)
static void record_parts(const void* pc, void* p, size_t bytes) {
  for (size_t b = 0; b < bytes; b += 16)
    simt::record(pc, reinterpret_cast<uintptr_t>(p) + b, static_cast<int>(std::min<size_t>(16, bytes - b)));
}
extern "C" {
void __tsan_read_range(void* p, size_t bytes) { record_parts(HERE, p, bytes); }
void __tsan_write_range(void* p, size_t bytes) { record_parts(HERE, p, bytes); }
void __sanitizer_cov_trace_pc() { simt::record(HERE, 0, 0); }
void __tsan_init() {}
void __tsan_func_entry(void*) {}
void __tsan_func_exit(void*) {}
void __tsan_vptr_update(void**, void*) {}
}
