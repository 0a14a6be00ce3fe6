"""Every path of the CPU kernels of the Cayley map, and the crossovers between them."""

import pytest
import torch
from table import F64, ops, python

from fastparam import _C
from fastparam import _reference as reference

F32 = torch.float32
# Both sides of every crossover: closed form (4), lanes (12, 16, 20, 28), whole vectors, one leaf (64),
# blocks, threads that share a matrix (192), gradients that begin with G^T (256), and blocks of blocks (768).
SIZES = (1, 2, 3, 4, 5, 8, 9, 12, 13, 16, 17, 20, 21, 24, 28, 29, 31, 32, 33, 48, 49, 64, 65, 68)
SIZES += (96, 100, 128, 129, 191, 192, 200, 256, 300, 600, 790)
every_precision = pytest.mark.parametrize("dtype", [F32, F64], ids=["float32", "float64"])


@every_precision
def test_every_layout(dtype):
    """All layouts give the same matrix, entries that are not read can be NaN, and the gradients are those of
    the ATen expressions.
    """
    for n in SIZES:
        batch = (2, 3) if n < 600 else (1, 2)
        X, G = torch.randn(*batch, n, n, dtype=dtype) / n**0.5, torch.randn(*batch, n, n, dtype=dtype)
        i, j = torch.triu_indices(n, n, 1)
        hidden = torch.where(torch.ones(n, n).triu(1) > 0, X, float("nan"))
        eps = n**0.5 * torch.finfo(dtype).eps
        Q = ops.skew_cayley(hidden, 0.7)
        torch.testing.assert_close(Q, reference.skew_cayley(X, 0.7), rtol=0, atol=64 * eps)
        A = X.triu(1) - X.triu(1).mT
        assert torch.equal(Q, ops.skew_cayley(-hidden.mT, 0.7, True)), n
        assert torch.equal(Q, ops.skew_cayley_packed(X[..., i, j], 0.7)), n
        assert torch.equal(Q, ops.cayley(A, 0.7)), n
        whole = reference.cayley_backward(G.double(), Q.double(), 0.7)
        upper = (whole - whole.mT).triu(1)
        close = {"rtol": 0, "atol": 32 * eps, "check_dtype": False}
        torch.testing.assert_close(ops.cayley_backward(G, Q, 0.7), whole, **close)
        torch.testing.assert_close(ops.skew_cayley_backward(G, Q, 0.7, False), upper, **close)
        torch.testing.assert_close(ops.skew_cayley_backward(G, Q, 0.7, True), -upper.mT, **close)
        torch.testing.assert_close(ops.skew_cayley_packed_backward(G, Q, 0.7), upper[..., i, j], **close)


@every_precision
def test_the_gradient_with_a_base(dtype):
    """It is the gradient of the map for base^T G, of small and of large matrices."""
    for n in SIZES:
        batch = (2, 3) if n < 600 else (1, 2)
        X, G, start = (torch.randn(*batch, n, n, dtype=dtype) for _ in range(3))
        base = torch.linalg.qr(start).Q
        for lower, norm in ((False, 0.7), (True, 20)):
            Y = (X * (norm / n**0.5)).requires_grad_()
            W = ops.trivialized_cayley(Y, base, -0.5, lower)
            torch.testing.assert_close(W.detach(), base @ ops.skew_cayley(Y.detach(), -0.5, lower))
            (D,) = torch.autograd.grad(W, Y, G)
            wide = reference.skew_cayley(Y.detach().double(), -0.5, lower)
            exact = reference.skew_cayley_backward(base.mT.double() @ G.double(), wide, -0.5, lower)
            close = {"rtol": 0, "atol": 64 * n**0.5 * torch.finfo(dtype).eps, "check_dtype": False}
            torch.testing.assert_close(D, exact, **close)


def test_a_base_that_needs_a_gradient():
    for n in (3, 40):
        X, B = (torch.randn(n, n, dtype=F64, requires_grad=True) for _ in range(2))
        G = torch.randn(n, n, dtype=F64)
        ours = torch.autograd.grad(ops.trivialized_cayley(X, B, 1.0, False), (X, B), G)
        torch.testing.assert_close(
            ours, torch.autograd.grad(reference.trivialized_cayley(X, B, 1.0, False), (X, B), G)
        )


def test_opcheck_of_a_product_with_a_base():
    """A mode that looks at calls below autograd sees ops that return no argument."""
    for n in (3, 40):
        X, base = torch.randn(n, n, requires_grad=True), torch.randn(n, n)
        torch.library.opcheck(ops.trivialized_cayley.default, (X, base))


def test_parameter_and_result_may_be_changed_in_place():
    """Neither the parameter nor the product with a base is kept for the gradient."""
    for n in (3, 40):
        X, G = torch.randn(n, n, dtype=F64, requires_grad=True), torch.randn(n, n, dtype=F64)
        base = torch.linalg.qr(torch.randn(n, n, dtype=F64)).Q
        once, twice = (ops.trivialized_cayley(X, base, 1.0, False) for _ in range(2))
        twice.mul_(2)
        expected = torch.autograd.grad(once, X, 2 * G)
        with torch.no_grad():
            X.zero_()
        torch.testing.assert_close(torch.autograd.grad(twice, X, G), expected)


@every_precision
def test_strides(dtype):
    for n in (3, 8, 24, 33, 65, 200):
        X, G = torch.randn(2, 4, n, n, dtype=dtype), torch.randn(4, n, n, dtype=dtype)
        window = torch.cat([X[0], X[0]], -1)[..., 1 : n + 1]
        apart = X[0].transpose(0, 1).contiguous().transpose(0, 1)
        for x in (X[0].mT, window, apart, X[:1, 0].expand(4, n, n)):
            Q = ops.skew_cayley(x)
            assert Q.is_contiguous() and torch.equal(Q, ops.skew_cayley(x.contiguous()))
            backward = ops.skew_cayley_backward(G.mT.contiguous(), Q.mT.contiguous())
            assert torch.equal(ops.skew_cayley_backward(G.mT, Q.mT), backward)


@pytest.mark.parametrize("n", [2, 5, 24, 33, 65, 192])
def test_whole_matrices_that_are_not_skew(n):
    A = torch.randn(5, n, n) / n**0.5
    A[2] = A[2].triu(1) - A[2].triu(1).mT
    Q = ops.cayley(A, 0.1)
    assert torch.equal(Q[2], ops.skew_cayley(A[2], 0.1))
    half = A.bfloat16()
    assert torch.equal(ops.cayley(half[2], 0.1), ops.skew_cayley(half[2], 0.1))
    torch.testing.assert_close(ops.cayley(half, 0.1), Q.bfloat16(), rtol=0.1, atol=0.1)
    torch.testing.assert_close(Q, reference.cayley(A, 0.1), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("shape", [(0, 0), (3, 0, 0), (0, 4, 4), (0, 100, 100)], ids=str)
def test_empty(shape):
    X = torch.empty(shape)
    assert ops.skew_cayley(X).shape == ops.cayley(X).shape == ops.skew_cayley_backward(X, X).shape == shape


def test_order_one():
    X, one = torch.full((5, 1, 1), float("nan")), torch.ones(5, 1, 1)
    assert torch.equal(ops.skew_cayley(X), one)
    assert torch.equal(ops.skew_cayley_packed(torch.empty(5, 0)), one)
    assert torch.equal(ops.skew_cayley_backward(one, one), torch.zeros(5, 1, 1))
    torch.testing.assert_close(ops.cayley(torch.full((5, 1, 1), 3.0)), torch.full((5, 1, 1), -0.5))
    torch.testing.assert_close(ops.cayley_backward(one, one), torch.full((5, 1, 1), -2.0))


def test_no_matrix_of_order_n_for_a_tall_one():
    """The largest allocation of forward and backward has the size of X (in float64)."""
    n, k = 3000, 4
    X = torch.randn(n, k, requires_grad=True)
    with torch.profiler.profile(
        profile_memory=True, activities=[torch.profiler.ProfilerActivity.CPU]
    ) as profile:
        ops.stiefel_cayley(X).sum().backward()
    largest = max(abs(event.cpu_memory_usage) for event in profile.events())
    assert 0 < largest <= 16 * n * k * 8


LEVEL = """
import numpy, torch, fastparam
from fastparam import _reference as reference

ops = torch.ops.fastparam
for dtype in (torch.float32, torch.float64, torch.bfloat16):
    for batch, n in [(1000, 3), (300, 8), (200, 17), (50, 33), (9, 65), (3, 200), (1, 600)]:
        X, G = numpy.random.default_rng(1).standard_normal((2, batch, n, n)) / n**0.5
        X, G = torch.from_numpy(X / 2).to(dtype), torch.from_numpy(G).to(dtype)
        if batch > 1:
            X[::7] *= 1e3  # fails the guard
        Q = ops.skew_cayley(X)
        D = ops.skew_cayley_backward(G, Q)
        truth = reference.skew_cayley(X.double())
        atol = max(torch.finfo(dtype).eps, 1e-13) * 16 * n ** 0.5
        some = slice(min(1, batch - 1), 7)  # those that pass it
        torch.testing.assert_close(Q.double()[some], truth[some], rtol=0, atol=atol)
        if dtype == torch.float32:  # rounded inside: not redone in float64, as if the guard failed
            assert not torch.equal(Q[some], truth[some].float()), n
        truth = reference.skew_cayley_backward(G.double(), Q.double())
        torch.testing.assert_close(D.double(), truth, rtol=0, atol=atol)
"""


@pytest.mark.slow
@pytest.mark.parametrize("level", ["default", "avx2", "avx512"])
def test_every_level(level):
    if level not in _C.supported_levels():
        pytest.skip(f"this CPU has no {level}")
    done = python(LEVEL, ATEN_CPU_CAPABILITY=level)
    assert done.returncode == 0, done.stderr
