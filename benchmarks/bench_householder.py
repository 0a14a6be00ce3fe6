"""Benchmarks of products of Householder reflections: torch's, whose derivative goes by columns, and matrix
products.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from bench_cayley import orthogonality
from measure import Case, Map, Op, grid
from torch import Tensor

from fastparam.functional import householder


class Products(torch.autograd.Function):
    """The floor: k reflections of an n x k matrix are half a product V^T V and one V W; backward, four of
    that size.
    """

    @staticmethod
    def forward(ctx: Any, X: Tensor) -> Tensor:
        ctx.save_for_backward(X)
        return X @ X[..., : X.shape[-1], :]

    @staticmethod
    def backward(ctx: Any, G: Tensor) -> Tensor:
        (X,) = ctx.saved_tensors
        return X @ (X.mT @ X) + X @ (X.mT @ G)


def contenders(X: Tensor) -> dict[str, Map]:
    def eager(X: Tensor) -> Tensor:
        V = X.tril(-1)
        return torch.linalg.householder_product(V, 2 / (1 + V.square().sum(-2)))

    return {"eager": eager, "fastparam": householder, "floor": Products.apply}


HOUSEHOLDER = Op("householder", contenders, ("eager", "fastparam", "floor"), defect=orthogonality)
SHAPES = ((1024, 8, 8), (128, 32, 32), (64, 64), (256, 256), (1024, 64))
CASES: list[Case] = [*grid(HOUSEHOLDER, SHAPES, quick=((128, 32, 32), (256, 256)))]


@pytest.mark.parametrize(
    ("case", "contender"),
    [pytest.param(case, name, id=f"{case}-{name}") for case in CASES for name in case.op.contenders],
)
def test_householder(case: Case, contender: str, compete: Callable[[Case, str], None]) -> None:
    compete(case, contender)
