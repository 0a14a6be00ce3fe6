"""Symmetric and Skew on the layers of a model: torch.nn.utils.parametrize, and everything that happens to a
model.
"""

import contextlib
import copy

import pytest
import torch
from table import F64, ModuleCase, every_module
from torch import nn
from torch.nn.utils import parametrize

LAYERS = {
    "linear": lambda **k: nn.Linear(4, 4, **k),
    "large": lambda **k: nn.Linear(33, 33, **k),
    "conv": lambda **k: nn.Conv2d(2, 3, 3, **k),
    "depthwise": lambda **k: nn.Conv2d(4, 4, 3, groups=4, **k),
}
every_layer = pytest.mark.parametrize("layer", LAYERS)


def made(kind: ModuleCase, layer="linear", **k):
    """The layer with our module, and the same layer with the eager module."""
    ours = LAYERS[layer](**k)
    eager = copy.deepcopy(ours)
    parametrize.register_parametrization(ours, "weight", kind.ours())
    parametrize.register_parametrization(eager, "weight", kind.eager())
    return ours, eager


def same_state(a, b):
    a, b = a.state_dict(), b.state_dict()
    assert list(a) == list(b)
    return all(torch.equal(a[key], b[key]) for key in a)


def image(kind, *shape, dtype=torch.float32):
    """A weight that the parametrization can produce exactly."""
    W = torch.randn(*shape, dtype=dtype)
    return W.triu() + kind.sign * W.triu(1).mT if kind.sign > 0 else W.triu(1) - W.triu(1).mT


def structured(kind, W):
    return torch.equal(W, kind.sign * W.mT)


def data(layer, dtype=torch.float32):
    shape = {"linear": (5, 4), "large": (5, 33), "conv": (2, 2, 6, 6), "depthwise": (2, 4, 6, 6)}[layer]
    return torch.randn(shape, dtype=dtype)


@every_module
@every_layer
def test_registration(kind, layer):
    ours, eager = made(kind, layer)
    assert structured(kind, ours.weight) and torch.equal(ours.weight, eager.weight)
    assert same_state(ours, eager)
    assert [name for name, _ in ours.named_parameters()] == [name for name, _ in eager.named_parameters()]
    assert isinstance(ours.parametrizations.weight.original, nn.Parameter)
    v = data(layer)
    assert torch.equal(ours(v), eager(v))
    ours(v).square().sum().backward()
    eager(v).square().sum().backward()
    for a, b in zip(ours.parameters(), eager.parameters(), strict=True):
        assert torch.equal(a.grad, b.grad)


@every_module
def test_second_order_through_a_layer(kind):
    ours, eager = made(kind, dtype=F64)
    v = data("linear", F64)

    def hessian_vector(layer):
        raw = layer.parametrizations.weight.original
        (g,) = torch.autograd.grad((layer(v) ** 3).sum(), raw, create_graph=True)
        return torch.autograd.grad((g**2).sum(), raw)[0]

    torch.testing.assert_close(hessian_vector(ours), hessian_vector(eager))


@every_module
@every_layer
@pytest.mark.parametrize("optimiser", [torch.optim.SGD, torch.optim.AdamW], ids=["SGD", "AdamW"])
def test_training(kind, layer, optimiser):
    """The weight is exactly symmetric or skew after every step, and the steps are those of the
    eager module.
    """
    ours, eager = made(kind, layer)
    v = data(layer)
    for model in (ours, eager):
        optimise = optimiser(model.parameters(), lr=0.01)
        for _ in range(5):
            optimise.zero_grad()
            model(v).square().mean().backward()
            optimise.step()
            assert structured(kind, model.weight)
    assert same_state(ours, eager)
    assert torch.equal(ours.weight, eager.weight)


@every_module
def test_buffer(kind):
    module = nn.Module()
    module.register_buffer("W", torch.randn(5, 5))
    raw = module.W.clone()
    parametrize.register_parametrization(module, "W", kind.ours())
    assert structured(kind, module.W) and not list(module.parameters())
    assert torch.equal(module.parametrizations.W.original, kind.eager().right_inverse(raw))
    assert list(module.state_dict()) == ["parametrizations.W.original"]


@every_module
def test_concatenation(kind):
    """The second of two parametrizations is applied to the result of the first one."""

    class Double(nn.Module):
        def forward(self, X):
            return 2 * X

        def right_inverse(self, X):
            return X / 2

    def build(module):
        layer = nn.Linear(4, 4)
        parametrize.register_parametrization(layer, "weight", module)
        parametrize.register_parametrization(layer, "weight", Double())
        return layer

    torch.manual_seed(1)
    ours = build(kind.ours())
    torch.manual_seed(1)
    eager = build(kind.eager())
    assert torch.equal(ours.weight, eager.weight) and structured(kind, ours.weight)
    W = image(kind, 4, 4)
    ours.weight = W
    assert torch.equal(ours.weight, W)
    assert list(ours.state_dict()) == list(eager.state_dict())
    skew = nn.Linear(4, 4)
    parametrize.register_parametrization(skew, "weight", Double())
    parametrize.register_parametrization(skew, "weight", kind.ours())  # and in the other order
    assert structured(kind, skew.weight)
    skew.weight = W
    assert torch.equal(skew.weight, W)


@every_module
def test_cached(kind):
    ours, _ = made(kind)
    assert ours.weight is not ours.weight
    with parametrize.cached():
        first = ours.weight
        assert ours.weight is first
        (ours(data("linear")).sum() + ours.weight.sum()).backward()
        assert ours.parametrizations.weight.original.grad is not None
    assert ours.weight is not first
    with parametrize.cached(), torch.no_grad():
        assert ours.weight is ours.weight


@every_module
@pytest.mark.parametrize("leave", [True, False], ids=["leave", "restore"])
def test_removal(kind, leave):
    ours, _ = made(kind)
    weight, raw = ours.weight.detach().clone(), ours.parametrizations.weight.original.detach().clone()
    parameter = ours.parametrizations.weight.original
    parametrize.remove_parametrizations(ours, "weight", leave_parametrized=leave)
    assert type(ours) is nn.Linear and not parametrize.is_parametrized(ours)
    assert torch.equal(ours.weight, weight if leave else raw)
    assert isinstance(ours.weight, nn.Parameter) and ours.weight is parameter
    assert set(ours.state_dict()) == {"weight", "bias"}


@every_module
def test_assignment(kind):
    """An assignment is exact on the image and a projection elsewhere, bit for bit. The parameter stays the
    same object.
    """
    for n in (1, 2, 4, 9, 17, 33):
        for dtype in (torch.float32, F64, torch.bfloat16, torch.float16, torch.complex64):
            layer = nn.Linear(n, n, dtype=dtype)
            parametrize.register_parametrization(layer, "weight", kind.ours())
            parameter = layer.parametrizations.weight.original
            W = image(kind, n, n, dtype=dtype)
            layer.weight = W
            assert torch.equal(layer.weight, W) and layer.parametrizations.weight.original is parameter
            layer.weight = torch.randn(n, n, dtype=dtype)
            first = layer.weight.detach().clone()
            assert structured(kind, first)
            layer.weight = first
            assert torch.equal(layer.weight, first)


@every_module
def test_right_inverse_is_the_eager_one(kind):
    ours, eager = kind.ours(), kind.eager()
    for shape in [(4, 4), (2, 3, 3), (0, 0), (0, 4, 4), (1, 1), (2, 2, 17, 17)]:
        A = torch.randn(shape)
        assert torch.equal(ours.right_inverse(A), eager.right_inverse(A))
        assert torch.equal(ours(ours.right_inverse(ours(A))), ours(A))
    A = torch.full((3, 3), float("nan"))
    torch.testing.assert_close(ours.right_inverse(A), eager.right_inverse(A), equal_nan=True)


@every_module
def test_grad_modes_and_autocast(kind):
    ours, eager = made(kind)
    v = data("linear")
    with torch.inference_mode():
        assert torch.equal(ours(v), eager(v)) and ours.weight.is_inference()
    with torch.no_grad():
        assert not ours(v).requires_grad and torch.equal(ours(v), eager(v))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(ours(v), eager(v)) and ours(v).dtype == torch.bfloat16
        assert ours.weight.dtype == torch.float32 and structured(kind, ours.weight)
    ours.requires_grad_(False)
    assert not ours.weight.requires_grad
    for context in (torch.inference_mode, torch.no_grad, contextlib.nullcontext):
        with context():
            layer = nn.Linear(4, 4)
            parametrize.register_parametrization(layer, "weight", kind.ours())
            assert structured(kind, layer.weight)


@every_module
def test_inspection(kind):
    ours, _ = made(kind)
    assert parametrize.is_parametrized(ours, "weight") and not parametrize.is_parametrized(ours, "bias")
    chain = ours.parametrizations["weight"]
    assert (
        isinstance(chain, parametrize.ParametrizationList)
        and len(chain) == 1
        and type(chain[0]) is type(kind.ours())
    )
    assert parametrize.type_before_parametrizations(ours) is nn.Linear
    name = type(chain[0]).__name__
    assert repr(chain[0]) == (f"{name}(lower=True)" if chain[0].lower else f"{name}()")
    assert repr(chain[0]) in repr(ours)
    assert not list(chain[0].parameters()) and not list(chain[0].buffers()) and chain[0].state_dict() == {}
