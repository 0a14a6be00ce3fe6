"""Benchmarks of pruned weights: bit-packed and bool masks against float masks, ``where``, ``masked_fill``,
torch's own pruning and a copy.
"""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace

import pytest
import torch
from measure import GPUS, Case, Map, Op, Work, grid, weight_of
from torch import Tensor, nn
from torch.nn.utils.prune import CustomFromMask

import fastparam
from fastparam import _reference
from fastparam.functional import masked_prune, pack_mask, unpack_mask

P_DROP = 0.2


def draw(X: Tensor, shape: tuple[int, ...]) -> Tensor:
    """A bool mask, the same for every dtype."""
    return (torch.rand(shape, generator=torch.Generator().manual_seed(1)) > P_DROP).to(X.device)


def elementwise(X: Tensor) -> dict[str, Map]:
    """One mask per element. The eager one is the tutorial's: a float mask as large as the weight."""
    mask = draw(X, tuple(X.shape))
    real, packed = mask.to(X.dtype), pack_mask(mask)
    torchs = CustomFromMask(mask)
    torchs._tensor_name = "weight"
    return {
        "eager": lambda X: X * real,
        "bool mask": lambda X: X * mask,
        "where": lambda X: torch.where(mask, X, 0),
        "masked_fill": lambda X: X.masked_fill(~mask, 0),
        "torch prune": lambda X: torchs.apply_mask(SimpleNamespace(weight_mask=real, weight_orig=X)),
        "fastparam": lambda X: masked_prune(X, packed),
        "fastparam bool": lambda X: masked_prune(X, mask),
        "floor": torch.clone,
    }


def broadcast(*kept: int) -> Callable[[Tensor], dict[str, Map]]:
    """A mask that varies along the ``kept`` dimensions only. The eager one is a float mask of that shape."""

    def build(X: Tensor) -> dict[str, Map]:
        mask = draw(X, tuple(size if d in kept else 1 for d, size in enumerate(X.shape)))
        real = mask.to(X.dtype)
        return {
            "eager": lambda X: X * real,
            "where": lambda X: torch.where(mask, X, 0),
            "fastparam": lambda X: masked_prune(X, mask),
            "floor": torch.clone,
        }

    return build


def packing(X: Tensor) -> dict[str, Map]:
    """A bool mask to bits. The floor is a copy of the mask."""
    mask = draw(X, tuple(X.shape))
    return {
        "eager": lambda _: _reference.pack_mask(mask),
        "fastparam": lambda _: pack_mask(mask),
        "floor": lambda _: mask.clone(),
    }


def unpacking(X: Tensor) -> dict[str, Map]:
    """Bits to a bool mask."""
    mask = draw(X, tuple(X.shape))
    packed = pack_mask(mask)
    return {
        "eager": lambda _: _reference.unpack_mask(packed, mask.shape),
        "fastparam": lambda _: unpack_mask(packed, mask.shape),
        "floor": lambda _: mask.clone(),
    }


class Eager(nn.Module):
    """The module of the parametrizations tutorial."""

    def __init__(self, mask: Tensor) -> None:
        super().__init__()
        self.mask = mask

    def forward(self, X: Tensor) -> Tensor:
        return X * self.mask


def layers(X: Tensor) -> dict[str, Map]:
    """The floor is a parametrization that does nothing: the time of torch itself."""

    mask = draw(X, tuple(X.shape))
    return {
        "eager": weight_of(X, Eager(mask.to(X.dtype))),
        "fastparam": weight_of(X, fastparam.Pruning.from_mask(mask)),
        "floor": weight_of(X, nn.Identity()),
    }


CALLS = ((4, 4), (16, 16))
SQUARES = ((64, 64), (256, 256), (512, 512), (1000, 1000), (1024, 1024), (2048, 2048), (4096, 4096))
OTHERS = ((512, 512, 3, 3), (1000, 4099))
QUICK = ((16, 16), (512, 512), (1024, 1024), (512, 512, 3, 3))
OTHER_DTYPES = (torch.float64, torch.bfloat16, torch.float16)

RIVALS = (
    "eager",
    "compile",
    "bool mask",
    "where",
    "masked_fill",
    "torch prune",
    "fastparam",
    "fastparam bool",
    "floor",
)
OURS = ("eager", "fastparam", "floor")
SHORT = ("eager", "compile", "where", "fastparam", "floor")

BROADCAST = Work(words=(2, 4))
PRUNE = Op("masked_prune", elementwise, contenders=RIVALS, work=Work(words=(2, 4), bits=(1, 2)))
CASES: list[Case] = [*grid(PRUNE, CALLS + SQUARES + OTHERS, quick=QUICK)]
CASES += grid(PRUNE, ((8192, 8192),), devices=GPUS)
CASES += grid(PRUNE, ((16, 16), (1024, 1024)), dtypes=OTHER_DTYPES)
CASES += grid(Op("masked_prune row mask", broadcast(1), contenders=SHORT, work=BROADCAST), ((1024, 1024),))
CASES += grid(Op("masked_prune column mask", broadcast(0), contenders=SHORT, work=BROADCAST), ((1024, 1024),))
CASES += grid(
    Op("masked_prune channel mask", broadcast(0), contenders=SHORT, work=BROADCAST), ((512, 512, 3, 3),)
)
CASES += grid(
    Op("masked_prune kernel mask", broadcast(0, 1), contenders=SHORT, work=BROADCAST), ((512, 512, 3, 3),)
)
for _name, _build in (("pack_mask", packing), ("unpack_mask", unpacking)):
    _op = Op(_name, _build, contenders=OURS, work=Work(words=(0, 0), bits=(9, 9)))
    CASES += grid(_op, ((1024, 1024),), passes=(False,))
CASES += grid(
    Op("layer.weight pruned", layers, contenders=OURS),
    ((16, 16),),
    quick=((16, 16),),
    passes=(False,),
)


@pytest.mark.parametrize(
    ("case", "contender"),
    [pytest.param(case, name, id=f"{case}-{name}") for case in CASES for name in case.op.contenders],
)
def test_prune(case: Case, contender: str, compete: Callable[[Case, str], None]) -> None:
    compete(case, contender)
