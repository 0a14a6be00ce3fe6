"""Ops on DTensor, the form in which FSDP2 leaves every parameter outside of forward. Batch dimensions may
stay sharded, and all dimensions of a pruned tensor. Otherwise the op works on whole tensors.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from functools import cache, partial
from typing import Any, TypeVar, cast

import torch
from torch import Tensor

from ._arguments import PLAIN

B = TypeVar("B", bound=Tensor | None)


def is_dtensor(X: object) -> bool:
    """Whether X is a DTensor. torch.distributed is not imported for it."""
    module = sys.modules.get("torch.distributed.tensor")
    return type(X) not in PLAIN and module is not None and isinstance(X, module.DTensor)


def beside(X: Tensor, buffer: B) -> B:
    """Returns the buffer of a module, which every process has whole, in the form that an op takes with X."""
    if type(X) in PLAIN or buffer is None or not is_dtensor(X) or is_dtensor(buffer):
        return buffer
    from torch.distributed.tensor import DTensor, Replicate

    register_rules()
    mesh = X.device_mesh  # type: ignore[attr-defined]
    return cast(B, DTensor.from_local(buffer, mesh, [Replicate()] * mesh.ndim, run_check=False))


def whole(X: Tensor) -> Tensor:
    """Returns X. A DTensor is gathered, so that every process has it whole."""
    if type(X) in PLAIN or not is_dtensor(X):
        return X
    from torch.distributed.tensor import Replicate

    mesh = X.device_mesh  # type: ignore[attr-defined]
    return cast(Tensor, X.redistribute(mesh, [Replicate()] * mesh.ndim))  # type: ignore[attr-defined]


@cache
def register_rules() -> None:
    from torch.distributed.tensor.experimental import register_sharding

    from ._ops import OPS

    for op in OPS:
        register_sharding(op.overload)(partial(_prune_rule if op.name == "masked_prune" else _rule, op))


def _rule(op: Any, *args: Any) -> list[tuple[list[Any], list[Any]]]:
    matrix = 1 if op.name == "skew_cayley_packed" else 2  # dimensions
    batch = args[0].ndim - matrix if op.leading_batch else 0
    return [_placements(args, None)] + [_placements(args, [d] * len(args), d) for d in range(batch)]


def _prune_rule(op: Any, X: Any, mask: Any) -> list[tuple[list[Any], list[Any]]]:
    rules = [_placements((X, mask), None)]
    if mask.tensor_meta.dtype == torch.bool:
        for d in range(X.ndim):
            of_mask = d - X.ndim + mask.ndim
            whole = of_mask < 0 or mask.shape[of_mask] == 1
            rules.append(_placements((X, mask), [d, None if whole else of_mask], d))
    return rules


def _placements(
    args: Sequence[Any], dims: Sequence[int | None] | None, out: int | None = None
) -> tuple[list[Any], list[Any]]:
    """Placements of the result and of the arguments that are tensors; None: of whole ones."""
    from torch.distributed.tensor import Replicate, Shard

    def at(d: int | None) -> Any:
        return Replicate() if d is None else Shard(d)

    return [at(out)], [
        at(d) if hasattr(arg, "placements") else None
        for arg, d in zip(args, dims or [None] * len(args), strict=True)
    ]
