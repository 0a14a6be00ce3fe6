"""Every op in plain torch: the specification, the judge of the tests, the baseline of the benchmarks.

The library itself never calls these.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn


def symmetric(X: Tensor, lower: bool = False) -> Tensor:
    return X.tril() + X.tril(-1).mT if lower else X.triu() + X.triu(1).mT


def symmetric_adjoint(G: Tensor, lower: bool = False) -> Tensor:
    return G.tril() + G.mT.tril(-1) if lower else G.triu() + G.mT.triu(1)


def skew(X: Tensor, lower: bool = False) -> Tensor:
    A = X.tril(-1) if lower else X.triu(1)
    return A - A.mT


def skew_adjoint(G: Tensor, lower: bool = False) -> Tensor:
    D = G - G.mT
    return D.tril(-1) if lower else D.triu(1)


def masked_prune(X: Tensor, mask: Tensor) -> Tensor:
    if mask.dtype == torch.uint8:  # packed; the dimensions before its last are those of X
        mask = _bits(mask)[..., : math.prod(X.shape[mask.dim() - 1 :])].reshape(X.shape)
    return torch.where(mask, X, 0)


def pack_mask(mask: Tensor) -> Tensor:
    bits = nn.functional.pad(mask.flatten(), (0, -mask.numel() % 8)).view(-1, 8)
    return (bits * _places(mask)).sum(-1, dtype=torch.uint8)


def unpack_mask(packed: Tensor, size: Sequence[int]) -> Tensor:
    return _bits(packed)[: math.prod(size)].reshape(size)


def _places(mask: Tensor) -> Tensor:
    """The values of a byte's bits, the first element's first."""
    return torch.tensor([1, 2, 4, 8, 16, 32, 64, 128], dtype=torch.uint8, device=mask.device)


def _bits(packed: Tensor) -> Tensor:
    return ((packed.unsqueeze(-1) & _places(packed)) != 0).flatten(-2)
