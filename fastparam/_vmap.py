"""The batching rule of every op but those of masks: leading dimensions are batch dimensions, so vmap's becomes the first of them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def _one(arg: Any, dim: int | None) -> Any:
    """An argument as one example sees it, without data."""
    if not isinstance(arg, Tensor):
        return arg
    return arg.new_empty([size for d, size in enumerate(arg.shape) if d != dim], device="meta")


def _register(op: torch._ops.OpOverload) -> None:
    def rule(info: Any, in_dims: tuple[int | None, ...], *args: Any) -> tuple[Tensor, int]:
        def front(arg: Any, dim: int | None) -> Any:
            if not isinstance(arg, Tensor):
                return arg
            return arg.expand(info.batch_size, *arg.shape) if dim is None else arg.movedim(dim, 0)

        if any(dim is not None and arg.dim() < 3 for arg, dim in zip(args, in_dims, strict=True)):
            op(*map(_one, args, in_dims))  # raises where an example is a vector, though the batch of them is a matrix
        return op(*map(front, args, in_dims)), 0

    torch.library.register_vmap(op, rule)


for _name in (
    *("symmetric", "symmetric_adjoint", "skew", "skew_adjoint"),
    *("cayley", "cayley_backward", "skew_cayley", "skew_cayley_backward", "skew_cayley_packed", "skew_cayley_packed_backward"),
    "stiefel_cayley",
):
    _register(getattr(torch.ops.fastparam, _name).default)
