"""The maps as pure functions."""

from .cayley import cayley, skew_cayley, skew_cayley_packed, stiefel_cayley
from .prune import masked_prune, pack_mask, unpack_mask
from .triangular import skew, symmetric

__all__ = [
    "cayley",
    "masked_prune",
    "pack_mask",
    "skew",
    "skew_cayley",
    "skew_cayley_packed",
    "stiefel_cayley",
    "symmetric",
    "unpack_mask",
]
