"""Benchmarks of orthogonal weights as users write them: ``layer.weight`` of registered modules and of the
verb ``orthogonal``, the cost of a registration, and the cost of an assignment.

All weights are read through ``torch.nn.utils.parametrize``, whose own time is included for every contender
except the floors made of products.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from bench_cayley import (
    MEANS,
    TORCH,
    Product,
    TallProduct,
    gaussian,
    geotorch,
    orthogonality,
)
from measure import Case, Map, Op, grid, weight_of
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.nn.utils.parametrizations import orthogonal
from tutorial import EagerCayleyMap, EagerSkew

import fastparam
from fastparam import _reference


def layer_of(X: Tensor) -> nn.Module:
    layer = nn.Module()
    layer.weight = nn.Parameter(X.clone())
    return layer


def weight(layer: nn.Module) -> Map:
    """Returns the weight of the layer as a function of its raw weight."""
    chain = layer.parametrizations.weight
    del chain.original  # a parameter, in the place of the argument

    def read(X: Tensor) -> Tensor:
        chain.__dict__["original"] = X
        return layer.weight

    return read


def registered_with(X: Tensor, *modules: nn.Module) -> Map:
    layer = layer_of(X)
    for module in modules:
        parametrize.register_parametrization(layer, "weight", module.to(X.device, X.dtype))
    return weight(layer)


def registered_with_geotorch(X: Tensor, base: Tensor) -> Map | None:
    """With that base point. geotorch registers on orthogonal weights only."""
    module = geotorch(X)
    if module is None:
        return None
    layer = layer_of(nn.init.orthogonal_(torch.empty_like(X)) if X.dim() == 2 else module.sample())
    parametrize.register_parametrization(layer, "weight", module)
    module.base.copy_(base)
    return weight(layer)


def verb(X: Tensor, function: Callable[..., nn.Module], base: Tensor | None) -> Map:
    """``orthogonal`` with that base point or, if it is None, without trivialization."""
    layer = function(layer_of(X), "weight", "cayley", use_trivialization=base is not None)
    if base is not None:
        layer.parametrizations.weight[0].base.copy_(base)
    return weight(layer)


def reflection(X: Tensor) -> Tensor:
    """A base point that is the same in every dtype."""
    n = max(X.shape[-2:])
    return (torch.eye(n, device=X.device, dtype=X.dtype) - 2 / n).expand(*X.shape[:-2], n, n)


def default_form(X: Tensor) -> dict[str, Map | None]:
    base = reflection(X)
    return {
        "eager": verb(X, orthogonal, base),
        "geotorch": registered_with_geotorch(X, base),
        "fastparam": verb(X, fastparam.parametrizations.orthogonal, base),
        "floor": floor(X),
    }


def floor(X: Tensor) -> Map:
    """Matrix products: one in the forward pass and two in the backward pass, or those of the closed form of
    tall matrices.
    """
    if X.shape[-2] == X.shape[-1]:
        S = X.clone()
        return lambda X: Product.apply(X, S)
    return TallProduct.apply if X.shape[-2] > X.shape[-1] else lambda X: TallProduct.apply(X.mT).mT


def without_base(X: Tensor) -> dict[str, Map | None]:
    return {
        "eager": verb(X, orthogonal, None),
        "fastparam": verb(X, fastparam.parametrizations.orthogonal, None),
        "floor": floor(X),
    }


def modules(X: Tensor) -> dict[str, Map | None]:
    """The tutorial has no tall weights, so for them eager is torch's verb."""
    n, k = X.shape[-2:]
    chain = (EagerSkew(), EagerCayleyMap(n))
    return {
        "eager": registered_with(X, *chain) if n == k else verb(X, orthogonal, None),
        "geotorch": registered_with_geotorch(X, torch.eye(max(n, k))),
        "fastparam": registered_with(X, fastparam.SkewCayley(*(() if n == k else (-0.5, True)))),
        "floor": floor(X),
    }


def layers(X: Tensor) -> dict[str, Map]:
    """The floor is a parametrization that does nothing: the time of torch itself."""
    chain = nn.Sequential(EagerSkew(), EagerCayleyMap(X.shape[-1])).to(X.device, X.dtype)
    return {
        "eager": weight_of(X, chain),
        "fastparam": weight_of(X, fastparam.SkewCayley()),
        "floor": weight_of(X, nn.Identity()),
    }


class Invertible(EagerCayleyMap):
    """The map of the tutorial with its inverse."""

    def right_inverse(self, Q: Tensor) -> Tensor:
        return torch.linalg.solve(self.Id + Q, self.Id - Q)


def assigned(Q: Tensor) -> dict[str, Map]:
    """``layer.weight = Q``, as a function from Q to the raw weight. The floor is the call that draws
    a random Q.
    """

    def assign(*modules: nn.Module) -> Map:
        layer = nn.Linear(Q.shape[-1], Q.shape[-2], bias=False, device=Q.device, dtype=Q.dtype)
        for module in modules:
            parametrize.register_parametrization(layer, "weight", module)

        def raw(Q: Tensor) -> Tensor:
            layer.weight = Q
            return layer.parametrizations.weight.original.detach()

        return raw

    return {
        "eager": assign(EagerSkew(), Invertible(Q.shape[-1]).to(Q.device, Q.dtype)),
        "fastparam": assign(fastparam.SkewCayley()),
        "floor": lambda Q: nn.init.orthogonal_(torch.empty_like(Q)),
    }


def registered(X: Tensor) -> dict[str, Map]:
    """``orthogonal(layer)``, as a function from the weight to the base point. The floor is as above."""

    def register(verb: Callable[..., nn.Module]) -> Map:
        def base(X: Tensor) -> Tensor:
            layer = nn.Module()
            layer.weight = nn.Parameter(X)
            return verb(layer, "weight", "cayley").parametrizations.weight[0].base[..., : X.shape[-1]]

        return base

    return {
        "eager": register(orthogonal),
        "fastparam": register(fastparam.parametrizations.orthogonal),
        "floor": lambda X: nn.init.orthogonal_(torch.empty_like(X)),
    }


def rotation(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    return _reference.skew_cayley(gaussian(1.0)(shape, generator))


def based(X: Tensor) -> Tensor:
    """The reference of the default form."""
    Q, base = TORCH(X), reflection(X)
    return base @ Q if X.shape[-2] >= X.shape[-1] else Q @ base.mT


SQUARES = ((16, 16), (64, 64), (200, 200), (256, 256), (512, 512))
OTHERS = ((22, 18), (18, 22), (220, 110), (240, 256), (512, 384), (900, 48), (64, 32, 32))
LARGE = ((1024, 1024), (4096, 128))  # one call of torch takes seconds for the last one

DEFAULT = Op(
    "trivialized_cayley (orthogonal)",
    default_form,
    ("eager", "geotorch", "fastparam", "floor"),
    gaussian(1.0),
    {"eager": based},
    orthogonality,
)
PLAIN = Op(
    "orthogonal without trivialization",
    without_base,
    ("eager", "fastparam", "floor"),
    gaussian(1.0),
    {"eager": TORCH},
    orthogonality,
)
MODULE = Op(
    "SkewCayley",
    modules,
    ("eager", "geotorch", "fastparam", "floor"),
    gaussian(1.0),
    {"geotorch": TORCH},
    orthogonality,
)
CALL = Op(
    "layer.weight orthogonal", layers, ("eager", "fastparam", "floor"), gaussian(1.0), MEANS, orthogonality
)
ASSIGNED = Op("assignment to SkewCayley", assigned, ("eager", "fastparam", "floor"), rotation)
REGISTERED = Op(
    "registration of orthogonal", registered, ("eager", "fastparam", "floor"), defect=orthogonality
)

CASES: list[Case] = []
for op in (DEFAULT, PLAIN, MODULE):
    CASES += grid(op, SQUARES + OTHERS, quick=((64, 64),))
    CASES += grid(op, LARGE, rounds=3)
CASES += grid(CALL, ((8, 8),), quick=((8, 8),), passes=(False,))
CASES += grid(ASSIGNED, ((64, 64), (128, 128), (256, 256), (512, 512)), passes=(False,))
CASES += grid(ASSIGNED, ((1024, 1024),), passes=(False,), rounds=3)
CASES += grid(REGISTERED, ((22, 18), (64, 64), (512, 512), (512, 384)), passes=(False,))


@pytest.mark.parametrize(
    ("case", "contender"),
    [pytest.param(case, name, id=f"{case}-{name}") for case in CASES for name in case.op.contenders],
)
def test_orthogonal(case: Case, contender: str, compete: Callable[[Case, str], None]) -> None:
    compete(case, contender)
