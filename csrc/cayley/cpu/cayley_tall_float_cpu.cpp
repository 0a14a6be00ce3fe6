// The kernels for tall matrices of float.
#include "instances.h"

namespace fastparam::cpu {

FASTPARAM_CAYLEY_TALL(, float)

}  // namespace fastparam::cpu
