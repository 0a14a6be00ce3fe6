"""The CUDA kernels of symmetric, skew and their adjoints: values for every choice of kernel, strides,
alignment, derivatives.

The tests of every op on a device are in test_cuda_*.py; tests/simt/test_simt.py runs device code without one.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import fastparam.functional as F
from fastparam import _reference as reference

OPS = ("symmetric", "symmetric_adjoint", "skew", "skew_adjoint")
MAPS = ("symmetric", "skew")
DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
SIZES = (
    0,
    1,
    2,
    3,
    5,
    7,
    8,
    9,
    12,
    15,
    16,
    17,
    24,
    31,
    32,
    33,
    40,
    63,
    64,
    65,
    96,
    100,
    127,
    128,
    130,
    257,
    520,
    1024,
)


def op(name: str):
    return getattr(torch.ops.fastparam, name).default


def check(name: str, X: Tensor, lower: bool) -> None:
    """Compares the op on X with the reference on the CPU. Both round each entry once, so they agree in every
    bit except the sign of a zero.
    """
    Y = op(name)(X, lower)
    assert Y.device == X.device and Y.is_contiguous() and Y.shape == X.shape and Y.dtype == X.dtype
    assert torch.equal(Y.cpu(), getattr(reference, name)(X.cpu(), lower))


# ---- values ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("lower", [False, True])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", OPS)
def test_values(name, dtype, lower, gpu):
    for n in SIZES:
        for batch in [(), (0,), (1,), (7,), (2, 3)] if n < 500 else [(), (2,)]:
            check(name, torch.randn(*batch, n, n, device=gpu).to(dtype), lower)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", OPS)
def test_large_batches_and_large_tiles(name, dtype, gpu):
    for batch, n in [
        (100_000, 3),
        (5003, 8),
        (1001, 16),
        (1001, 24),
        (601, 33),
        (601, 64),
        (301, 100),
        (1, 2056),
        (1, 2051),
    ]:
        check(name, torch.randn(batch, n, n, device=gpu).to(dtype), lower=False)


@pytest.mark.parametrize("lower", [False, True])
@pytest.mark.parametrize("n", [3, 16, 24, 40, 64, 130])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_other_triangle_is_not_used(dtype, n, lower, gpu):
    X = torch.randn(300, n, n, device=gpu).to(dtype)
    other = X.triu(1) if lower else X.tril(-1)
    poisoned = torch.where(other != 0, torch.nan, X)
    for name in MAPS:
        assert torch.equal(op(name)(poisoned, lower), op(name)(X, lower))


@pytest.mark.parametrize("n", [3, 16, 24, 130])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_skew_is_exact_in_every_bit(dtype, n, gpu):
    X = torch.randn(300, n, n, device=gpu).to(dtype)
    X[X.abs() < 0.3] = 0.0
    X[0, 0, -1] = torch.inf
    integers = {2: torch.int16, 4: torch.int32, 8: torch.int64}[X.element_size()]
    A = F.skew(X)
    off_diagonal = ~torch.eye(n, dtype=torch.bool, device=gpu)
    assert torch.equal(
        A.view(integers)[:, off_diagonal], (-A.mT).contiguous().view(integers)[:, off_diagonal]
    )
    assert (A.diagonal(dim1=-2, dim2=-1).contiguous().view(integers) == 0).all()


@pytest.mark.parametrize("name", OPS)
def test_nan_stays_in_its_matrix(name, gpu):
    X = torch.randn(50, 20, 20, device=gpu)
    X[7, 2, 5] = torch.nan
    bad = op(name)(X).isnan().flatten(1).any(1)
    assert bad[7] and bad.sum() == 1


def test_complex_runs_the_plain_expressions(gpu):
    X = torch.randn(3, 5, 5, device=gpu, dtype=torch.complex64)
    for name in OPS:
        check(name, X, lower=False)


# ---- strides and alignment -------------------------------------------------------------------------------


def views(n: int, dtype: torch.dtype, gpu: str) -> dict[str, Tensor]:
    def base(*shape: int) -> Tensor:
        return torch.randn(*shape, device=gpu).to(dtype)

    return {
        "transposed": base(3, n, n).mT,
        "cut from wider": base(3, n + 8, n + 8)[:, :n, :n],
        "cut at an odd column": base(3, n + 5, n + 5)[:, 2 : n + 2, 1 : n + 1],
        "misaligned": base(3 * n * n + 1)[1:].view(3, n, n),
        "one matrix for all": base(n, n).expand(5, n, n),
        "every other matrix": base(6, n, n)[::2],
        "batch transposed": base(2, 3, n, n).transpose(0, 1),
        "rows in steps": base(3, 2 * n, n)[:, ::2],
        "columns in steps": base(3, n, 2 * n)[..., ::2],
        "one row for all": base(3, 1, n).expand(3, n, n),
        "negated": torch._neg_view(base(3, n, n)),
    }


@pytest.mark.parametrize("n", [3, 8, 16, 32, 33, 64, 72, 130])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", OPS)
def test_views(name, dtype, n, gpu):
    for X in views(n, dtype, gpu).values():
        check(name, X, lower=n % 2 == 0)


# ---- derivatives, compilation ----------------------------------------------------------------------------


@pytest.mark.parametrize("n", [3, 18])
@pytest.mark.parametrize("name", MAPS)
def test_gradcheck(name, n, gpu):
    X = torch.randn(2, n, n, device=gpu, dtype=torch.float64, requires_grad=True)
    f = getattr(F, name)
    assert torch.autograd.gradcheck(f, X, check_forward_ad=True, fast_mode=n > 8)
    assert torch.autograd.gradgradcheck(f, X, fast_mode=n > 8)


@pytest.mark.slow
@pytest.mark.parametrize("name", MAPS)
def test_compile(name, gpu):
    torch._dynamo.reset()
    f = getattr(F, name)
    X = torch.randn(4, 33, 33, device=gpu, requires_grad=True)

    def loss(X):
        return (f(X) * 2).sin().sum()

    (expected,) = torch.autograd.grad(loss(X), X)
    (got,) = torch.autograd.grad(torch.compile(loss, fullgraph=True)(X), X)
    torch.testing.assert_close(got, expected)
