"""Pruned weights: entries under a mask are zero. Functions; the modules are in ``_prune_module.py``."""
# `entry` takes the signature and the words; the body is in C++.

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from ._ops import entry


@entry
def masked_prune(X: Tensor, mask: Tensor) -> Tensor:
    r"""Returns ``X`` where the mask is True, and +0 elsewhere, even if ``X`` is NaN or inf there.

    .. math:: P(X)_i = X_i \text{ if } \mathrm{mask}_i \text{ else } 0

    The forward and the backward pass each go over memory once. Gradients of pruned entries are exactly +0,
    and NaN or inf under the mask does not reach the result. A smaller mask (a row, a column, a channel) is
    never expanded in memory. The result is contiguous.

    Args:
        X: tensor of any shape and strides, of dtype float32, float64, bfloat16, float16 or complex.
        mask: bool tensor that is broadcastable to ``X``, or a mask with one bit per entry of ``X`` from
            :func:`pack_mask`. A uint8 tensor is always taken for a packed mask; convert a uint8 mask of zeros
            and ones by ``mask.bool()``.

    Raises:
        ValueError: If ``X`` has another dtype, or if ``mask`` has another dtype or device, is not
            broadcastable to ``X``, or packs another number of entries.
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
    r"""Returns the mask with eight entries per byte, in the order of the flattened tensor. The first entry is
    the lowest bit.

    .. math:: \mathrm{byte}_j = \sum_{k=0}^{7} 2^k \, \mathrm{mask}_{8j + k}

    Args:
        mask: bool tensor of any shape.

    Returns:
        Tensor of dtype uint8 and shape (ceil(numel / 8),). The bits after the last entry are 0.

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
        ValueError: If ``packed`` is not of dtype uint8, or its length does not match ``size``.
        TypeError: If ``packed`` is not a tensor, or ``size`` is not a sequence of ints.

    Source: the layout of ``numpy.packbits(mask, bitorder="little")``.

    Example:
        >>> fastparam.functional.unpack_mask(torch.tensor([37], dtype=torch.uint8), (2, 3))
        tensor([[ True, False,  True],
                [False, False,  True]])
    """
