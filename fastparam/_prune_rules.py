"""The rules that choose which entries stay: the methods of torch.nn.utils.prune, applied to a tensor alone,
and n of every m.
"""

from __future__ import annotations

import copy
import numbers
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.nn.utils import prune

from ._arguments import check_integer, check_number, check_tensor, has_no_data, is_flag

_torch: Any = prune  # untyped there
_REAL = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
Rule: TypeAlias = prune.BasePruningMethod


# ---- rules -----------------------------------------------------------------------------------------------


class KeepNOfM(prune.BasePruningMethod):
    """Keeps the n largest of every m neighbours in the last dimension; pruned entries are the smallest."""

    PRUNING_TYPE = "global"

    def __init__(self, n: int, m: int) -> None:
        n, m = check_integer("Pruning.n_m", "n", n), check_integer("Pruning.n_m", "m", m)
        if not 0 <= n <= m or m == 0:
            raise ValueError(f"Pruning.n_m: expected 0 <= n <= m and m > 0, got n = {n}, m = {m}")
        self.n, self.m = n, m

    def check(self, t: Tensor) -> None:
        """Raises ValueError unless the last dimension is a number of whole groups."""
        if t.dim() == 0 or t.shape[-1] % self.m:
            raise ValueError(f"Pruning.n_m: expected X of shape (..., k * {self.m}), got {tuple(t.shape)}")

    def compute_mask(self, t: Tensor, default_mask: Tensor) -> Tensor:
        """Returns 1 where an entry stays, 0 elsewhere, in the dtype of ``default_mask``."""
        self.check(t)
        size = t.abs().masked_fill(default_mask == 0, -1)
        groups = size.reshape(*t.shape[:-1], t.shape[-1] // self.m, self.m)
        kept = torch.zeros_like(groups, dtype=torch.bool).scatter_(
            -1, groups.topk(self.n, dim=-1).indices, True
        )
        return default_mask * kept.reshape(t.shape)


def number(value: Any) -> Any:
    """Returns a number of numpy as Python's; a small type overflows when torch compares it with sizes."""
    if is_flag(value) or isinstance(value, numbers.Integral):
        return int(value)
    return float(value) if isinstance(value, numbers.Real) else value


def torch_rule(kind: str, *arguments: Any) -> Rule:
    """Returns the method of torch.nn.utils.prune of this name, or raises torch's error for its arguments."""
    made: Rule = getattr(_torch, kind)(*map(number, arguments))
    return made


def with_amount(rule: Any, amount: float) -> Rule | None:
    """Returns the rule with another amount, or raises torch's own error for the amount. None stays None."""
    if rule is None:
        return None
    if not hasattr(rule, "amount"):
        kind = type(rule).__name__
        raise ValueError(
            f"Pruning.update_: expected a mask chosen by a rule with an amount, got one chosen by {kind}"
        )
    rule = copy.copy(rule)
    rule.amount = number(amount)
    _torch._validate_pruning_amount_init(rule.amount)
    return rule  # type: ignore[no-any-return]


def by_magnitude(chosen: Any) -> Rule:
    """Returns the rule, or, if it chooses at random, the one that drops as many units of least size."""
    if isinstance(chosen, prune.RandomUnstructured):
        chosen = torch_rule("L1Unstructured", chosen.amount)
    elif isinstance(chosen, prune.RandomStructured):
        chosen = torch_rule("LnStructured", chosen.amount, 2, chosen.dim)
    return chosen  # type: ignore[no-any-return]


def _check_sizes(rule: Any, t: Tensor) -> None:
    """Raises the error of ``compute_mask`` for sizes, if there is no data for it to read."""
    if isinstance(rule, KeepNOfM):
        return rule.check(t)
    size = t.shape[rule.dim] if rule.PRUNING_TYPE == "structured" else t.numel()
    _torch._validate_pruning_amount(_torch._compute_nparams_toprune(rule.amount, size), size)


@torch.no_grad()
def select(rule: Any, X: Tensor, previous: Tensor | None = None) -> Tensor:
    """Returns the bool mask of the entries of X that the rule keeps, among those that ``previous`` keeps.

    It is the mask of ``torch.nn.utils.prune.PruningContainer``. Complex entries are compared by their
    absolute value, and entries of other dtypes (scores) as float64. If X has no data (on the meta device),
    the sizes are checked, and the mask has no data either.

    Example:
        >>> from fastparam._prune_rules import select, torch_rule
        >>> rule, X = torch_rule("L1Unstructured", 1), torch.tensor([3., 0., 2.])
        >>> select(rule, X, torch.tensor([True, False, True]))
        tensor([ True, False, False])
    """
    t = (X.abs() if X.is_complex() else X if X.dtype in _REAL else X.double()).contiguous()
    if rule.PRUNING_TYPE == "structured":
        _torch._validate_structured_pruning(t)
        _torch._validate_pruning_dim(t, rule.dim)
    if has_no_data(t):
        _check_sizes(rule, t)
        return torch.empty_like(t, dtype=torch.bool)
    container = _torch.PruningContainer()
    container._tensor_name = rule._tensor_name = "X"  # a container asks that they agree
    container.add_pruning_method(rule)
    mask = container.compute_mask(t, torch.ones_like(t) if previous is None else previous.to(t.dtype))
    return as_bool(type(rule).__name__, "its mask", mask)


def drawn(op: str, X: Tensor, p_drop: float, generator: torch.Generator | None = None) -> Tensor:
    """Returns a mask in which each entry is True with probability 1 - p_drop."""
    check_weight(op, "X", X)
    if is_flag(p_drop):
        raise TypeError(f"{op}: expected p_drop to be a number, got {type(p_drop).__name__}")
    p_drop = check_number(op, "p_drop", p_drop)
    if not isinstance(generator, (torch.Generator, type(None))):
        raise TypeError(f"{op}: expected generator to be a torch.Generator, got {type(generator).__name__}")
    if not 0 <= p_drop <= 1:
        raise ValueError(f"{op}: expected p_drop between 0 and 1, got {p_drop}")
    if has_no_data(X):
        return torch.empty_like(X, dtype=torch.bool)
    device = X.device if generator is None else generator.device
    return (torch.rand(X.shape, generator=generator, device=device, dtype=torch.float32) >= p_drop).to(
        X.device
    )


# ---- arguments -------------------------------------------------------------------------------------------


def check_weight(op: str, argument: str, X: Any) -> None:
    """Raises unless X is a strided tensor of a dtype that can be pruned."""
    check_tensor(op, argument, X)
    if not X.is_complex() and X.dtype not in _REAL:
        dtype = str(X.dtype).removeprefix("torch.")
        raise ValueError(
            f"{op}: expected {argument} of dtype float32, float64, bfloat16, float16 or complex, got {dtype}"
        )


def on_device(op: str, argument: str, given: Tensor, device: torch.device) -> Tensor:
    """Returns the tensor on this device. Raises ValueError if it has no data to copy there."""
    if given.is_meta and device.type != "meta":
        raise ValueError(f"{op}: expected {argument} on {device}, got meta")
    return given.to(device)


def as_bool(op: str, argument: str, mask: Any) -> Tensor:
    """Returns a contiguous bool mask with memory of its own, which autograd can keep.

    Raises ValueError if the mask holds values other than zeros and ones, and TypeError if it is not a tensor.
    """
    check_tensor(op, argument, mask)
    try:
        with torch.inference_mode(False):
            kept: Tensor | None = None if mask.is_quantized else (mask != 0).contiguous()
    except (NotImplementedError, ValueError):  # dtypes of bare bits; ValueError on the meta device
        kept = None
    if kept is None:
        raise ValueError(f"{op}: expected {argument} to hold bools or numbers, got {mask.dtype}")
    if mask.dtype != torch.bool and not has_no_data(mask):
        soft = mask[kept & (mask != 1)]
        if soft.numel():
            raise ValueError(f"{op}: expected {argument} to hold zeros and ones, got {soft[0].item():.4g}")
    return kept


def check_semi_structured(X: Tensor, mask: Tensor) -> None:
    """Raises ValueError, stating the rule, unless X under the mask fits torch's compressed form."""
    base = torch.sparse.SparseSemiStructuredTensor
    cutlass, cusparselt = (
        torch.sparse.SparseSemiStructuredTensorCUTLASS,
        torch.sparse.SparseSemiStructuredTensorCUSPARSELT,
    )
    constraints = (cutlass if base._FORCE_CUTLASS else cusparselt)._DTYPE_SHAPE_CONSTRAINTS
    sizes, op = constraints.get(X.dtype), "Pruning.to_sparse_semi_structured"
    dtype = str(X.dtype).removeprefix("torch.")
    if sizes is None or not X.is_floating_point():
        known = [str(d).removeprefix("torch.") for d in constraints if d.is_floating_point and d.itemsize > 1]
        raise ValueError(f"{op}: expected X of dtype {' or '.join(known)}, got {dtype}")
    rows, columns = sizes.sparse_min_rows, sizes.sparse_min_cols
    if X.dim() != 2 or not X.numel() or X.shape[0] % rows or X.shape[1] % columns:
        raise ValueError(
            f"{op}: expected X of shape (k * {rows}, l * {columns}) for {dtype}, got {tuple(X.shape)}"
        )
    n, m = (1, 2) if X.dtype == torch.float32 else (2, 4)
    most = 0 if mask.is_meta else int(mask.expand(X.shape).reshape(X.shape[0], -1, m).sum(-1).max())
    if most > n:
        raise ValueError(
            f"{op}: expected a mask that keeps at most {n} of every {m} entries of a row, got {most} of {m}"
        )
    if not X.is_cuda:
        raise ValueError(f"{op}: expected X on cuda, got {X.device}")
