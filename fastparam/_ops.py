"""The list of ops, from which every op gets the entry of its function, its batching rule and its count of
operations.

The self-check (``python -m fastparam``), :mod:`fastparam.functional` and the tests read the same list.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.compiler import is_compiling
from torch.overrides import has_torch_function_unary, has_torch_function_variadic
from torch.utils.flop_counter import register_flop_formula

from . import _C
from ._arguments import check_flag, check_number, check_optional_tensor, check_sizes, check_tensor
from ._sharding import is_dtensor, register_rules

F = TypeVar("F", bound=Callable[..., Any])


@dataclass(frozen=True)
class Op:
    """An op of the dispatcher. Its arguments and their defaults are those of its schema in C++."""

    name: str
    public: bool = False  # has a function of that name in fastparam.functional
    # the leading dimensions of every tensor are batch dimensions, and so vmap needs no rule of its own
    leading_batch: bool = True
    # no entry is rounded more often than in the reference: their bits are compared
    exact: bool = False
    # multiplications and additions for a matrix of n x k, n >= k, as torch counts those of a product
    flops: Callable[[int, int], int] | None = None

    @property
    def overload(self) -> torch._ops.OpOverload:
        overload: torch._ops.OpOverload = getattr(torch.ops.fastparam, self.name).default
        return overload

    @property
    def tensors(self) -> tuple[str, ...]:
        """The names of the tensor arguments that the op cannot do without."""
        return tuple(a.name for a in self.overload._schema.arguments if isinstance(a.type, torch.TensorType))


def _forward(n: int, k: int) -> int:
    """B^H B, the inverse of a k x k matrix W, and B W, with B of (n - k) x k."""
    return 4 * (n - k) * k * k + 2 * k**3


def _backward(n: int, k: int) -> int:
    """Twice as many products, of the same shapes."""
    return 2 * _forward(n, k)


def _exp(n: int, k: int) -> int:
    """Four products, and no squaring: how many there are depends on the norm."""
    return 8 * n**3


def _frechet(n: int, k: int) -> int:
    """Two products beside each."""
    return 3 * _exp(n, k)


def _reflections(n: int, k: int) -> int:
    """k reflections, each of what is left of k columns."""
    return 2 * n * k * k


def _reflections_backward(n: int, k: int) -> int:
    """V^T V, V^T G, V M and G W^T, of n x k matrices."""
    return 8 * n * k * k


OPS = (
    Op("symmetric", public=True, exact=True),
    Op("symmetric_adjoint", exact=True),
    Op("skew", public=True, exact=True),
    Op("skew_adjoint", exact=True),
    Op("masked_prune", public=True, leading_batch=False, exact=True),
    Op("pack_mask", public=True, leading_batch=False, exact=True),
    Op("unpack_mask", public=True, leading_batch=False, exact=True),
    Op("cayley", public=True, flops=_forward),
    Op("cayley_backward", flops=_backward),
    Op("skew_cayley", public=True, flops=_forward),
    Op("skew_cayley_backward", flops=_backward),
    Op("skew_cayley_packed", public=True, flops=_forward),
    Op("skew_cayley_packed_backward", flops=_backward),
    Op("stiefel_cayley", public=True, flops=_forward),
    Op("stiefel_cayley_backward", flops=_backward),
    Op("matrix_exp", public=True, flops=_exp),
    Op("exp_frechet", public=True, flops=_frechet),
    Op("skew_exp", public=True, flops=_exp),
    Op("skew_exp_backward", flops=_frechet),
    Op("symmetric_exp", public=True, flops=_exp),
    Op("symmetric_exp_backward", flops=_frechet),
    Op("householder", public=True, flops=_reflections),
    Op("householder_backward", flops=_reflections_backward),
    Op("trivialized_cayley", flops=lambda n, k: _forward(n, k) + 2 * n * n * k),
    Op("trivialized_cayley_backward", flops=_backward),
)


# ---- the entry of a public function ----------------------------------------------------------------------

_CHECKS = {
    "Tensor": check_tensor,
    "Tensor | None": check_optional_tensor,
    "float": check_number,
    "bool": check_flag,
    "Sequence[int]": check_sizes,
}

# Eager calls go straight to C++, which saves Python's overload resolution. Whatever looks at calls (a
# compiler, a subclass, a mode) gets the op of the dispatcher, and so do arguments that pybind11 refuses, in
# many lines: they are checked, one sentence each, and numbers of numpy become Python's. Tensors, which
# pybind11 takes for numbers, are refused.
_ENTRY = """
def make(check, direct, overload, traced, is_compiling, has_torch_function):
    def {name}({signature}):
        if is_compiling() or has_torch_function({tensors}){flags}{numbers}:
            return traced(*check({arguments}))
        try:
            return direct({arguments})
        except (TypeError, NotImplementedError):
            return overload(*check({arguments}))
    return {name}
"""


def entry(function: F) -> F:
    """Returns the function that calls the op of this name. The decorated function gives its signature and its
    docstring.
    """
    name = function.__name__
    parameters = inspect.signature(function).parameters.values()
    tensors = [p.name for p in parameters if "Tensor" in p.annotation]
    checks = [(p.name, _CHECKS[p.annotation]) for p in parameters]

    def check(*values: Any) -> list[Any]:
        if any(map(is_dtensor, values)):
            register_rules()
        return [
            checked(name, argument, value) for (argument, checked), value in zip(checks, values, strict=True)
        ]

    source = _ENTRY.format(
        name=name,
        signature=", ".join(
            p.name if p.default is p.empty else f"{p.name}={p.default!r}" for p in parameters
        ),
        arguments=", ".join(p.name for p in parameters),
        tensors=", ".join(tensors),
        flags="".join(
            f" or ({p.name} is not False and {p.name} is not True)"
            for p in parameters
            if p.annotation == "bool"
        ),
        numbers="".join(
            f" or type({p.name}) not in (float, int)" for p in parameters if p.annotation == "float"
        ),
    )
    overload = getattr(torch.ops.fastparam, name).default
    exact = any(op.exact for op in OPS if op.name == name)

    def traced(*values: Any) -> Any:
        # ONNX knows torch's ops alone, and none for the inverse of a matrix, which only inexact ops need.
        if exact and torch.onnx.is_in_onnx_export():
            return decompositions()[overload](*values)
        return overload(*values)

    scope: dict[str, Any] = {}
    exec(compile(source, f"<entry of {name}>", "exec"), scope)
    has_torch_function = has_torch_function_unary if len(tensors) == 1 else has_torch_function_variadic
    made: F = scope["make"](check, getattr(_C, name), overload, traced, is_compiling, has_torch_function)
    for attribute in ("__module__", "__qualname__", "__doc__", "__annotations__", "__wrapped__"):
        setattr(made, attribute, getattr(function, attribute, function))
    return made


# ---- batching rules --------------------------------------------------------------------------------------


def _one(arg: Any, dim: int | None) -> Any:
    """Returns an argument as one example of the batch sees it, without data."""
    if not isinstance(arg, Tensor):
        return arg
    return arg.new_empty([size for d, size in enumerate(arg.shape) if d != dim], device="meta")


_VECTORS = ("v", "signs")  # arguments that are no matrices


def _register_vmap(op: torch._ops.OpOverload) -> None:
    names = [argument.name for argument in op._schema.arguments]

    def rule(info: Any, in_dims: tuple[int | None, ...], *args: Any) -> tuple[Tensor, int]:
        def front(arg: Any, dim: int | None) -> Any:
            if not isinstance(arg, Tensor):
                return arg
            return arg.expand(info.batch_size, *arg.shape) if dim is None else arg.movedim(dim, 0)

        if any(
            dim is not None and arg.dim() <= (1 if name in _VECTORS else 2)
            for name, arg, dim in zip(names, args, in_dims, strict=False)
        ):
            # An example is a vector, though the batch of them is a matrix: the op says so.
            op(*map(_one, args, in_dims))
        return op(*map(front, args, in_dims)), 0

    torch.library.register_vmap(op, rule)


def decompositions() -> dict[torch._ops.OpOverload, Callable[..., Any]]:
    r"""Returns every op of this package with its expression in PyTorch's own ops.

    .. math:: \text{fastparam::op}(X) \mapsto \text{an expression of ATen ops of the same value}

    The table is meant for ``run_decompositions`` of an exported program. The program then runs, or is lowered
    further, without this package. The values are those of the ops up to rounding. The expressions are slower,
    and those of the exponentials are NaN from a norm of :math:`2^{31}` on.

    Example:
        >>> layer = fastparam.parametrizations.symmetric(torch.nn.Linear(4, 4))
        >>> program = torch.export.export(layer, (torch.ones(2, 4),))
        >>> table = torch.export.default_decompositions() | fastparam.decompositions()
        >>> any("fastparam" in str(node.target) for node in program.run_decompositions(table).graph.nodes)
        False
    """
    from . import _reference

    return {op.overload: getattr(_reference, op.name) for op in OPS}


# ---- tools that look at graphs ---------------------------------------------------------------------------


def _register_flops(op: Op, flops: Callable[[int, int], int]) -> None:
    """For ``torch.utils.flop_counter.FlopCounterMode``."""
    of_gradient = op.name.endswith("_backward")  # its first argument has the shape of the map's result

    @register_flop_formula(op.overload.overloadpacket)
    def count(first: Any, *others: Any, out_shape: Any, **options: Any) -> int:
        *batch, rows, columns = first if of_gradient else out_shape
        return int(math.prod(batch)) * flops(max(rows, columns), min(rows, columns))


for _op in OPS:
    if _op.leading_batch:
        _register_vmap(_op.overload)
    if _op.flops:
        _register_flops(_op, _op.flops)

# Nodes of C++ have one type in Python, which torch knows for its own ops alone.
with torch.inference_mode(False), torch.enable_grad():
    _node = torch.ops.fastparam.symmetric(torch.zeros(1, 1, device="cpu", requires_grad=True)).grad_fn
    torch.autograd.graph.Node.register(type(_node))
