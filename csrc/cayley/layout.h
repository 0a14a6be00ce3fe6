// How a skew matrix A is given, on every device; free of torch.
#pragma once

namespace fastparam {

// By its strict upper or lower triangle, by the entries above the diagonal row by row, or whole: then it may
// be any matrix. `inside`: a diagonal block of a larger matrix in elimination, of which M - I is wanted,
// unguarded. A gradient has the layout of what was given.
enum class Layout { upper, lower, packed, whole, inside };

}  // namespace fastparam
