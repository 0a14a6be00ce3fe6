"""The CUDA kernels of the exponentials: values for every choice of the kernel, with matrices side by side
that are squared often and seldom.

Tests of every op on a device are in the other test_cuda_*.py. tests/simt runs device code without a device.
"""

from __future__ import annotations

import pytest
import torch
from orthogonality import defect
from table import bits, ops
from torch import Tensor

# The sizes are around those at which the kernel or its shape changes.
SIZES = (1, 2, 3, 4, 5, 8, 9, 16, 17, 24, 25, 31, 32, 33, 48, 64, 65, 100, 128, 200)
DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
TRIANGLES = pytest.mark.parametrize("word", ["skew_exp", "symmetric_exp"])


def drawn(n: int, dtype: torch.dtype, largest: float, batch: int = 12) -> tuple[Tensor, Tensor]:
    """Returns matrices with norms from 0 to about ``largest``, and directions."""
    X, G = torch.randn(2, batch, n, n, dtype=torch.float64) / (2 * n**0.5)
    norms = torch.cat([torch.zeros(1), torch.logspace(-3, 0, batch - 1)]) * largest
    order = torch.randperm(batch)
    return (X * norms[order, None, None]).to(dtype), G.to(dtype)


def near(actual: Tensor, expected: Tensor, norm: float) -> None:
    """Compares with the CPU's kernels, whose error may be as large."""
    eps = torch.finfo(actual.dtype).eps
    size = torch.linalg.matrix_norm(expected).clamp_min(torch.finfo(actual.dtype).tiny)
    error = torch.linalg.matrix_norm(actual.cpu() - expected) / size
    assert (error <= (16 * actual.shape[-1] ** 0.5 + 16 * norm) * eps).all()


@DTYPES
@pytest.mark.parametrize("n", SIZES)
@TRIANGLES
def test_triangles(word, n, dtype, gpu):
    largest = 30.0 if word == "skew_exp" else 8.0
    X, G = drawn(n, dtype, largest)
    forward, backward = getattr(ops, word).default, getattr(ops, f"{word}_backward").default
    for lower in (False, True):
        near(forward(X.to(gpu), lower), forward(X, lower), largest)
        near(backward(G.to(gpu), X.to(gpu), lower), backward(G, X, lower), largest)


@DTYPES
@pytest.mark.parametrize("n", SIZES)
def test_whole_matrices(n, dtype, gpu):
    A, E = drawn(n, dtype, 8.0)
    near(ops.matrix_exp.default(A.to(gpu)), ops.matrix_exp.default(A), 8.0)
    near(ops.exp_frechet.default(A.to(gpu), E.to(gpu)), ops.exp_frechet.default(A, E), 8.0)


@DTYPES
@pytest.mark.parametrize("n", [2, 3, 4, 8, 16, 24, 32, 33, 100])
def test_orthogonal_for_every_finite_matrix(n, dtype, gpu):
    for power in (0, 3, 4, 6, 12, 30, 37):
        X = torch.randn(5, n, n, dtype=dtype, device=gpu).clamp(-3, 3) * (10.0**power / 3)
        assert defect(ops.skew_exp.default(X)) <= (4e-5 if dtype == torch.float32 else 3e-13), power


@DTYPES
@pytest.mark.parametrize("n", [3, 8, 16, 24, 32, 33, 70])
def test_neighbours_change_no_bit(n, dtype, gpu):
    """The norms go from 0 to 1e6, and some matrices are not finite. Batches of one have the same bits."""
    X, G = drawn(n, dtype, 1e6, batch=40)
    X[7, 0, -1], X[8, 0, -1] = torch.nan, torch.inf
    X, G = X.to(gpu), G.to(gpu)
    for f in (lambda X, G: ops.skew_exp.default(X), lambda X, G: ops.skew_exp_backward.default(G, X)):
        together = f(X, G)
        bad = together.isnan().flatten(1).any(1)
        assert bad[7] and bad[8] and bad.sum() == 2
        alone = torch.cat([f(x[None], g[None]) for x, g in zip(X, G, strict=True)])
        assert torch.equal(bits(together), bits(alone))


@TRIANGLES
@pytest.mark.parametrize("n", [5, 20, 40])
def test_the_other_triangle_is_not_used(word, n, gpu):
    X, G = (t.to(gpu) for t in drawn(n, torch.float32, 1.0))
    for lower in (False, True):
        other = torch.ones(n, n, dtype=torch.bool, device=gpu)
        other = other.triu(1) if lower else other.tril(-1)
        poisoned = X.masked_fill(other, torch.nan)
        for f in (
            lambda X, lower: getattr(ops, word).default(X, lower),
            lambda X, lower: getattr(ops, f"{word}_backward").default(G, X, lower),
        ):
            assert torch.equal(f(poisoned, lower), f(X, lower))


def test_large_batches(gpu):
    """The batches have more matrices than a launch has groups or teams at a time."""
    for batch, n in ((100_003, 3), (5001, 16), (1001, 32), (1501, 40), (77, 150)):
        X, _ = drawn(n, torch.float32, 3.0, batch if gpu == "cuda" else 20)
        near(ops.skew_exp.default(X.to(gpu)), ops.skew_exp.default(X), 3.0)
