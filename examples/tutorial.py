"""The PyTorch parametrizations tutorial, step by step, with the modules of fastparam. Every claim is
asserted.

Run ``python examples/tutorial.py``. The tutorial is at
https://pytorch.org/tutorials/intermediate/parametrizations.html. Modules marked "eager form" are written in
plain torch.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.testing import assert_close

import fastparam


class LinearSymmetric(nn.Module):
    """A layer without parametrizations, which has to be implemented again. Eager form."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.rand(n, n))

    def forward(self, x: Tensor) -> Tensor:
        return x @ (self.weight.triu() + self.weight.triu(1).mT)


class Counting(nn.Module):
    """The identity, which counts its calls to show when a weight is computed. Eager form."""

    calls = 0

    def forward(self, X: Tensor) -> Tensor:
        self.calls += 1
        return X


class Scale(nn.Module):
    """Multiplies by a learned number: a parametrization with its own parameter. Eager form."""

    def __init__(self) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.tensor(2.0))

    def forward(self, X: Tensor) -> Tensor:
        return self.factor * X


class RankOne(nn.Module):
    """A matrix as an outer product: one weight from two free parameters. Eager form."""

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return x[:, None] * y[None, :]

    def right_inverse(self, Z: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the leading singular pair: a projection, which is exact on matrices of rank one."""
        U, S, Vh = torch.linalg.svd(Z, full_matrices=False)
        root = S[0].sqrt()
        return U[:, 0] * root, Vh[0] * root


class DropRows(nn.Module):
    """Keeps the first rows only: a parametrization that changes the shape. Eager form."""

    def forward(self, X: Tensor) -> Tensor:
        return X[:2]


def constrained(layer: nn.Module, *maps: nn.Module) -> Any:
    """Registers the maps on ``layer.weight``, in order."""
    for module in maps:
        parametrize.register_parametrization(layer, "weight", module)
    return layer


def by_hand() -> None:
    layer, x = LinearSymmetric(3), torch.rand(8, 3)
    A = fastparam.functional.symmetric(layer.weight)
    assert torch.equal(A, A.mT)
    assert_close(layer(x), x @ A)


def registering() -> None:
    weight = constrained(nn.Linear(3, 3), fastparam.Symmetric()).weight
    assert torch.equal(weight, weight.mT)

    kernels = constrained(nn.Conv2d(5, 8, kernel_size=3), fastparam.Skew()).weight
    assert kernels.shape == (8, 5, 3, 3), "every 3 x 3 kernel is one matrix"
    assert torch.equal(kernels, -kernels.mT)


def inspecting() -> None:
    layer = nn.Linear(3, 3)
    before = layer.weight
    constrained(layer, fastparam.Symmetric())

    assert isinstance(layer, nn.Linear) and isinstance(type(layer).weight, property)
    chain = layer.parametrizations.weight
    assert isinstance(layer.parametrizations, nn.ModuleDict) and isinstance(
        chain, parametrize.ParametrizationList
    )
    assert isinstance(chain[0], fastparam.Symmetric)
    assert parametrize.is_parametrized(layer, "weight") and not parametrize.is_parametrized(layer, "bias")

    assert set(dict(layer.named_parameters())) == {"bias", "parametrizations.weight.original"}
    assert chain.original is before, (
        "the parameter is moved, not replaced: an optimizer that holds it keeps working"
    )
    assert torch.equal(layer.weight, fastparam.functional.symmetric(before))
    assert "Symmetric()" in repr(layer)


def first_class() -> None:
    layer = constrained(nn.Linear(3, 3), fastparam.Symmetric(), Scale())
    scale = layer.parametrizations.weight[1]
    assert (
        any(scale.factor is p for p in layer.parameters())
        and "parametrizations.weight.1.factor" in layer.state_dict()
    )
    layer.weight.sum().backward()
    assert scale.factor.grad is not None and layer.parametrizations.weight.original.grad is not None

    layer.double().eval()
    assert scale.factor.dtype == layer.weight.dtype == torch.float64 and not scale.training
    if torch.cuda.is_available():
        assert layer.cuda().weight.is_cuda and scale.factor.is_cuda

    twin = constrained(nn.Linear(3, 3), fastparam.Symmetric(), Scale()).double()
    twin.load_state_dict(layer.state_dict())
    assert_close(twin.weight, layer.weight)


def caching() -> None:
    layer = constrained(nn.Linear(4, 4), fastparam.Symmetric(), Counting())
    counter = layer.parametrizations.weight[1]

    counter.calls = 0
    _ = (layer.weight + layer.weight.mT, layer.weight.sum())
    assert counter.calls == 3, "computed at every access"

    counter.calls = 0
    with parametrize.cached():
        first = layer.weight
        assert layer.weight is first
        _ = layer.weight + layer.weight.mT
    assert counter.calls == 1, "computed once"
    assert layer.weight is not first and torch.equal(layer.weight, first)


def concatenating() -> None:
    for orthogonal_map in (fastparam.CayleyMap(3), fastparam.MatrixExponential()):
        layer = constrained(nn.Linear(3, 3), fastparam.Skew(), orthogonal_map)
        assert len(layer.parametrizations.weight) == 2
        assert_close(layer.weight.mT @ layer.weight, torch.eye(3), rtol=0.0, atol=1e-4)
        assert_close(layer.weight.det(), torch.tensor(1.0), rtol=0.0, atol=1e-4)

    weight = constrained(nn.Linear(3, 3), fastparam.Symmetric(), fastparam.MatrixExponential()).weight
    assert_close(weight, weight.mT)
    assert (torch.linalg.eigvalsh(weight) > 0).all()

    layer = constrained(nn.Linear(8, 8), fastparam.Symmetric())
    pruned = constrained(layer, fastparam.PruningParametrization(layer.weight)).weight
    assert (pruned[layer.parametrizations.weight[1].mask == 0] == 0).all()


def whole_model() -> None:
    model = nn.Sequential(nn.Linear(4, 6), nn.Linear(6, 6), nn.Sequential(nn.ReLU(), nn.Linear(6, 6)))
    for module in model.modules():
        if isinstance(module, nn.Linear) and module.in_features == module.out_features:
            constrained(module, fastparam.Skew())

    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        model(torch.rand(5, 4)).square().mean().backward()
        optimizer.step()
    square = [m for m in model.modules() if parametrize.is_parametrized(m)]
    assert len(square) == 2 and all(torch.equal(m.weight, -m.weight.mT) for m in square), (
        "training stays on the constraint"
    )


def initialising() -> None:
    layer = constrained(nn.Linear(3, 3), fastparam.Skew())
    for _ in range(3):
        X = torch.rand(3, 3)
        layer.weight = X - X.mT
        assert_close(layer.weight, X - X.mT)

    layer = constrained(nn.Linear(3, 3), fastparam.Skew(), fastparam.CayleyMap(3, signs=True))
    for _ in range(5):
        Q = nn.init.orthogonal_(torch.empty(3, 3))
        for any_orthogonal in (
            Q,
            -Q,
        ):  # one of determinant 1, the other one of -1, which the map alone cannot produce
            layer.weight = any_orthogonal
            assert_close(layer.weight, any_orthogonal, rtol=1e-5, atol=1e-5)
    A = fastparam.functional.skew(torch.randn(3, 3))
    cayley = fastparam.CayleyMap()
    assert_close(cayley.right_inverse(cayley(A)), A, rtol=1e-4, atol=1e-4)

    layer.weight = fresh = nn.init.orthogonal_(layer.weight)  # the tutorial's one-line form
    assert_close(layer.weight, fresh, rtol=1e-5, atol=1e-5)
    before = layer.weight
    try:
        layer.weight = torch.ones(3, 3)
        raise AssertionError("not orthogonal")
    except ValueError as error:
        assert "max |Q^T Q - I| = 3" in str(error) and torch.equal(layer.weight, before), (
            "refused, and the layer is as it was"
        )


def orthogonal_in_one() -> None:
    chain = constrained(nn.Linear(4, 4), fastparam.Skew(), fastparam.CayleyMap())
    fused = constrained(nn.Linear(4, 4), fastparam.SkewCayley())
    fused.parametrizations.weight.original = chain.parametrizations.weight.original
    assert_close(fused.weight, chain.weight)

    tall = constrained(nn.Linear(3, 8), fastparam.SkewCayley()).weight
    assert_close(tall.mT @ tall, torch.eye(3), rtol=0.0, atol=1e-5)

    torch.manual_seed(1)
    theirs = nn.utils.parametrizations.orthogonal(nn.Linear(4, 4), orthogonal_map="cayley")
    torch.manual_seed(1)
    ours = fastparam.parametrizations.orthogonal(nn.Linear(4, 4), orthogonal_map="cayley")
    assert_close(ours.weight, theirs.weight, rtol=1e-5, atol=1e-5)
    assert list(ours.state_dict()) == list(theirs.state_dict()) and ours.load_state_dict(theirs.state_dict())


def pruning() -> None:
    layer = nn.Linear(30, 40)
    constrained(layer, fastparam.PruningParametrization(layer.weight, p_drop=0.2))
    mask, X = layer.parametrizations.weight[0].mask, torch.rand(40, 30)
    layer.weight = X
    assert torch.equal(layer.weight, X * mask) and not torch.equal(layer.weight, X), (
        "right_inverse need not be an exact inverse"
    )
    assert 0.1 < (mask == 0).float().mean() < 0.3
    layer.weight = X * mask
    assert torch.equal(layer.weight, X * mask), "what has zeros there comes back as it was"

    assert [buffer is mask for buffer in layer.buffers()] == [True], (
        "a bool buffer, which is in the checkpoint"
    )
    twin = constrained(nn.Linear(30, 40), fastparam.PruningParametrization(X))
    assert twin.load_state_dict(layer.state_dict()) and torch.equal(twin.weight, layer.weight)


def pruning_by_name() -> None:
    layer = nn.Linear(30, 40)
    for _ in range(2):
        fastparam.parametrizations.l1_unstructured(layer, "weight", amount=0.5)
    assert layer.parametrizations.weight[0].sparsity == 0.75, "half of it, and half of the rest"
    assert torch.equal(layer.weight, layer.weight_orig * layer.weight_mask), (
        "the names of torch.nn.utils.prune"
    )
    checkpoint = nn.utils.prune.random_unstructured(nn.Linear(30, 40), "weight", amount=100).state_dict()
    layer.load_state_dict(fastparam.parametrizations.from_torch(checkpoint))
    assert torch.equal(layer.weight, checkpoint["weight_orig"] * checkpoint["weight_mask"])
    fastparam.parametrizations.remove(layer, "weight")
    assert type(layer) is nn.Linear and (layer.weight == 0).sum() == 100


def several_inputs() -> None:
    layer = constrained(nn.Linear(4, 3), RankOne())
    assert {"original0", "original1"} <= set(dict(layer.parametrizations.weight.named_parameters()))
    assert torch.linalg.matrix_rank(layer.weight) == 1


def changing_shape() -> None:
    layer = nn.Linear(3, 3, bias=False)
    before = layer.weight
    try:
        constrained(layer, DropRows())
        raise AssertionError("a change of shape has to be asked for")
    except ValueError:
        assert layer.weight is before, "refused, and the layer is as it was"
    parametrize.register_parametrization(layer, "weight", DropRows(), unsafe=True)
    assert layer(torch.rand(5, 3)).shape == (5, 2)


def removing() -> None:
    layer = constrained(nn.Linear(3, 3), fastparam.Skew())
    value = layer.weight.detach().clone()
    parametrize.remove_parametrizations(layer, "weight")
    assert type(layer) is nn.Linear and isinstance(layer.weight, nn.Parameter)
    assert torch.equal(layer.weight, value), "skew-symmetric values, no longer constrained"

    layer = nn.Linear(3, 3)
    free = layer.weight.detach().clone()
    constrained(layer, fastparam.Skew())
    parametrize.remove_parametrizations(layer, "weight", leave_parametrized=False)
    assert type(layer) is nn.Linear and isinstance(layer.weight, nn.Parameter)
    assert torch.equal(layer.weight, free.triu(1)), (
        "the free parameter, as right_inverse made it on registration"
    )


SECTIONS = (
    *(by_hand, registering, inspecting, first_class, caching, concatenating),
    *(
        whole_model,
        initialising,
        orthogonal_in_one,
        pruning,
        pruning_by_name,
        several_inputs,
        changing_shape,
        removing,
    ),
)

if __name__ == "__main__":
    torch.manual_seed(0)
    for section in SECTIONS:
        section()
        print(f"{section.__name__.replace('_', ' ')}: holds")
    print("tutorial: all claims hold")
