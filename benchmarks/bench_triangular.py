"""Benchmarks of symmetric and skew-symmetric matrices against the eager expressions, torch.compile and a copy
of the matrix.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from measure import GPUS, Case, Map, Op, Work, grid, weight_of
from torch import Tensor, nn

import fastparam
from fastparam import _reference


def rivals(name: str) -> Callable[[Tensor], dict[str, Map]]:
    contenders = {
        "eager": getattr(_reference, name),
        "fastparam": getattr(fastparam.functional, name),
        "floor": torch.clone,
    }
    return lambda X: dict(contenders)


class Eager(nn.Module):
    """The module of the parametrizations tutorial."""

    def forward(self, X: Tensor) -> Tensor:
        return _reference.symmetric(X)


def layers(X: Tensor) -> dict[str, Map]:
    """The floor is a parametrization that does nothing: the time of torch itself."""

    return {
        "eager": weight_of(X, Eager()),
        "fastparam": weight_of(X, fastparam.Symmetric()),
        "floor": weight_of(X, nn.Identity()),
    }


CALLS = ((4, 4), (8, 8), (16, 16))
SQUARES = ((64, 64), (256, 256), (512, 512), (1000, 1000), (1024, 1024), (2048, 2048))
BATCHES = ((64, 64, 64), (96, 100, 100), (8, 512, 512), (512, 512, 3, 3), (100_000, 3, 3))
LARGE = ((4096, 4096), (8192, 8192), (4096, 64, 64), (256, 512, 512), (1_000_000, 8, 8))
QUICK = ((8, 8), (256, 256), (1024, 1024), (512, 512, 3, 3))
OTHER_DTYPES = (torch.float64, torch.bfloat16, torch.float16)

LAYER = Op("layer.weight", layers, contenders=("eager", "fastparam", "floor"))
CASES: list[Case] = []
for _name in ("symmetric", "skew"):
    _op = Op(_name, rivals(_name), work=Work(words=(1.5, 3.5)))  # half of X is read
    CASES += grid(_op, CALLS + SQUARES + BATCHES, quick=QUICK)
    CASES += grid(_op, LARGE, devices=GPUS)
    CASES += grid(_op, ((16, 16), (64, 64, 64), (1024, 1024)), dtypes=OTHER_DTYPES)
    CASES += grid(_op, ((4096, 4096),), dtypes=OTHER_DTYPES, devices=GPUS)
CASES += grid(LAYER, ((8, 8),), quick=((8, 8),), passes=(False,))


@pytest.mark.parametrize(
    ("case", "contender"),
    [pytest.param(case, name, id=f"{case}-{name}") for case in CASES for name in case.op.contenders],
)
def test_triangular(case: Case, contender: str, compete: Callable[[Case, str], None]) -> None:
    compete(case, contender)
