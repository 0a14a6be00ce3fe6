// The Cayley kernels of float and, computed in it, of half types.
#include "instances.h"

namespace fastparam::cpu {

FASTPARAM_CAYLEY_BATCHES(, float)
FASTPARAM_CAYLEY_BATCHES(, c10::Half)
FASTPARAM_CAYLEY_BATCHES(, c10::BFloat16)
FASTPARAM_CAYLEY_ELIMINATION(, float)

}  // namespace fastparam::cpu
