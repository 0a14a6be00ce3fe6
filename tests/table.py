"""The table of ops, and of the modules built on them. A new op is one entry here, and every test of the suite
covers it.
"""

from __future__ import annotations

import contextlib
import math
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import digits
import pytest
import torch
from torch import Tensor, nn
from tutorial import EagerSkew, EagerSymmetric

import fastparam
from fastparam import _reference as reference

ops = torch.ops.fastparam
F64 = torch.float64
REAL = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
COMPLEX = (torch.complex64, torch.complex128)
SIZES = (0, 1, 2, 3, 8, 9, 15, 16, 17, 31, 32, 33, 64, 65, 100)
BATCHES = ((), (1,), (3,), (2, 3))
DEVICES = ["cpu"] + ["cuda"] * torch.cuda.is_available()


def orders(batch: tuple[int, ...], dtype: torch.dtype) -> tuple[int, ...]:
    """Orders of the matrices of a batch. Only two batches have large ones, because the shape of a batch
    matters only for small ones, and only real dtypes, because complex ones have no kernels.
    """
    large = batch in ((), (3,)) and not dtype.is_complex
    return SIZES if large else SIZES[: SIZES.index(33) + 1]


def as_tuple(X: Any) -> tuple[Any, ...]:
    return X if isinstance(X, tuple) else (X,)


@dataclass(frozen=True)
class Case:
    """An op that takes ``tensors`` square matrices (each with leading batch dimensions) and then ``others``.

    An op of other shapes is wrapped into one of square matrices, by ``before`` and ``after``.
    """

    name: str
    op: torch._ops.OpOverload
    reference: Callable[..., Tensor]
    tensors: int = 1  # the first arguments, all differentiable
    # the following arguments; a function makes one from (shape, device), with calls that can be traced
    others: tuple[Any, ...] = ()
    public: Callable[..., Tensor] | None = None
    saved: int = 0  # tensors kept for backward
    linear: bool = True  # no entry is rounded more often than in the reference: compared bit for bit
    square: bool = True  # needs square matrices, and says so with the sentence that all such ops share
    argument: str = "X"  # the tensor that this sentence names
    # from a square matrix to the argument of the op, a view if possible
    before: Callable[[Tensor], Tensor] = lambda X: X
    after: Callable[[Tensor, int], Tensor] = lambda Y, n: Y  # from its result to a square matrix of order n
    smallest: int = 0  # order of the matrices that it can return
    largest: int = SIZES[-1]  # order at which its gradient is tested
    composite: bool = False  # made of other ops, which appear in graphs and save tensors in its place
    static: bool = False  # symbolic sizes become constants of a graph

    @property
    def word(self) -> str:
        return self.op.name().split("::")[1]

    @property
    def entry(self) -> Callable[..., Tensor]:
        return self.public or self.op

    def arguments(self, X: Tensor) -> tuple[Any, ...]:
        """The arguments after the tensors, for tensors like X."""
        return tuple(a(X.shape, X.device) if callable(a) else a for a in self.others)

    def prepared(self, *tensors: Tensor, others: tuple[Any, ...] | None = None) -> tuple[Any, ...]:
        """All arguments of the op, from square matrices. The arguments after the tensors can be given."""
        return (*map(self.before, tensors), *(self.arguments(tensors[0]) if others is None else others))

    def bind(self, f: Callable[..., Tensor]) -> Callable[..., Tensor]:
        """f as a function of the tensors only."""
        return lambda *tensors: self.after(f(*self.prepared(*tensors)), tensors[0].shape[-1])

    def inputs(
        self, *batch: int, n: int = 3, dtype=F64, device: str = "cpu", grad: bool = True
    ) -> tuple[Tensor, ...]:
        return tuple(
            torch.randn(*batch, n, n, dtype=dtype, device=device, requires_grad=grad)
            for _ in range(self.tensors)
        )

    def check(self, actual: Any, expected: Any) -> None:
        """Compares values with those of the reference: bit for bit (except for the sign of zero and the
        payload of NaN) if the op is linear.
        """
        exact = {"rtol": 0, "atol": 0} if self.linear else {}
        torch.testing.assert_close(actual, expected, equal_nan=True, **exact)

    def exact(self, f: Callable[..., Any], X: tuple[Tensor, ...]) -> Any:
        """f(reference, *X) with more digits than X: in float64 for float32, and with digits.py for
        float64.
        """
        wide = [x.detach().to(torch.promote_types(x.dtype, F64)).requires_grad_(x.requires_grad) for x in X]
        with digits.more() if wide[0].dtype == X[0].dtype else contextlib.nullcontext():
            return f(self.bind(getattr(reference, self.reference.__name__)), *wide)

    def check_values(self, f: Callable[..., Any], X: tuple[Tensor, ...]) -> None:
        """Compares f(op, *X) with f(reference, *X). If the op is not linear, the error is at most twice that
        of the reference in the same dtype.
        """
        actual, eager = f(self.bind(self.op), *X), f(self.bind(self.reference), *X)
        if self.linear:
            return self.check(actual, eager)
        for y, e, truth in zip(*map(as_tuple, (actual, eager, self.exact(f, X))), strict=True):
            if y.numel():
                floor = 8 * y.shape[-1] ** 0.5 * torch.finfo(y.dtype).eps * max(1, truth.abs().max())
                assert (y - truth).abs().max() <= 2 * (e - truth).abs().max() + floor


class TallBackward(Case):
    """The gradient of the tall map, which takes the result of the map and its parameter."""

    def prepared(self, *tensors: Tensor, others: tuple[Any, ...] | None = None) -> tuple[Any, ...]:
        G, X, *others = super().prepared(*tensors, others=others)
        with torch.no_grad():
            Q = ops.stiefel_cayley.default(X, *others)
        return (G, X, Q, *others)


class TrivializedBackward(Case):
    """The gradient of a square map times a base, which takes M = base (Q + I) as well."""

    def prepared(self, *tensors: Tensor, others: tuple[Any, ...] | None = None) -> tuple[Any, ...]:
        G, Q, base, *others = super().prepared(*tensors, others=others)
        base = base.to(Q.dtype)
        with torch.no_grad():
            return (G, base, Q, base + base @ Q.contiguous(), *others)  # the same bits for all strides


def _triangular() -> list[Case]:
    cases = []
    for name, argument in (
        ("symmetric", "X"),
        ("symmetric_adjoint", "G"),
        ("skew", "X"),
        ("skew_adjoint", "G"),
    ):
        for lower in (False, True):
            cases.append(
                Case(
                    name=f"{name}-{'lower' if lower else 'upper'}",
                    op=getattr(ops, name).default,
                    reference=getattr(reference, name),
                    others=(lower,),
                    public=getattr(fastparam.functional, name, None),
                    argument=argument,
                )
            )
    return cases


def mask(shape: tuple[int, ...], device: torch.device | str = "cpu") -> Tensor:
    """A bool mask, the same at every call, that drops about a third of the entries. It uses no random
    numbers, which vmap would refuse.
    """
    return (torch.arange(math.prod(shape), device=device) * 7919 % 257 % 3 > 0).view(shape)


def signs(shape: tuple[int, ...], device: torch.device | str = "cpu") -> Tensor:
    """Signs for the columns of square matrices of this shape, the same at every call: +-1, and a 0, which
    counts as positive.
    """
    count = torch.arange(math.prod(shape[:-1]), device=device)
    return (count * 7919 % 257 % 3 - 1.0).view(shape[:-1])


def half(n: int) -> int:
    return (n + 1) // 2


def reflection(shape: tuple[int, ...], device: torch.device | str = "cpu") -> Tensor:
    """Orthogonal matrices of this shape, the same at every call."""
    n = shape[-1]
    v = torch.arange(1, n + 1, device=device, dtype=F64)[:, None]
    return (
        torch.eye(n, device=device, dtype=F64) - 2 * v @ v.mT / max(1, (n * (n + 1) * (2 * n + 1)) / 6)
    ).expand(shape)


def third(n: int) -> int:
    return (n + 2) // 3


def third_signs(shape: tuple[int, ...], device: torch.device | str = "cpu") -> Tensor:
    return signs((*shape[:-2], third(shape[-1]), 1), device)


MASKS = {
    "bool": mask,
    "row": lambda shape, device: mask((*(1 for _ in shape[:-1]), shape[-1]), device),
    "column": lambda shape, device: mask((*shape[:-1], 1), device),
    "packed": lambda shape, device: reference.pack_mask(mask(shape, device)),
}


def _prune() -> list[Case]:
    return [
        Case(
            name=f"masked_prune-{kind}",
            op=ops.masked_prune.default,
            reference=reference.masked_prune,
            others=(made,),
            public=fastparam.functional.masked_prune,
            saved=1,
            square=False,
        )
        for kind, made in MASKS.items()
    ]


def _packed(X: Tensor) -> Tensor:
    n = X.shape[-1]
    return X.flatten(-2)[..., : n * (n - 1) // 2]


def _cayley() -> list[Case]:
    functional = fastparam.functional

    def case(name: str, word: str, *others: Any, **more: Any) -> Case:
        made = {"saved": 1, **more}
        return Case(
            name=name,
            op=getattr(ops, word).default,
            reference=getattr(reference, word),
            others=others,
            public=getattr(functional, word, None),
            linear=False,
            **made,
        )

    def pair(name: str, word: str, *others: Any, **more: Any) -> list[Case]:
        saved = more.get("saved", 1) + 1
        backward = case(f"{name}_backward", f"{word}_backward", *others, tensors=2, saved=saved, argument="Q")
        return [case(name, word, *others, **more), backward]

    packed = {"square": False, "static": True, "smallest": 1}
    return [
        # alpha is small, so that the largest matrices of the tests are well conditioned
        case("cayley-whole", "cayley", 0.03, None, argument="A"),
        *pair(
            "cayley-skew",
            "cayley",
            0.5,
            signs,
            saved=2,
            argument="A",
            before=lambda X: X - X.mT,
            square=False,
        ),
        *pair("skew_cayley-upper", "skew_cayley", 1.0, False, None),
        *pair("skew_cayley-lower", "skew_cayley", -0.5, True, signs, saved=2),
        case(
            "skew_cayley_packed",
            "skew_cayley_packed",
            1.0,
            before=_packed,
            after=lambda Q, n: Q if n else Q[..., :0, :0],
            argument="v",
            **packed,
        ),
        case(
            "skew_cayley_packed_backward",
            "skew_cayley_packed_backward",
            0.5,
            tensors=2,
            saved=2,
            after=lambda v, n: nn.functional.pad(v, (0, n * n - v.shape[-1])).unflatten(-1, (n, n)),
            **packed,
        ),
        case(
            "stiefel_cayley-tall",
            "stiefel_cayley",
            -0.5,
            True,
            None,
            saved=2,
            square=False,
            before=lambda X: X[..., : half(X.shape[-1])],
            after=lambda Q, n: nn.functional.pad(Q, (0, n - Q.shape[-1])),
        ),
        case(
            "stiefel_cayley-wide",
            "stiefel_cayley",
            1.0,
            False,
            third_signs,
            saved=3,
            square=False,
            before=lambda X: X[..., : third(X.shape[-1]), :],
            after=lambda Q, n: nn.functional.pad(Q, (0, 0, 0, n - Q.shape[-2])),
        ),
        TallBackward(
            name="stiefel_cayley_backward",
            op=ops.stiefel_cayley_backward.default,
            reference=reference.stiefel_cayley_backward,
            tensors=2,
            others=(-0.5, False, third_signs),
            composite=True,
            linear=False,
            square=False,
            argument="X",
            before=lambda X: X[..., : third(X.shape[-1])],
            after=lambda Q, n: nn.functional.pad(Q, (0, n - Q.shape[-1])),
        ),
        case(
            "trivialized_cayley-square",
            "trivialized_cayley",
            reflection,
            -0.5,
            True,
            composite=True,
            square=False,
        ),
        TrivializedBackward(
            name="trivialized_cayley_backward",
            op=ops.trivialized_cayley_backward.default,
            reference=reference.trivialized_cayley_backward,
            tensors=2,
            others=(reflection, -0.5, True),
            composite=True,
            linear=False,
            square=False,
            argument="X",
        ),
        case(
            "trivialized_cayley",
            "trivialized_cayley",
            reflection,
            -0.5,
            True,
            composite=True,
            square=False,
            before=lambda X: X[..., : half(X.shape[-1])],
            after=lambda Q, n: nn.functional.pad(Q, (0, n - Q.shape[-1])),
        ),
    ]


def quarter(X: Tensor) -> Tensor:
    """Matrices whose exponentials are representable in a half type."""
    return X / 4 if X.dtype in (*REAL, *COMPLEX) else X


def _exponential() -> list[Case]:
    def case(name: str, word: str, *others: Any, **more: Any) -> Case:
        return Case(
            name=name,
            op=getattr(ops, word).default,
            reference=getattr(reference, word),
            others=others,
            public=getattr(fastparam.functional, word, None),
            linear=False,
            before=quarter,
            **{"saved": 1, **more},
        )

    # their derivatives are exponentials of twice the order
    second: dict[str, Any] = {"tensors": 2, "saved": 2, "largest": 33}
    pairs = [
        (
            case(f"{word}-{'lower' if lower else 'upper'}", word, lower),
            case(
                f"{word}-{'lower' if lower else 'upper'}_backward",
                f"{word}_backward",
                lower,
                **second,
            ),
        )
        for word in ("skew_exp", "symmetric_exp")
        for lower in (False, True)
    ]
    return [
        case("matrix_exp", "matrix_exp", argument="A"),
        case("exp_frechet", "exp_frechet", argument="A", **second),
        *(made for pair in pairs for made in pair),
    ]


def _householder() -> list[Case]:
    def case(name: str, word: str, **more: Any) -> Case:
        return Case(
            name=name,
            op=getattr(ops, word).default,
            reference=getattr(reference, word),
            public=getattr(fastparam.functional, word, None),
            linear=False,
            square=False,
            before=lambda X: X[..., : half(X.shape[-1])],
            after=lambda Q, n: nn.functional.pad(Q, (0, n - Q.shape[-1])),
            **more,
        )

    return [
        case("householder", "householder", saved=1),
        case("householder_backward", "householder_backward", tensors=2, composite=True),
    ]


CASES = [*_triangular(), *_prune(), *_cayley(), *_exponential(), *_householder()]
NOT_MAPS = {"fastparam::pack_mask", "fastparam::unpack_mask"}  # no derivatives: test_prune_packing.py

every = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
every_single = pytest.mark.parametrize(
    "case", [case for case in CASES if not case.composite], ids=lambda case: case.name
)
every_square = pytest.mark.parametrize(
    "case", [case for case in CASES if case.square], ids=lambda case: case.name
)
# A compiler sees schemas and formulas, but not kernels. These cases differ from the previous one in the
# value of a flag or the shape of a mask, and have the same schema and formula.
AS_BEFORE = (
    "symmetric-lower",
    "symmetric_adjoint-lower",
    "skew-lower",
    "skew_adjoint-lower",
    "skew_exp-lower",
    "skew_exp-lower_backward",
    "symmetric_exp-lower",
    "symmetric_exp-lower_backward",
    "masked_prune-row",
    "masked_prune-column",
)
FORMULAS = [case for case in CASES if case.name not in AS_BEFORE]
every_formula = pytest.mark.parametrize("case", FORMULAS, ids=lambda case: case.name)
# The tests of a compiler mode, as opposed to those of an op, use one op of each kind: linear, with two
# tensors, with a mask, with an optional tensor, with sizes that are constants, and with guards on its shape.
ONE_OF_EACH = (
    "skew-upper",
    "skew_cayley-upper_backward",
    "masked_prune-packed",
    "skew_cayley-lower",
    "skew_cayley_packed",
    "stiefel_cayley-tall",
)
one_of_each = pytest.mark.parametrize(
    "case", [case for case in CASES if case.name in ONE_OF_EACH], ids=lambda case: case.name
)
one_public_of_each = pytest.mark.parametrize(
    "case",
    [case for case in CASES if case.name in ONE_OF_EACH and case.public],
    ids=lambda case: case.name,
)
every_public = pytest.mark.parametrize(
    "case", [case for case in CASES if case.public], ids=lambda case: case.name
)


# ---- modules: ours, and those of the tutorial that they replace ------------------------------------------


@dataclass(frozen=True)
class ModuleCase:
    """A module, the eager module with the same checkpoints, and the op that it applies."""

    name: str
    ours: Callable[[], nn.Module]
    eager: Callable[[], nn.Module]
    word: str
    sign: float  # the transposed weight is sign * weight


MODULES = [
    ModuleCase("Symmetric", fastparam.Symmetric, EagerSymmetric, "symmetric", 1.0),
    ModuleCase(
        "Symmetric-lower",
        lambda: fastparam.Symmetric(lower=True),
        lambda: EagerSymmetric(lower=True),
        "symmetric",
        1.0,
    ),
    ModuleCase("Skew", fastparam.Skew, EagerSkew, "skew", -1.0),
    ModuleCase("Skew-lower", lambda: fastparam.Skew(lower=True), lambda: EagerSkew(lower=True), "skew", -1.0),
]

every_module = pytest.mark.parametrize("kind", MODULES, ids=lambda kind: kind.name)


# ---- helpers ---------------------------------------------------------------------------------------------


def bits(X: Tensor) -> Tensor:
    """The tensor as integers, so that signed zeros and NaN payloads count."""
    X = torch.view_as_real(X.resolve_conj()) if X.is_complex() else X.resolve_neg()
    return X.contiguous().view({2: torch.int16, 4: torch.int32, 8: torch.int64}[X.element_size()])


def python(source: str, timeout: float = 120, **environment: str) -> subprocess.CompletedProcess[str]:
    """Runs the source in a new interpreter that finds fastparam and this folder. Its output is in stdout and
    stderr.
    """
    paths = [
        str(Path(fastparam.__file__).parents[1]),
        str(Path(__file__).parent),
        os.environ.get("PYTHONPATH", ""),
    ]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths)), **environment}
    return subprocess.run(
        [sys.executable, "-c", source], env=env, capture_output=True, text=True, timeout=timeout
    )
