"""Benchmarks of matrix exponentials: torch's, exponentials by eigenvectors where these are real, geotorch's
orthogonal matrices, and matrix products.

Inputs have a spectral norm of about 1, unless the name of the op gives another one. geotorch is part of the
extra "rivals"; without it it is reported as absent.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from bench_cayley import optional, orthogonality
from measure import Case, Draw, Map, Op, Work, grid
from torch import Tensor

from fastparam import _reference
from fastparam.functional import exp_frechet, matrix_exp, skew_exp, symmetric_exp


class Products(torch.autograd.Function):
    """The floor: the four products of the polynomial. The derivative computes these again, and two more for
    each. There is no squaring.
    """

    @staticmethod
    def forward(ctx: Any, X: Tensor) -> Tensor:
        ctx.save_for_backward(X)
        return _products(X, 4)

    @staticmethod
    def backward(ctx: Any, G: Tensor) -> Tensor:
        (X,) = ctx.saved_tensors
        return _products(X, 11) @ G


def _products(X: Tensor, count: int) -> Tensor:
    for _ in range(count):
        Y = X @ X
    return Y


def geotorch(X: Tensor) -> Map | None:
    """geotorch's module at its base point, the identity here, so that its values are comparable."""
    make = optional("geotorch", "SO")
    if make is None:
        return None
    module = make(X.shape, triv="expm").to(X.device, X.dtype)
    module.base.copy_(torch.eye(module.n))
    return module


def by_eigenvectors(X: Tensor) -> Tensor:
    values, V = torch.linalg.eigh(X.triu() + X.triu(1).mT)
    return V * values.exp()[..., None, :] @ V.mT


def skew_contenders(X: Tensor) -> dict[str, Map | None]:
    def eager(X: Tensor) -> Tensor:
        T = X.triu(1)
        return torch.matrix_exp(T - T.mT)

    return {"eager": eager, "geotorch": geotorch(X), "fastparam": skew_exp, "floor": Products.apply}


def symmetric_contenders(X: Tensor) -> dict[str, Map]:
    return {
        "eager": lambda X: torch.matrix_exp(X.triu() + X.triu(1).mT),
        "eigenvectors": by_eigenvectors,
        "fastparam": symmetric_exp,
        "floor": Products.apply,
    }


def whole_contenders(X: Tensor) -> dict[str, Map]:
    return {"eager": torch.matrix_exp, "fastparam": matrix_exp, "floor": Products.apply}


def derivative_contenders(X: Tensor) -> dict[str, Map]:
    """Along a given direction. The gradient is that of the direction."""
    A = X.detach() / 3
    return {
        "eager": lambda E: _block(A, E),
        "fastparam": lambda E: exp_frechet(A, E),
        "floor": lambda E: Products.apply(Products.apply(Products.apply(E))),
    }


def _block(A: Tensor, E: Tensor) -> Tensor:
    left, right = torch.cat([A, torch.zeros_like(A)], -2), torch.cat([E, A], -2)
    n = A.shape[-1]
    return torch.matrix_exp(torch.cat([left, right], -1))[..., :n, n:]


def gaussian(norm: float) -> Draw:
    """Skew and symmetric matrices of about that norm are computed from their triangles."""

    def draw(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
        X = torch.randn(shape, generator=generator, device=generator.device)
        return X * (norm / (2 * math.sqrt(shape[-1])))

    return draw


OURS = ("eager", "fastparam", "floor")
# Forward reads X, or a triangle of it, and makes three products at least; backward reads G too, and makes
# those products again with two more beside each.
WORK = Work(words=(1.5, 4), flops=(6, 24))
WORK_WHOLE = Work(words=(2, 5), flops=(6, 24))
WORK_DERIVATIVE = Work(words=(3, 6), flops=(18, 36))  # both passes are derivatives
MEANS = {"eager": _reference.skew_exp, "geotorch": partial(_reference.skew_exp, lower=True)}


def skew_op(name: str, norm: float) -> Op:
    contenders = ("eager", "geotorch", "fastparam", "floor")
    return Op(name, skew_contenders, contenders, gaussian(norm), MEANS, orthogonality, WORK)


SKEW = skew_op("skew_exp", 1.0)
SYMMETRIC = Op(
    "symmetric_exp",
    symmetric_contenders,
    ("eager", "eigenvectors", "fastparam", "floor"),
    gaussian(1.0),
    {"eager": _reference.symmetric_exp},
    work=WORK,
)
WHOLE = Op(
    "matrix_exp",
    whole_contenders,
    OURS,
    gaussian(1.0),
    {"eager": _reference.matrix_exp},
    work=WORK_WHOLE,
)
DERIVATIVE = Op("exp_frechet", derivative_contenders, OURS, gaussian(1.0), work=WORK_DERIVATIVE)

BATCHES = ((4096, 2, 2), (4096, 4, 4), (1024, 8, 8), (512, 12, 12), (256, 16, 16), (64, 32, 32), (16, 64, 64))
SINGLE = ((64, 64), (128, 128), (256, 256), (512, 512), (1024, 1024))

CASES: list[Case] = [*grid(SKEW, BATCHES + SINGLE, quick=((1024, 8, 8), (64, 32, 32), (256, 256)))]
for size in (0.1, 10.0, 100.0):
    CASES += grid(skew_op(f"skew_exp norm {size:g}", size), ((1024, 8, 8), (64, 32, 32), (256, 256)))
CASES += grid(SKEW, ((256, 16, 16), (256, 256)), dtypes=(torch.float64,))
CASES += grid(SYMMETRIC, ((1024, 8, 8), (64, 32, 32), (256, 256)), quick=((1024, 8, 8),))
CASES += grid(WHOLE, ((1024, 8, 8), (64, 32, 32), (256, 256), (1024, 1024)), quick=((64, 32, 32),))
CASES += grid(DERIVATIVE, ((64, 32, 32), (256, 256)))


@pytest.mark.parametrize(
    ("case", "contender"),
    [pytest.param(case, name, id=f"{case}-{name}") for case in CASES for name in case.op.contenders],
)
def test_exponential(case: Case, contender: str, compete: Callable[[Case, str], None]) -> None:
    compete(case, contender)
