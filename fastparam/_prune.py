"""Pruned weights: entries under a mask are zero. Functions; the modules are in ``_prune_module.py``."""
# `entry` takes the signature and the words; the body is in C++.

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from ._ops import entry


@entry
def masked_prune(X: Tensor, mask: Tensor) -> Tensor:
    r"""Returns ``X`` where the mask is True, and +0 elsewhere, whatever stands there.

    .. math:: P(X)_i = X_i \text{ if } \mathrm{mask}_i \text{ else } 0

    It is one pass over memory, forward and backward. Gradients of pruned entries are exactly +0, and NaN or
    inf under the mask go nowhere. A smaller mask (a row, a column, a channel) is never expanded in memory.
    The result is contiguous.

    Args:
        X: tensor of any shape and strides; float32, float64, bfloat16, float16 or complex.
        mask: bool tensor of a shape that broadcasts to that of ``X``, or one packed by :func:`pack_mask`, one
            bit per entry of ``X``. A uint8 tensor is always a packed mask: one of zeros and ones goes through
            ``mask.bool()``.

    Raises:
        ValueError: If ``X`` has another dtype, or ``mask`` has another dtype or device, does not broadcast to
            ``X`` or packs another number of entries.
        TypeError: If ``X`` or ``mask`` is not a tensor.

    Source: ``PruningParametrization`` of the PyTorch parametrizations tutorial, which multiplies by the mask.

    Example:
        >>> X = torch.tensor([[1., 2.], [3., float("nan")]])
        >>> fastparam.functional.masked_prune(X, torch.tensor([True, False]))
        tensor([[1., 0.],
                [3., 0.]])
    """


@entry
def pack_mask(mask: Tensor) -> Tensor:
    r"""Returns the mask with eight entries per byte, in the order of the flattened tensor, the first lowest.

    .. math:: \mathrm{byte}_j = \sum_{k=0}^{7} 2^k \, \mathrm{mask}_{8j + k}

    Args:
        mask: bool tensor of any shape.

    Returns:
        uint8 tensor of shape (ceil(numel / 8),); bits after the last entry are 0.

    Raises:
        ValueError: If ``mask`` is not of dtype bool.
        TypeError: If ``mask`` is not a tensor.

    Source: the layout of ``numpy.packbits(mask, bitorder="little")``.

    Example:
        >>> fastparam.functional.pack_mask(torch.tensor([[True, False, True], [False, False, True]]))
        tensor([37], dtype=torch.uint8)
    """


@entry
def unpack_mask(packed: Tensor, size: Sequence[int]) -> Tensor:
    r"""Returns the bool mask of shape ``size`` that :func:`pack_mask` packed.

    .. math:: \mathrm{mask}_i = \lfloor \mathrm{byte}_{\lfloor i / 8 \rfloor} / 2^{i \bmod 8} \rfloor \bmod 2

    Args:
        packed: uint8 tensor of shape (ceil(numel / 8),).
        size: the shape of the mask.

    Raises:
        ValueError: If ``packed`` is not of dtype uint8, or has another length than ``size`` asks for.
        TypeError: If ``packed`` is not a tensor, or ``size`` is not a sequence of ints.

    Source: the layout of ``numpy.packbits(mask, bitorder="little")``.

    Example:
        >>> fastparam.functional.unpack_mask(torch.tensor([37], dtype=torch.uint8), (2, 3))
        tensor([[ True, False,  True],
                [False, False,  True]])
    """
