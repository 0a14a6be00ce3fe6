"""The errors of the Cayley map and its gradient, and the orthogonality of its results, over the families of
matrices.
"""

import math

import digits
import pytest
import torch
from families import every_family, every_tall_family, gaussian, scaled, skew_of
from orthogonality import defect, spectral
from table import F64, ops
from torch.autograd import gradgradcheck

from fastparam import _reference as reference

every_precision = pytest.mark.parametrize("dtype", [torch.float32, F64], ids=["float32", "float64"])
EPS = {torch.float32: torch.finfo(torch.float32).eps, F64: torch.finfo(F64).eps}
# Both sides of the paths of every instruction level, and of those of the GPU.
ORDERS = (1, 2, 3, 4, 5, 7, 8, 9, 13, 16, 17, 21, 24, 28, 29, 33, 48, 64, 65, 100, 129, 200, 300)
NORMS = (0.0, 0.01, 0.1, 1.0, 10.0, 100.0, 1e3, 1e4)


def distance(actual, truth):
    return spectral(actual.to(truth) - truth)


def both_ways(f, X, G):
    X = X.clone().requires_grad_()
    Q = f(X)
    return Q.detach(), torch.autograd.grad(Q, X, G.to(Q.dtype))[0]


def exact(f, X, G):
    """Value and gradient of a reference, with more digits than X has."""
    if X.dtype == torch.float32:
        return both_ways(f, X.to(F64), G)
    with digits.more():
        return both_ways(f, X, G)


@pytest.mark.slow
@every_family
@every_precision
def test_square(family, dtype, device):
    """The error is at most twice that of eager and, below norm 1 in float32, at most that of eager."""
    for n in ORDERS:
        batch = 3 if n < 100 else 1
        unit, floor = scaled(family(n, batch), 1.0), 8 * math.sqrt(n) * EPS[dtype]
        for norm in NORMS if n < 65 else NORMS[1::3]:
            X = (unit * norm).to(device, dtype)
            G = torch.randn(batch, n, n, dtype=dtype, device=device)
            Y, dY = exact(reference.skew_cayley, X, G)
            E, dE = both_ways(reference.skew_cayley, X, G)
            Q, dQ = both_ways(ops.skew_cayley, X, G)
            allowed = (lambda e: e) if norm < 1 and dtype == torch.float32 else (lambda e, f=floor: 2 * e + f)
            assert distance(Q, Y) <= allowed(distance(E, Y)), (n, norm)
            assert defect(Q) <= allowed(defect(E)), (n, norm)
            assert distance(dQ, dY) <= 2 * distance(dE, dY) + floor * max(1, dY.abs().max()), (n, norm)


@every_precision
@every_family
def test_orthogonal_where_no_digit_of_the_value_is_left(family, dtype, device):
    norms, bound = ((1e4, 1e6), 1e-4) if dtype == torch.float32 else ((1e6, 1e9, 1e12), 1e-9)
    for n in (2, 3, 4, 5, 8, 12, 13, 17, 32, 33, 50, 64, 65, 96, 150, 200, 300):
        unit = scaled(family(n), 1.0).to(device)
        for norm in norms:
            assert defect(ops.skew_cayley((unit * norm).to(dtype))) < bound, (n, norm)


@every_family
def test_three_ways_are_one(family, device):
    """A whole matrix, a triangle of X and packed entries give the same matrix, and alpha and -alpha are
    transposes.
    """
    close = {"rtol": 0, "atol": 1e-13}
    for n in (2, 7, 16, 33, 70, 140):
        A = scaled(family(n), 3.0).to(device)
        rows, columns = torch.triu_indices(n, n, 1)
        for alpha in (1.0, -0.5, 2.0):
            Q = ops.cayley(A, alpha)
            torch.testing.assert_close(ops.skew_cayley(A, alpha), Q, **close)
            torch.testing.assert_close(ops.skew_cayley(A, alpha, True), Q, **close)
            torch.testing.assert_close(ops.skew_cayley_packed(A[:, rows, columns], alpha), Q, **close)
            torch.testing.assert_close(ops.cayley(A, -alpha), Q.mT, **close)


def test_a_batch_of_skew_and_other_matrices(device):
    for n in (3, 20, 70):
        A = 0.1 * torch.randn(6, n, n, dtype=F64, device=device)
        A[::2] = skew_of(A[::2])
        torch.testing.assert_close(ops.cayley(A), reference.cayley(A), rtol=0, atol=1e-11)


# ---- tall matrices ---------------------------------------------------------------------------------------


@pytest.mark.slow
@every_tall_family
@pytest.mark.parametrize("n, k", [(3, 1), (5, 4), (40, 7), (64, 32), (256, 32), (130, 100)])
def test_tall(family, n, k, device):
    """The result is not worse than that of the n x n solve, and orthonormal up to rounding at every norm.

    Float64 has no wider type for a second computation, so the allowed error is that of a relative change of X
    by the rounding, of eps |X|. Complex matrices have no guard and lose as much of their orthonormality.
    """
    unit = scaled(family(n, k), 1.0)
    for dtype, norms in (
        (torch.float32, (0.01, 1.0, 10.0, 100.0, 1e4)),
        (F64, (1.0, 1e4, 1e8, 1e12)),
        (torch.complex128, (1.0, 1e4)),
    ):
        floor = 8 * math.sqrt(n) * torch.finfo(dtype).eps
        if dtype.is_complex:
            unit = unit * (0.6 + 0.8j)
        for norm in norms:
            X, G = (unit * norm).to(device, dtype), torch.randn(n, k, dtype=dtype, device=device)
            E, dE = both_ways(reference.stiefel_cayley, X, G)
            Q, dQ = both_ways(ops.stiefel_cayley, X, G)
            assert Q.shape == (n, k)
            rounding = 2 * EPS[F64] * norm if dtype != torch.float32 else 0
            assert defect(Q) <= floor + (rounding if dtype.is_complex else 0), (dtype, norm)
            Y, dY = exact(reference.stiefel_cayley, X, G)
            assert distance(Q, Y) <= max(2 * distance(E, Y), rounding) + floor, (dtype, norm)
            if norm <= 1e4:
                assert distance(dQ, dY) <= 2 * distance(dE, dY) + floor * max(1, dY.abs().max()), (
                    dtype,
                    norm,
                )


@pytest.mark.parametrize("dtype", [F64, torch.complex128], ids=str)
def test_all_derivatives_of_tall_matrices_without_full_rank(dtype, device):
    """The expression in double precision uses a QR factorization, which has no derivatives there."""
    one_row = torch.randn(1, 2, dtype=dtype, device=device).expand(7, 2)
    for X in (torch.zeros(7, 2, dtype=dtype, device=device), one_row.clone(), one_row[:3].clone()):
        X, f = X.requires_grad_(), lambda X: ops.stiefel_cayley(X, -0.5)
        assert gradgradcheck(f, X) and gradgradcheck(
            f, X, check_fwd_over_rev=True, check_rev_over_rev=False, check_undefined_grad=False
        )

        def gradient(X, f=f):
            return torch.autograd.grad((f(X).abs() ** 3).sum(), X, create_graph=True)[0]

        assert gradgradcheck(gradient, X + 0.1)


def test_both_sides_of_the_guard_in_one_batch(device):
    """Each matrix has the accuracy of its own norm: at most twice the error of eager, or twice that of a
    relative change of X by the rounding.
    """
    for n in (3, 8, 24, 33, 70):
        norms = [0.1, 1e3, 1.0, 1e5, 10.0] * 8
        X = (scaled(gaussian(n, 40), 1.0) * torch.tensor(norms, dtype=F64)[:, None, None]).to(device)
        G = torch.randn(40, n, n, dtype=F64, device=device)
        (Y, dY), (E, dE) = exact(reference.skew_cayley, X, G), both_ways(reference.skew_cayley, X, G)
        (Q, dQ), floor = both_ways(ops.skew_cayley, X, G), 8 * math.sqrt(n) * EPS[F64]
        for ours, eager, truth in ((Q, E, Y), (dQ, dE, dY)):
            for q, e, y, norm in zip(ours, eager, truth, norms, strict=True):
                size = max(1, y.abs().max())
                allowed = max(2 * distance(e, y), 2 * EPS[F64] * norm * size) + floor * size
                assert distance(q, y) <= allowed, (n, norm)
