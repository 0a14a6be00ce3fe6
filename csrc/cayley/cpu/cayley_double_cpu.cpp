// The Cayley kernels for double.
#include "instances.h"

namespace fastparam::cpu {

FASTPARAM_CAYLEY_BATCHES(, double)
FASTPARAM_CAYLEY_ELIMINATION(, double)

}  // namespace fastparam::cpu
