// The helpers of the tests.
#pragma once
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <type_traits>

inline int checks = 0, failures = 0;
inline bool stop_early = std::getenv("STOP_EARLY") != nullptr;  // for mutate.py
#define CHECK(condition, ...)                     \
  do {                                            \
    ++checks;                                     \
    if (!(condition) && ++failures <= 20) {       \
      std::printf("%s:%d: ", __FILE__, __LINE__); \
      std::printf(__VA_ARGS__);                   \
      std::printf("\n");                          \
    }                                             \
    if (failures && stop_early) std::_Exit(1);    \
  } while (0)

template <class F>
void guarded(const char* what, F run) {
  try {
    run();
  } catch (const std::exception& error) {
    CHECK(false, "%s: %s", what, error.what());
  }
}
template <int... Values, class F>
void with_constant(int value, F run) {
  ((value == Values ? run(std::integral_constant<int, Values>{}) : void()), ...);
}
inline int report() {
  std::printf("%d checks, %d failures\n", checks, failures);
  return failures != 0;
}
