"""Numbers up to the overflow threshold, NaN, inf and subnormal numbers, in a batch with harmless matrices."""

import math

import pytest
import torch
from families import skew_of
from orthogonality import defect
from table import F64, REAL, bits, ops

# Most orders are small; some are at the boundaries of paths.
ORDERS = [*range(1, 34)] * 2 + [*range(34, 71, 4), 128, 192, 257]
BATCH = 12
LAYOUTS = ("upper", "lower", "whole", "packed", "tall", "wide")
every_layout = pytest.mark.parametrize("layout", LAYOUTS)


def width(n):
    """The number of columns of a tall matrix with n rows: about half, about a third, one, or all but one, in
    turn.
    """
    return max(1, ((n + 1) // 2, (n + 2) // 3, 1, n - 1)[n % 5 % 4])


def hostile(X, generator):
    """Makes every other matrix hostile, each in another way. Returns which ones contain a NaN."""
    largest, tiny = torch.finfo(X.dtype).max, torch.finfo(X.dtype).tiny
    values = (
        math.nan,
        math.inf,
        -math.inf,
        largest,
        -largest,
        largest**0.5,
        largest**0.25,
        tiny / 8,
        0.0,
        -0.0,
    )
    nan = torch.zeros(len(X), dtype=torch.bool)
    for i in range(1, len(X), 2):
        value = values[torch.randint(len(values), (), generator=generator)]
        share = (0.03, 0.3, 1.0)[torch.randint(3, (), generator=generator)]
        there = torch.rand(X[i].shape, generator=generator) < share
        X[i] = torch.where(there, value * torch.sign(torch.randn(X[i].shape, generator=generator)), X[i])
        nan[i] = X[i].isnan().any()
    return nan


def run(layout, X, G, signs, alpha):
    """Value and gradient, for the tensor that the op of this layout takes."""
    n = X.shape[-1]
    X = X.clone().requires_grad_()
    if layout == "packed":
        rows, columns = torch.triu_indices(n, n, 1)
        Q = ops.skew_cayley_packed(X[..., rows, columns], alpha)
    elif layout == "whole":
        Q = ops.cayley(skew_of(X), alpha, signs)
    elif layout in ("upper", "lower"):
        Q = ops.skew_cayley(X, alpha, layout == "lower", signs)
    else:
        k = width(n)
        Q = ops.stiefel_cayley(X[..., :k] if layout == "tall" else X[..., :k, :], alpha, True, signs[..., :k])
        G = G[..., : Q.shape[-2], : Q.shape[-1]]
    return Q.detach(), torch.autograd.grad(Q, X, G)[0]


def same(actual, expected):
    """The same bits, except for the payload of a NaN."""
    nans = torch.equal(actual.isnan(), expected.isnan())
    return nans and torch.equal(bits(actual.nan_to_num()), bits(expected.nan_to_num()))


def read_by(layout, n):
    """The entries of X that the map reads."""
    ones, k = torch.ones(n, n, dtype=torch.bool), width(n)
    if layout == "lower":
        return ones.tril(-1)
    if layout in ("upper", "packed", "whole"):
        return ones.triu(1)
    keep = ones.tril(-1) if layout == "tall" else ones.triu(1)
    keep[:, k:] &= layout != "tall"
    keep[k:] &= layout != "wide"
    return keep


@pytest.mark.slow
@every_layout
def test_hostile_neighbours(layout):
    """Of more than 10^4 matrices, each one has the same bits as alone, whatever its neighbours are. A
    harmless one is orthogonal and its gradient is finite. NaN spreads only in its own matrix.
    """
    generator, count = torch.Generator().manual_seed(LAYOUTS.index(layout)), 0
    for dtype in REAL:
        eps = torch.finfo(dtype).eps
        for n in ORDERS:
            draw = lambda *shape: torch.randn(*shape, generator=generator, dtype=F64).to(dtype)  # noqa: B023
            X, G = draw(BATCH, n, n), draw(BATCH, n, n)
            alpha = (1.0, -0.5, 2.0)[n % 3]
            signs = draw(BATCH, n)
            nan = hostile(X, generator)
            nan &= (X.isnan() & read_by(layout, n)).flatten(1).any(1)
            Q, D = run(layout, X, G, signs, alpha)
            assert Q[nan].isnan().all(), (dtype, n)
            harmless = Q[::2]
            bound = (
                16 * math.sqrt(n) * eps if dtype in (torch.float32, F64) else 4 * math.sqrt(n) * n**0.5 * eps
            )
            assert defect(harmless) <= bound and D[::2].isfinite().all(), (dtype, n, defect(harmless), bound)
            for i in (0, 1, BATCH - 2, BATCH - 1) if n < 71 else (0, BATCH - 1):
                q, d = run(layout, X[i], G[i], signs[i], alpha)
                assert same(q, Q[i]) and same(d, D[i]), (dtype, n, i)
            count += BATCH
    assert count * len(LAYOUTS) >= 10**4
