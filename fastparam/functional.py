"""The maps as pure functions."""

from .prune import masked_prune, pack_mask, unpack_mask
from .triangular import skew, symmetric

__all__ = ["masked_prune", "pack_mask", "skew", "symmetric", "unpack_mask"]
