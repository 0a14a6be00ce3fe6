"""Masks as functions: zero what a mask drops, keep a mask in one bit an entry."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.compiler import is_compiling
from torch.overrides import has_torch_function_unary, has_torch_function_variadic

from . import _C
from ._arguments import check_tensor


def _check_tensors(X: object, mask: object) -> None:
    check_tensor("masked_prune", "X", X)
    check_tensor("masked_prune", "mask", mask)


def masked_prune(X: Tensor, mask: Tensor) -> Tensor:
    r"""Returns ``X`` where the mask is True, and +0 elsewhere, whatever stands there.

    .. math:: P(X)_i = X_i \text{ if } \mathrm{mask}_i \text{ else } 0

    One pass over memory, forward and backward; gradients of pruned entries are exactly +0, and NaN or inf under the mask go nowhere.
    A smaller mask (a row, a column, a channel) is never expanded in memory. The result is contiguous.

    Args:
        X: tensor of any shape and strides; float32, float64, bfloat16, float16 or complex.
        mask: bool, of a shape that broadcasts to that of ``X``; or packed by :func:`pack_mask`, one bit an entry of ``X``.

    Raises:
        ValueError: ``mask`` has another dtype or device, does not broadcast to ``X``, or packs another number of entries.
        TypeError: ``X`` or ``mask`` is not a tensor.

    Source: ``PruningParametrization`` of the PyTorch parametrizations tutorial, which multiplies by the mask.

    Example:
        >>> fastparam.functional.masked_prune(torch.tensor([[1., 2.], [3., float("nan")]]), torch.tensor([True, False]))
        tensor([[1., 0.],
                [3., 0.]])
    """
    if is_compiling() or has_torch_function_variadic(X, mask):
        _check_tensors(X, mask)
        Y: Tensor = torch.ops.fastparam.masked_prune.default(X, mask)
        return Y
    try:
        return _C.masked_prune(X, mask)
    except TypeError:  # of the many lines that pybind11 writes, one
        _check_tensors(X, mask)
        raise


def pack_mask(mask: Tensor) -> Tensor:
    r"""Returns the mask with eight entries a byte, in the order of the flattened tensor, the first in the lowest bit.

    .. math:: \mathrm{byte}_j = \sum_{k=0}^{7} 2^k \, \mathrm{mask}_{8j + k}

    Args:
        mask: bool tensor of any shape.

    Returns:
        uint8 tensor of shape (ceil(numel / 8),); bits after the last entry are 0.

    Raises:
        ValueError: ``mask`` is not of dtype bool.
        TypeError: ``mask`` is not a tensor.

    Source: the layout of ``numpy.packbits(mask, bitorder="little")``.

    Example:
        >>> fastparam.functional.pack_mask(torch.tensor([[True, False, True], [False, False, True]]))
        tensor([37], dtype=torch.uint8)
    """
    check_tensor("pack_mask", "mask", mask)
    if is_compiling() or has_torch_function_unary(mask):
        packed: Tensor = torch.ops.fastparam.pack_mask.default(mask)
        return packed
    return _C.pack_mask(mask)


def unpack_mask(packed: Tensor, size: Sequence[int]) -> Tensor:
    r"""Returns the bool mask of shape ``size`` that :func:`pack_mask` packed.

    .. math:: \mathrm{mask}_i = \lfloor \mathrm{byte}_{\lfloor i / 8 \rfloor} \, 2^{-(i \bmod 8)} \rfloor \bmod 2

    Args:
        packed: uint8 tensor of shape (ceil(numel / 8),).
        size: the shape of the mask.

    Raises:
        ValueError: ``packed`` is not of dtype uint8, or has another length than ``size`` asks for.
        TypeError: ``packed`` is not a tensor, or ``size`` not a sequence of ints.

    Source: the layout of ``numpy.packbits(mask, bitorder="little")``.

    Example:
        >>> fastparam.functional.unpack_mask(torch.tensor([37], dtype=torch.uint8), (2, 3))
        tensor([[ True, False,  True],
                [False, False,  True]])
    """
    check_tensor("unpack_mask", "packed", packed)
    if is_compiling() or has_torch_function_unary(packed):
        mask: Tensor = torch.ops.fastparam.unpack_mask.default(packed, size)
        return mask
    try:
        return _C.unpack_mask(packed, size)
    except TypeError:
        raise TypeError(f"unpack_mask: expected size to be a sequence of ints, got {size!r}") from None
