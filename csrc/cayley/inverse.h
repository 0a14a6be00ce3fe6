// The inverse of the Cayley map of square matrices, Q = Cayley(A) D with signs D, on the CPU; and the base
// point of a registration. They are no ops: Python calls them with numbers in hand.
#pragma once

#include <tuple>

#include "cayley.h"

namespace fastparam {

// Returns the Cayley maps A of real matrices Q D, which need not be skew, in double precision, the signs D,
// and whether they are not the given ones. Where an entry of A is beyond `far`, and without signs, those are
// chosen by which every pivot of Q + D has size 1 and more if Q is orthogonal. The elimination is well
// conditioned then. For a Q in float32, `single` computes it in float32, and that with given signs where A is
// small.
std::tuple<Tensor, Tensor, bool> eliminate(const Tensor& Q, const Signs& signs, double far, bool single);

// The same with X instead of A, in the dtype of Q: A = alpha (X - X^T), and one triangle of X is 0.
std::tuple<Tensor, Tensor, bool> eliminate_to_parameter(const Tensor& Q, const Signs& signs, double far,
                                                        bool single, double alpha, bool lower);

// Returns estimates of max |Cayley(alpha A) D - Q|, A = X - X^T, in O(n^2) operations, from the products with
// 16 vectors of normal numbers, always the same ones.
//
// The inverse of I + alpha A is (I + Q D) / 2 up to that loss, and corrects its own product with a vector.
// What this correction leaves is at most the square of R, which is large where Q D has an eigenvalue near -1.
// The products of the loss with normal vectors have the sizes of its rows; of n normal numbers, none is
// likely to be larger than 5 standard deviations. Vectors of signs would not do: some entries agree in all of
// them, and hide a matrix in which two such columns have been replaced by their mean.
Tensor estimated_loss(const Tensor& Q, const Tensor& D, const Tensor& X, double alpha, bool lower);

// Returns the largest |Q - other| for each matrix, NaN where one is.
Tensor largest_differences(const Tensor& Q, const Tensor& other);

// Returns the largest |X| of all matrices, or infinity if an entry is not finite.
double largest_entry(const Tensor& X);

// Returns X, in the dtype of Q, whose map is Q up to rounding, its largest entry, and the largest difference
// of the map for each matrix; then the signs and whether they have changed, as from `eliminate`. With
// `estimate`, the differences are computed only if their estimate is larger than allowed.
std::tuple<Tensor, double, Tensor, Tensor, bool> inverse_of_square(const Tensor& Q, const Signs& signs,
                                                                   double alpha, bool lower, double far,
                                                                   bool single, double allowed,
                                                                   bool estimate);

// Returns the n x n factor Q of the QR decomposition of a tall matrix in which the diagonal of R has no
// negative entries, contiguous and of this type.
Tensor orthogonal_factor(const Tensor& X, at::ScalarType type);

}  // namespace fastparam
