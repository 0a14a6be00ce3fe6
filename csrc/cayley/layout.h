// How a skew matrix A is given, on every device. It does not depend on torch.
#pragma once

namespace fastparam {

// A is given by its strict upper or lower triangle, by the entries above the diagonal row by row, or as a
// whole, in which case it can be any matrix. `inside` is a diagonal block of a larger matrix during
// elimination: the result is M - I, without the guard. A gradient has the layout of the parameter.
enum class Layout { upper, lower, packed, whole, inside };

}  // namespace fastparam
