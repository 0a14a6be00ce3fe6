// Functions that are never called out of line.
#pragma once

#define FASTPARAM_INLINE inline __attribute__((always_inline))
