"""The batching rules of masks: batch dimensions go before those of X, every packed mask fills whole bytes."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

ops = torch.ops.fastparam


def _front(t: Tensor, dim: int | None) -> Tensor:
    """The tensor with its batch dimension first, or one that broadcasts."""
    return t.unsqueeze(0) if dim is None else t.movedim(dim, 0)


def _masked_prune(info: Any, in_dims: tuple[int | None, ...], X: Tensor, mask: Tensor) -> tuple[Tensor, int]:
    X, mask = _front(X, in_dims[0]), _front(mask, in_dims[1])
    X = X.expand(info.batch_size, *X.shape[1:])
    if mask.dtype == torch.bool:
        mask = mask.reshape(mask.shape[0], *(1 for _ in range(X.dim() - mask.dim())), *mask.shape[1:])
    else:
        mask = mask.expand(info.batch_size, *mask.shape[1:])
    return ops.masked_prune.default(X, mask), 0


def _pack_mask(info: Any, in_dims: tuple[int, ...], mask: Tensor) -> tuple[Tensor, int]:
    rows = _front(mask, in_dims[0]).unsqueeze(-1).flatten(1)
    rows = nn.functional.pad(rows, (0, -rows.shape[1] % 8))
    return ops.pack_mask.default(rows).view(info.batch_size, rows.shape[1] // 8), 0


def _unpack_mask(info: Any, in_dims: tuple[int, Any], packed: Tensor, size: list[int]) -> tuple[Tensor, int]:
    rows = _front(packed, in_dims[0])
    one = ops.unpack_mask.default(
        rows.new_empty(rows.shape[1:], device="meta"), size
    )  # or raises what is wrong with each
    bits = ops.unpack_mask.default(rows.flatten(), [8 * rows.numel()]).view(
        info.batch_size, 8 * rows.shape[1]
    )
    return bits[:, : one.numel()].reshape(info.batch_size, *size).contiguous(), 0


torch.library.register_vmap("fastparam::masked_prune", _masked_prune)
torch.library.register_vmap("fastparam::pack_mask", _pack_mask)
torch.library.register_vmap("fastparam::unpack_mask", _unpack_mask)
