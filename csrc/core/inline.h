// The macro of functions that are always inlined.
#pragma once

#define FASTPARAM_INLINE inline __attribute__((always_inline))
