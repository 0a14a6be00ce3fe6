"""The batching rule of every op: leading dimensions are batch dimensions, so vmap's becomes the first of them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def _register(op: torch._ops.OpOverload) -> None:
    def rule(info: Any, in_dims: tuple[int | None, ...], *args: Any) -> tuple[Tensor, int]:
        def front(arg: Any, dim: int | None) -> Any:
            if not isinstance(arg, Tensor):
                return arg
            return arg.expand(info.batch_size, *arg.shape) if dim is None else arg.movedim(dim, 0)

        return op(*map(front, args, in_dims)), 0

    torch.library.register_vmap(op, rule)


for _name in ("symmetric", "symmetric_adjoint", "skew", "skew_adjoint"):
    _register(getattr(torch.ops.fastparam, _name).default)
