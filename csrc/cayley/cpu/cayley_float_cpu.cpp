// The Cayley kernels for float, and for half types, which are computed in float.
#include "instances.h"

namespace fastparam::cpu {

FASTPARAM_CAYLEY_BATCHES(, float)
FASTPARAM_CAYLEY_BATCHES(, c10::Half)
FASTPARAM_CAYLEY_BATCHES(, c10::BFloat16)
FASTPARAM_CAYLEY_ELIMINATION(, float)

}  // namespace fastparam::cpu
