"""The maps as pure functions."""

from ._cayley import cayley, cayley_inverse, skew_cayley, skew_cayley_packed, stiefel_cayley
from ._exponential import exp_frechet, matrix_exp, skew_exp, stiefel_exp, symmetric_exp
from ._householder import householder
from ._logarithm import log_orthogonal, log_positive_definite
from ._prune import masked_prune, pack_mask, unpack_mask
from ._triangular import skew, symmetric

__all__ = [
    "cayley",
    "cayley_inverse",
    "exp_frechet",
    "householder",
    "log_orthogonal",
    "log_positive_definite",
    "masked_prune",
    "matrix_exp",
    "pack_mask",
    "skew",
    "skew_cayley",
    "skew_cayley_packed",
    "skew_exp",
    "stiefel_cayley",
    "stiefel_exp",
    "symmetric",
    "symmetric_exp",
    "unpack_mask",
]
