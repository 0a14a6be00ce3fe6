// The kernels for tall matrices of double.
#include "instances.h"

namespace fastparam::cpu {

FASTPARAM_CAYLEY_TALL(, double)

}  // namespace fastparam::cpu
