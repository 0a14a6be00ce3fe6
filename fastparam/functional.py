"""The maps as pure functions."""

from .triangular import skew, symmetric

__all__ = ["skew", "symmetric"]
