"""Benchmarks of orthogonal weights by the Cayley map: exact solves, PEFT's truncated series, the maps of
torch and geotorch, and matrix products.

The contenders keep their own conventions (sign and scale of alpha, triangle), so none is charged for a
conversion. Each is judged by the map that it is meant to compute; the truncated series is judged by the exact
map that it approximates. Inputs have a spectral norm of about 1, unless the name of the op gives another one.
geotorch and PEFT are part of the extra "rivals"; without it they are reported as absent.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache, partial
from importlib import import_module
from typing import Any

import pytest
import torch
from measure import GPUS, Case, Draw, Map, Op, Work, grid
from torch import Tensor, nn
from torch.nn.utils.parametrizations import orthogonal

from fastparam import _reference
from fastparam.functional import cayley, skew_cayley, skew_cayley_packed, stiefel_cayley


@cache
def optional(module: str, name: str) -> Any:
    """Returns a class of a package that may not be installed, or None."""
    try:
        return getattr(import_module(module), name)
    except ImportError:
        return None


def identity(X: Tensor) -> Tensor:
    return torch.eye(X.shape[-1], device=X.device, dtype=X.dtype)


class Product(torch.autograd.Function):
    """The floor of a square map: one matrix product in the forward pass and two in the backward pass, of
    arbitrary operands.
    """

    @staticmethod
    def forward(ctx: Any, X: Tensor, S: Tensor) -> Tensor:
        ctx.save_for_backward(X, S)
        return S @ S

    @staticmethod
    def backward(ctx: Any, G: Tensor) -> tuple[Tensor, None]:
        X, S = ctx.saved_tensors
        _ = S @ G @ S
        return X, None


class TallProduct(torch.autograd.Function):
    """The floor of a tall map: B^T B and B C^-1 in the forward pass, and three products of that size in the
    backward pass.
    """

    @staticmethod
    def forward(ctx: Any, X: Tensor) -> Tensor:
        C = X.mT @ X
        ctx.save_for_backward(X, C)
        return X @ C

    @staticmethod
    def backward(ctx: Any, G: Tensor) -> Tensor:
        X, C = ctx.saved_tensors
        return G @ C + X @ (X.mT @ G)


def torch_orthogonal(X: Tensor) -> Map:
    """torch's ``orthogonal`` at its cheapest, without the product that trivialization adds."""
    module = nn.Module()
    module.weight = nn.Parameter(X)
    return orthogonal(module, "weight", "cayley", use_trivialization=False).parametrizations.weight[0]


def geotorch(X: Tensor) -> Map | None:
    """geotorch's module. Its base point is the identity here, so that its values are comparable."""
    square = X.shape[-2] == X.shape[-1]
    make = optional("geotorch", "SO" if square else "Stiefel")
    if make is None:
        return None
    module = make(X.shape, triv="cayley").to(X.device, X.dtype)
    module.base.copy_(torch.eye(module.n))
    return module


def square(X: Tensor) -> dict[str, Map | None]:
    """A full X. The eager code is the tutorial's: ``Skew``, then ``CayleyMap`` with a buffer."""
    I, S = identity(X), X.clone()

    def eager(X: Tensor) -> Tensor:
        T = X.triu(1)
        A = T - T.mT
        return torch.linalg.solve(I + A, I - A)

    return {
        "eager": eager,
        "torch orthogonal": torch_orthogonal(X),
        "geotorch": geotorch(X),
        "fastparam": skew_cayley,
        "floor": lambda X: Product.apply(X, S),
    }


def large(X: Tensor) -> dict[str, Map | None]:
    """Above the orders of one block, against what a device computes best without our kernels: a solve that
    does not read the status of its factorisation.
    """
    I = identity(X)

    def eager(X: Tensor) -> Tensor:
        T = X.triu(1)
        A = T - T.mT
        return torch.linalg.solve_ex(I + A, I - A, check_errors=False).result

    return {**square(X), "eager": eager}


def signed(X: Tensor) -> dict[str, Map]:
    """With signs, half of them negative. The eager code multiplies its result by them."""
    D = (torch.arange(X.shape[-1], device=X.device) % 2 * 2 - 1).to(X.dtype).expand(X.shape[:-1])
    of_plain = square(X)
    eager = of_plain["eager"]
    assert eager is not None
    return {
        "eager": lambda X: eager(X) * D[..., None, :],
        "fastparam": lambda X: skew_cayley(X, 1.0, False, D),
        "floor": of_plain["floor"],
    }


def whole(A: Tensor) -> dict[str, Map]:
    """A skew-symmetric matrix given as a whole, as after another parametrization."""
    I, S = identity(A), A.clone()
    return {
        "eager": lambda A: torch.linalg.solve(I + A, I - A),
        "fastparam": cayley,
        "floor": lambda A: Product.apply(A, S),
    }


def packed(v: Tensor) -> dict[str, Map | None]:
    """The entries above the diagonal, as OFT stores them. The eager code is the tutorial's, on the unpacked
    vector.
    """
    n = math.isqrt(2 * v.shape[-1]) + 1
    rows, columns = torch.triu_indices(n, n, 1, device=v.device)
    I = torch.eye(n, device=v.device, dtype=v.dtype)
    S = v.new_ones(*v.shape[:-1], n, n)

    def eager(v: Tensor) -> Tensor:
        T = v.new_zeros(*v.shape[:-1], n, n)
        T[..., rows, columns] = v
        A = T - T.mT
        return torch.linalg.solve(I + A, I - A)

    def peft(neumann: bool) -> Map | None:
        module = optional("peft.tuners.oft.layer", "OFTRotationModule")
        if module is None:
            return None
        rotation = module(v.shape[0], v.shape[-1], n, n * v.shape[0]).to(v.device)
        return lambda v: rotation._cayley_batch(v, n, neumann, 5)

    return {
        "eager": eager,
        "PEFT exact": peft(neumann=False),
        "PEFT Neumann-5": peft(neumann=True),
        "fastparam": skew_cayley_packed,
        "floor": lambda v: Product.apply(v, S),
    }


def tall(X: Tensor) -> dict[str, Map | None]:
    """Orthonormal columns. The tutorial has none, so eager is torch's ``orthogonal``, which solves an n x n
    system.
    """
    return {
        "eager": torch_orthogonal(X),
        "geotorch": geotorch(X),
        "fastparam": partial(stiefel_cayley, alpha=-0.5, lower=True),
        "floor": TallProduct.apply,
    }


def gaussian(norm: float, vector: bool = False) -> Draw:
    """Returns a function that draws X whose A has a spectral norm of about ``norm``, in full or as the vector
    of the entries above the diagonal.
    """

    def draw(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
        n = shape[-1]
        wanted = (*shape[:-2], n * (n - 1) // 2) if vector else shape
        return (
            torch.randn(wanted, generator=generator, device=generator.device) * norm / (2 * shape[-2] ** 0.5)
        )

    return draw


def skew_gaussian(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    X = gaussian(1.0)(shape, generator).triu(1)
    return X - X.mT


def orthogonality(Q: Tensor) -> float:
    Q = Q.double() if Q.shape[-2] >= Q.shape[-1] else Q.double().mT
    return (Q.mT @ Q - identity(Q)).abs().max().item()


# The convention of each contender, exactly. Contenders that are not listed have that of eager.
TORCH = partial(_reference.stiefel_cayley, alpha=-0.5, lower=True)
MEANS = {"eager": _reference.skew_cayley, "torch orthogonal": TORCH, "geotorch": TORCH}
MEANS_PACKED = {
    "eager": _reference.skew_cayley_packed,
    "PEFT Neumann-5": partial(_reference.skew_cayley_packed, alpha=-1.0),
}

OURS = ("eager", "fastparam", "floor")
SQUARE = ("eager", "compile", "torch orthogonal", "geotorch", "fastparam", "floor")
PACKED = ("eager", "compile", "PEFT exact", "PEFT Neumann-5", "fastparam", "floor")
TALL = ("eager", "geotorch", "fastparam", "floor")


# The forward pass reads a triangle and writes Q. The backward pass reads Q and G, and writes the given
# triangle and zeros.
WORK = Work(words=(1.5, 4.5), flops=(2, 6))
WORK_WHOLE = Work(words=(2, 5), flops=(2, 6))
WORK_PACKED = Work(words=(1.5, 4), flops=(2, 6))


def full_op(name: str, norm: float) -> Op:
    return Op(name, square, SQUARE, gaussian(norm), MEANS, orthogonality, WORK)


def vector_op(name: str, norm: float) -> Op:
    return Op(name, packed, PACKED, gaussian(norm, vector=True), MEANS_PACKED, orthogonality, WORK_PACKED)


SKEW = full_op("skew_cayley", 1.0)
VECTOR = vector_op("skew_cayley_packed", 1.0)
STIEFEL = Op("stiefel_cayley", tall, TALL, gaussian(1.0), {"eager": TORCH}, orthogonality)
SIGNED = Op("skew_cayley signs", signed, OURS, gaussian(1.0), defect=orthogonality, work=WORK)
WHOLE = Op("cayley", whole, OURS, skew_gaussian, defect=orthogonality, work=WORK_WHOLE)

CALLS = ((4, 4), (16, 16))
BATCHES = (
    (16384, 4, 4),
    (4096, 8, 8),
    (1024, 16, 16),
    (456, 24, 24),
    (256, 32, 32),
    (114, 48, 48),
    (64, 64, 64),
)
CLIENTS = ((1024, 4, 4), (192, 16, 16), (40, 32, 32), (4, 320, 320))  # BOFT, LyCORIS, kohya
SINGLE = ((128, 128), (256, 256), (512, 512), (1024, 1024), (2048, 2048))
CLIENTS_PACKED = ((128, 32, 32), (448, 32, 32), (32, 96, 96), (172, 64, 64), (20, 256, 256))  # PEFT OFT, POET

CASES: list[Case] = [
    *grid(
        SKEW,
        CALLS + BATCHES + CLIENTS + SINGLE,
        quick=((4096, 8, 8), (256, 32, 32), (256, 256), (1024, 1024)),
    )
]
CASES += grid(SKEW, ((1024, 16, 16), (256, 256)), dtypes=(torch.float64,))
CASES += grid(
    full_op("skew_cayley norm 100", 100.0), ((1024, 16, 16), (256, 32, 32), (512, 512))
)  # the cost of its pivoting
CASES += grid(
    vector_op("skew_cayley_packed norm 0.1", 0.1), ((128, 32, 32),)
)  # where a truncated series is at its best
CASES += grid(VECTOR, BATCHES + CLIENTS_PACKED, quick=((1024, 16, 16), (128, 32, 32)))
CASES += grid(SIGNED, ((1024, 4, 4), (256, 16, 16), (256, 256)), quick=((256, 16, 16),))
ORDERS = (192, 256, 384, 512, 768, 1024, 2048, 4096)
LARGE = [(batch, n, n) for n in ORDERS for batch in (1, 8, 64) if batch * n * n <= 2**27]
for name, draw in (("norm 0.1", gaussian(0.1)), ("randn", Op.draw)):  # against a solve: NOTES.md
    op = Op(f"skew_cayley solve_ex {name}", large, OURS, draw, defect=orthogonality, work=WORK)
    CASES += grid(op, LARGE, passes=(False,), devices=GPUS, rounds=3)
CASES += grid(WHOLE, ((256, 32, 32), (256, 256)))
CASES += grid(STIEFEL, ((1024, 64), (64, 1024), (64, 256, 16)), quick=((1024, 64),))
CASES += grid(STIEFEL, ((4096, 128),), rounds=3)


@pytest.mark.parametrize(
    ("case", "contender"),
    [pytest.param(case, name, id=f"{case}-{name}") for case in CASES for name in case.op.contenders],
)
def test_cayley(case: Case, contender: str, compete: Callable[[Case, str], None]) -> None:
    compete(case, contender)
