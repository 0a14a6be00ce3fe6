"""The table of modules: every parametrization of the package in every form, for the tests of the life of a
model.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import pytest
import torch
from families import haar
from orthogonality import defect
from torch import Tensor, nn
from torch.nn.utils import parametrize

import fastparam
from fastparam.parametrizations import orthogonal

SQUARE, TALL, WIDE = (4, 4), (5, 3), (3, 5)


def is_orthogonal(W: Tensor) -> bool:
    return defect(W) <= 40 * torch.finfo(W.dtype).eps


def near_orthogonal(W: Tensor) -> bool:
    """Orthogonal up to the accuracy of torch's exponential."""
    return is_orthogonal(W) or (W.dtype == torch.float32 and defect(W) < 1e-4)


MASK = torch.tensor([[1, 0, 1, 1], [0, 1, 1, 0], [1, 1, 0, 1], [1, 0, 0, 1]], dtype=torch.bool)


@dataclass(frozen=True)
class Form:
    """A parametrization of ``weight``, as users register it on a layer."""

    name: str
    shape: tuple[int, int]  # of the weight
    register: Callable[[nn.Module], object]
    holds: Callable[[Tensor], bool]  # of the weight
    image: Callable[[], Tensor] | None = None  # draws a weight that can be assigned; None if none can
    buffers: tuple[str, ...] = ()  # of the state, after the raw tensor, in order
    tolerance: float = 0.0  # of an assignment; 0 means that it is restored bit for bit

    def layer(self, **options: object) -> nn.Linear:
        layer = nn.Linear(self.shape[1], self.shape[0], **options)
        self.register(layer)
        return layer

    def assigned(self) -> nn.Linear:
        """A layer whose state is not its initial state."""
        layer = self.layer()
        with torch.no_grad():
            if self.image is not None:
                layer.weight = self.image()
            layer.parametrizations.weight.original.add_(0.1 * torch.randn(self.shape))
        return layer

    @property
    def keys(self) -> list[str]:
        return [
            "bias",
            "parametrizations.weight.original",
            *(f"parametrizations.weight.{key}" for key in self.buffers),
        ]

    def data(self) -> Tensor:
        return torch.randn(6, self.shape[1])


def chain(*made: Callable[[], nn.Module]) -> Callable[[nn.Module], None]:
    def register(layer: nn.Module) -> None:
        for make in made:
            parametrize.register_parametrization(layer, "weight", make())

    return register


def symmetric_weight(sign: float) -> Tensor:
    W = torch.randn(SQUARE)
    return W.triu() + W.triu(1).mT if sign > 0 else W.triu(1) - W.triu(1).mT


def _linear() -> list[Form]:
    forms = []
    for kind, sign in ((fastparam.Symmetric, 1.0), (fastparam.Skew, -1.0)):
        holds = lambda W, sign=sign: torch.equal(W, sign * W.mT)
        image = partial(symmetric_weight, sign)
        for lower in (False, True):
            name = f"{kind.__name__}{'-lower' * lower}"
            forms.append(Form(name, SQUARE, chain(partial(kind, lower)), holds, image))
    return forms


def _cayley() -> list[Form]:
    close = {"holds": is_orthogonal, "tolerance": 1e-5}
    forms = []
    for name, shape in (("square", SQUARE), ("tall", TALL), ("wide", WIDE)):
        signed = partial(haar, *shape, dtype=torch.float32, det=-1 if shape == SQUARE else None)
        plain = lambda shape=shape: fastparam.functional.stiefel_cayley(torch.randn(shape))
        with_signs = chain(partial(fastparam.SkewCayley, -0.5, True))
        forms += [
            Form(f"SkewCayley-{name}", shape, with_signs, image=signed, buffers=("0.signs",), **close),
            Form(
                f"SkewCayley-{name}-plain",
                shape,
                chain(partial(fastparam.SkewCayley, signs=False)),
                image=plain,
                **close,
            ),
        ]
        for base in (True, False):
            verb = partial(orthogonal, orthogonal_map="cayley", use_trivialization=base)
            image = signed if base else plain
            buffers = ("0.base",) * base
            forms.append(
                Form(
                    f"orthogonal-{name}{'-plain' * (not base)}",
                    shape,
                    verb,
                    image=image,
                    buffers=buffers,
                    **close,
                )
            )
    blocks = lambda W: W.unflatten(-2, (3, -1))
    for name, n, k in (("square", 3, 3), ("tall", 3, 2), ("wide", 2, 3)):
        draw = partial(haar, 3, n, k, dtype=torch.float32)
        forms.append(
            Form(
                f"SkewCayley-blocks-{name}",
                (3 * n, k),
                chain(partial(fastparam.SkewCayley, blocks=3)),
                holds=lambda W: is_orthogonal(blocks(W)),
                image=lambda draw=draw: draw().flatten(0, 1),
                buffers=("0.signs",),
                tolerance=1e-5,
            )
        )
    after_skew = {
        "CayleyMap": (fastparam.CayleyMap, partial(haar, *SQUARE, dtype=torch.float32, det=1), ()),
        "CayleyMap-Id": (
            partial(fastparam.CayleyMap, 4),
            partial(haar, *SQUARE, dtype=torch.float32, det=1),
            ("1.Id",),
        ),
        "CayleyMap-signs": (
            partial(fastparam.CayleyMap, signs=True),
            partial(haar, *SQUARE, dtype=torch.float32, det=-1),
            ("1.signs",),
        ),
        "MatrixExponential": (
            fastparam.MatrixExponential,
            partial(haar, *SQUARE, dtype=torch.float32, det=1),
            (),
        ),
    }
    for name, (module, image, buffers) in after_skew.items():
        forms.append(
            Form(
                name,
                SQUARE,
                chain(fastparam.Skew, module),
                image=image,
                buffers=buffers,
                **close,
            )
        )
    return forms


def positive_weight() -> Tensor:
    X = torch.randn(4, 6)
    return (X @ X.mT / 6 + 0.1 * torch.eye(4)).triu() + (X @ X.mT / 6).triu(1).mT


def is_positive(W: Tensor) -> bool:
    return torch.equal(W, W.mT) and bool(torch.linalg.eigvalsh(W.double()).min() > 0)


def _exponential() -> list[Form]:
    close = {"holds": is_orthogonal, "tolerance": 1e-5}
    forms = []
    for name, shape in (("square", SQUARE), ("tall", TALL), ("wide", WIDE)):
        square = shape == SQUARE
        for signs in (True, False):
            det = -1 if signs else 1
            forms.append(
                Form(
                    f"SkewExponential-{name}{'-plain' * (not signs)}",
                    shape,
                    chain(partial(fastparam.SkewExponential, lower=signs, signs=signs)),
                    image=partial(haar, *shape, dtype=torch.float32, det=det) if square else None,
                    buffers=("0.signs",) * (signs and square),
                    **close,
                )
            )
    for lower in (False, True):
        verb = partial(fastparam.parametrizations.positive_definite, lower=lower)
        name = f"PositiveDefinite{'-lower' * lower}"
        forms.append(Form(name, SQUARE, verb, is_positive, positive_weight, tolerance=1e-5))
    return forms


def _torchs_maps() -> list[Form]:
    forms = []
    for name, shape in (("square", SQUARE), ("tall", TALL), ("wide", WIDE)):
        image = partial(haar, *shape, dtype=torch.float32)
        householder = partial(orthogonal, orthogonal_map="householder", use_trivialization=False)
        for word, register, buffers in (
            ("default", orthogonal, ("0.base",)),
            ("exponential", partial(orthogonal, orthogonal_map="matrix_exp"), ("0.base",)),
            ("householder-plain", householder, ()),
        ):
            full = f"orthogonal-{name}-{word}"
            forms.append(Form(full, shape, register, near_orthogonal, image, buffers, 1e-5))
    return forms


def _pruned() -> list[Form]:
    def form(name: str, mask: Tensor) -> Form:
        holds = lambda W: bool((W[~mask.expand(4, 4)] == 0).all())
        image = lambda: torch.where(mask, torch.randn(SQUARE), 0)

        def register(layer: nn.Module) -> None:
            parametrize.register_parametrization(
                layer, "weight", fastparam.Pruning(mask.to(layer.weight.device))
            )

        return Form(name, SQUARE, register, holds, image, ("0.mask",))

    def tutorial(layer: nn.Module) -> None:
        with torch.random.fork_rng():
            torch.manual_seed(5)  # the same mask in every layer
            pruning = fastparam.PruningParametrization(layer.weight, 0.3)
        parametrize.register_parametrization(layer, "weight", pruning)

    few = lambda W: bool((W == 0).any())
    return [
        form("Pruning", MASK),
        form("Pruning-row", MASK[0]),
        form("Pruning-column", MASK[:, :1]),
        Form("PruningParametrization", SQUARE, tutorial, few, None, ("0.mask",)),
    ]


FORMS = [*_linear(), *_cayley(), *_exponential(), *_torchs_maps(), *_pruned()]
every_form = pytest.mark.parametrize("form", FORMS, ids=lambda form: form.name)
every_assignable = pytest.mark.parametrize("form", [f for f in FORMS if f.image], ids=lambda form: form.name)
