"""The maps as pure functions."""

from ._cayley import cayley, cayley_inverse, skew_cayley, skew_cayley_packed, stiefel_cayley
from ._prune import masked_prune, pack_mask, unpack_mask
from ._triangular import skew, symmetric

__all__ = [
    "cayley",
    "cayley_inverse",
    "masked_prune",
    "pack_mask",
    "skew",
    "skew_cayley",
    "skew_cayley_packed",
    "stiefel_cayley",
    "symmetric",
    "unpack_mask",
]
