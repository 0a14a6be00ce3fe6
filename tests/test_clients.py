"""Packages that compute these maps themselves: their code defines the convention that ours must match."""

from functools import partial

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from fastparam.functional import (
    cayley,
    matrix_exp,
    skew_cayley,
    skew_cayley_packed,
    skew_exp,
    stiefel_cayley,
    stiefel_exp,
)

SHAPES = [(1, 4), (3, 8), (2, 33)]


def same(ours, theirs, X):
    """Checks that the values and gradients of two maps agree in float64."""
    inputs = [X.detach().double().requires_grad_() for _ in range(2)]
    Q, P = ours(inputs[0]), theirs(inputs[1])
    assert_close(Q, P, rtol=0.0, atol=1e-11)
    G = torch.randn_like(Q)
    gradients = (torch.autograd.grad(Q, inputs[0], G)[0], torch.autograd.grad(P, inputs[1], G)[0])
    assert_close(*gradients, rtol=0.0, atol=1e-10)
    assert gradients[0].abs().max() > 0.1


@pytest.fixture
def oft():
    return pytest.importorskip("peft.tuners.oft.layer", exc_type=ImportError).OFTRotationModule


@pytest.mark.parametrize(("b", "n"), SHAPES)
def test_peft_oft(oft, b, n):
    module = oft(b, n * (n - 1) // 2, n, b * n)
    v = torch.randn(b, n * (n - 1) // 2) / n
    same(skew_cayley_packed, lambda v: module._cayley_batch(v, n, use_cayley_neumann=False), v)


def test_peft_oft_neumann_is_the_other_convention(oft):
    """The series that PEFT truncates converges to alpha = -1, which is the transpose of its exact mode."""
    module, v = oft(2, 28, 8, 16), torch.randn(2, 28, dtype=torch.float64) / 40
    errors = [
        module._cayley_batch(v, 8, True, terms) - skew_cayley_packed(v, alpha=-1.0) for terms in (5, 20)
    ]
    assert errors[0].abs().max() < 1e-2 and errors[1].abs().max() < 1e-9
    assert (module._cayley_batch(v, 8, True, 20) - skew_cayley_packed(v)).abs().max() > 1e-2


def test_peft_oft_layer_rotates_as_before(oft, monkeypatch):
    """A whole layer, with its ``_cayley_batch`` replaced by ours, which is the one line that a user
    changes.
    """
    layer = oft(4, 28, 8, 32, use_cayley_neumann=False)
    nn.init.normal_(layer.weight, std=0.2)
    x = torch.randn(5, 32)
    expected = layer(x)
    monkeypatch.setattr(oft, "_cayley_batch", lambda self, v, *_: skew_cayley_packed(v))
    assert_close(layer(x), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("b", "n"), SHAPES)
def test_peft_boft(b, n):
    """Half of X - X^T is the skew-symmetric part, whose triangle both halves of X share."""
    boft = pytest.importorskip("peft.tuners.boft.layer", exc_type=ImportError).BOFTLayer
    same(lambda X: cayley(0.5 * (X - X.mT)), lambda X: boft.cayley_batch(None, X), torch.randn(b, n, n))


def test_peft_psoft():
    layer = pytest.importorskip("peft.tuners.psoft.layer", exc_type=ImportError).OrthLayer
    module = layer(8, mag_a=False, mag_b=False).double()
    v = torch.randn(28, dtype=torch.float64)
    with torch.no_grad():
        module.weight.copy_(v)
    assert_close(module.get_matrix(), skew_cayley_packed(v, alpha=-1.0), rtol=0.0, atol=1e-11)


@pytest.mark.parametrize(("b", "n"), SHAPES)
def test_lycoris_diag_oft(b, n):
    get_r = pytest.importorskip("lycoris.functional.diag_oft", exc_type=ImportError).get_r
    X, I = torch.randn(b, n, n) / n, torch.eye(n)
    assert_close(cayley(X - X.mT, alpha=-1.0), get_r(X, I), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [("cayley", lambda A: cayley(A, alpha=-0.5)), ("expm", matrix_exp)],
    ids=["cayley", "expm"],
)
@pytest.mark.parametrize("lower", [False, True])
def test_geotorch_takes_our_map(lower, theirs, ours):
    geotorch = pytest.importorskip("geotorch")
    layers = [nn.Linear(8, 8, bias=False) for _ in range(2)]
    for layer, map_ in zip(layers, (theirs, ours), strict=True):
        nn.init.orthogonal_(layer.weight)
        parametrization = geotorch.SO(layer.weight.shape, triv=map_, lower=lower)
        nn.utils.parametrize.register_parametrization(layer, "weight", parametrization)
    layers[1].load_state_dict(layers[0].state_dict())
    X = torch.randn(8, 8)
    for layer in layers:
        layer.parametrizations.weight.original.data.copy_(X)
        layer(torch.ones(8)).square().mul(torch.arange(8.0)).sum().backward()
    assert_close(layers[1].weight, layers[0].weight, rtol=1e-5, atol=1e-5)
    gradients = [layer.parametrizations.weight.original.grad for layer in layers]
    assert_close(gradients[1], gradients[0], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("triv", ["cayley", "expm"])
@pytest.mark.parametrize(("make", "shape"), [("SO", (5, 8, 8)), ("Stiefel", (12, 5)), ("Stiefel", (5, 12))])
def test_geotorch_map(make, shape, triv):
    geotorch = pytest.importorskip("geotorch")
    module = getattr(geotorch, make)(shape, triv=triv).double()
    module.base.copy_(torch.eye(module.n))
    maps = {"cayley": (skew_cayley, stiefel_cayley), "expm": (skew_exp, stiefel_exp)}[triv]
    ours = partial(maps[make != "SO"], lower=True, **({"alpha": -0.5} if triv == "cayley" else {}))
    same(ours, module, torch.randn(shape))
