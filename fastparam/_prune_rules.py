"""Which entries stay: the methods of torch.nn.utils.prune, as they are, applied to a tensor alone; and n of every m, with torch's form."""

from __future__ import annotations

import copy
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.nn.utils import prune

from ._arguments import check_integer, check_number, has_no_data, is_flag

methods: Any = prune  # untyped there
Rule: TypeAlias = prune.BasePruningMethod


class KeepNOfM(prune.BasePruningMethod):
    """Keeps the n entries of largest magnitude of every m neighbours in the last dimension; entries pruned before go first."""

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
        kept = torch.zeros_like(groups, dtype=torch.bool).scatter_(-1, groups.topk(self.n, dim=-1).indices, True)
        return default_mask * kept.reshape(t.shape)


def _check_on_meta(rule: Any, t: Tensor) -> None:
    """What ``compute_mask`` would say of sizes; it reads data, and a meta tensor has none."""
    if isinstance(rule, KeepNOfM):
        return rule.check(t)
    size = t.shape[rule.dim] if rule.PRUNING_TYPE == "structured" else t.numel()
    methods._validate_pruning_amount(methods._compute_nparams_toprune(rule.amount, size), size)


@torch.no_grad()
def select(rule: Any, X: Tensor, previous: Tensor | None = None) -> Tensor:
    """Returns the bool mask of the entries of X that the rule keeps, among those that ``previous`` keeps: PruningContainer's rule.

    Complex entries count by their absolute value. On the meta device sizes are checked and the mask holds nothing.

    Example:
        >>> from fastparam._prune_rules import methods, select
        >>> select(methods.L1Unstructured(1), torch.tensor([3., 0., 2.]), torch.tensor([True, False, True]))
        tensor([ True, False, False])
    """
    t = (X.abs() if X.is_complex() else X.detach()).contiguous()
    if rule.PRUNING_TYPE == "structured":
        methods._validate_structured_pruning(t)
        methods._validate_pruning_dim(t, rule.dim)
    if t.is_meta:
        _check_on_meta(rule, t)
        return torch.empty(t.shape, dtype=torch.bool, device="meta")
    if previous is None:
        return as_bool(_name(rule), rule.compute_mask(t, default_mask=torch.ones_like(t)))
    container = methods.PruningContainer()
    container._tensor_name = rule._tensor_name = "X"  # a container asks that they agree
    container.add_pruning_method(rule)
    return as_bool(_name(rule), container.compute_mask(t, default_mask=previous.to(t.dtype)))


def _name(rule: Any) -> str:
    return type(rule).__name__


def with_amount(rule: Any, amount: float) -> Rule | None:
    """The rule with another amount, or what torch says of one that is not possible; None stays None."""
    if rule is None:
        return None
    if not hasattr(rule, "amount"):
        raise ValueError(f"Pruning.update_: expected a mask chosen by a rule with an amount, got one chosen by {_name(rule)}")
    methods._validate_pruning_amount_init(amount)
    rule = copy.copy(rule)
    rule.amount = amount
    return rule  # type: ignore[no-any-return]


def by_magnitude(rule: Any) -> Rule:
    """The rule that drops as many of the same units, the smallest instead of any: what ``update_`` applies after a random choice."""
    if isinstance(rule, prune.RandomUnstructured):
        rule = methods.L1Unstructured(rule.amount)
    elif isinstance(rule, prune.RandomStructured):
        rule = methods.LnStructured(rule.amount, 2, rule.dim)
    return rule  # type: ignore[no-any-return]


def check_semi_structured(X: Tensor, mask: Tensor) -> None:
    """Raises ValueError, stating the rule, unless X under the mask fits :func:`torch.sparse.to_sparse_semi_structured`."""
    base = torch.sparse.SparseSemiStructuredTensor
    form = torch.sparse.SparseSemiStructuredTensorCUTLASS if base._FORCE_CUTLASS else torch.sparse.SparseSemiStructuredTensorCUSPARSELT
    sizes, op = form._DTYPE_SHAPE_CONSTRAINTS.get(X.dtype), "Pruning.to_sparse_semi_structured"
    dtype = str(X.dtype).removeprefix("torch.")
    if sizes is None or not X.is_floating_point():
        known = [str(d).removeprefix("torch.") for d in form._DTYPE_SHAPE_CONSTRAINTS if d.is_floating_point and d.itemsize > 1]
        raise ValueError(f"{op}: expected X of dtype {' or '.join(known)}, got {dtype}")
    rows, columns = sizes.sparse_min_rows, sizes.sparse_min_cols
    if X.dim() != 2 or not X.numel() or X.shape[0] % rows or X.shape[1] % columns:
        raise ValueError(f"{op}: expected X of shape (k * {rows}, l * {columns}) for {dtype}, got {tuple(X.shape)}")
    n, m = (1, 2) if X.dtype == torch.float32 else (2, 4)
    most = 0 if mask.is_meta else int(mask.expand(X.shape).reshape(X.shape[0], -1, m).sum(-1).max())
    if most > n:
        raise ValueError(f"{op}: expected a mask that keeps at most {n} of every {m} entries of a row, got one that keeps {most} of {m}")
    if not X.is_cuda:
        raise ValueError(f"{op}: expected X on cuda, got {X.device}")


def drawn(op: str, X: Tensor, p_drop: float, generator: torch.Generator | None = None) -> Tensor:
    """True with probability 1 - p_drop, for every entry of X."""
    if is_flag(p_drop):
        raise TypeError(f"{op}: expected p_drop to be a number, got {type(p_drop).__name__}")
    p_drop = check_number(op, "p_drop", p_drop)
    if not isinstance(generator, (torch.Generator, type(None))):
        raise TypeError(f"{op}: expected generator to be a torch.Generator, got {type(generator).__name__}")
    if not 0 <= p_drop <= 1:
        raise ValueError(f"{op}: expected p_drop between 0 and 1, got {p_drop}")
    if X.is_meta:
        return torch.empty(X.shape, dtype=torch.bool, device="meta")
    device = X.device if generator is None else generator.device
    return (torch.rand(X.shape, generator=generator, device=device, dtype=torch.float32) >= p_drop).to(X.device)


def as_bool(op: str, mask: Tensor) -> Tensor:
    """Returns a bool mask of its own memory, which autograd can keep even if it is made in inference mode.

    Raises ValueError where the mask holds anything but zeros and ones.
    """
    mask = mask.detach()
    if mask.dtype != torch.bool and not has_no_data(mask):
        soft = mask[(mask != 0) & (mask != 1)]
        if soft.numel():
            raise ValueError(f"{op}: expected a mask of zeros and ones, got {soft.flatten()[0].item():.4g}")
    with torch.inference_mode(False):
        return mask != 0
