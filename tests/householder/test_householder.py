"""Products of reflections against torch's, for shapes, norms and special values."""

import math

import digits
import pytest
import torch
from orthogonality import defect
from table import F64, bits, ops, python

import fastparam
from fastparam import _reference
from fastparam.functional import householder

DTYPES = pytest.mark.parametrize("dtype", [torch.float32, F64], ids=str)
# The sizes are on both sides of those of vectors, strips and panels, and beyond those of the kernels.
SHAPES = [(1, 1), (2, 2), (5, 3), (8, 8), (17, 17), (33, 16), (40, 31), (65, 64), (70, 70), (130, 65)]
LARGE = [(150, 150), (300, 5), (700, 70), (513, 513)]


def theirs(X):
    A = X.tril(-1)
    return torch.linalg.householder_product(A, 2 / (1 + A.square().sum(-2)))


def gradient(f, X, G):
    X = X.detach().requires_grad_()
    return torch.autograd.grad(f(X), X, G)[0]


def relative(Y, truth):
    return torch.linalg.matrix_norm(Y.double() - truth) / torch.linalg.matrix_norm(truth).clamp_min(1e-30)


@DTYPES
@pytest.mark.parametrize("shape", SHAPES + LARGE, ids=str)
def test_values_and_gradients(shape, dtype):
    """Allows twice torch's error and some rounding, for several norms of the columns."""
    eps = torch.finfo(dtype).eps
    rounding = 8 * math.sqrt(shape[0]) * eps
    for size in (0.0, 0.1, 1.0, 3.9, 30.0):
        batch = () if shape in LARGE else (3,)
        X = (size / shape[0] ** 0.5 * torch.randn(*batch, *shape, dtype=F64)).to(dtype)
        G = torch.randn_like(X)
        Q, g = householder(X), ops.householder_backward.default(G, X)
        wide = dtype == torch.float32
        truth = theirs(X.double())
        slope = gradient(theirs, X.double(), G.double())
        error = torch.linalg.matrix_norm(theirs(X).double() - truth) if wide else truth.new_zeros(())
        assert (torch.linalg.matrix_norm(Q.double() - truth) <= 2 * error + rounding * shape[1] ** 0.5).all()
        assert defect(Q) <= 2 * defect(theirs(X)) + rounding
        worst = relative(gradient(theirs, X, G), slope) if wide else truth.new_zeros(())
        # The gradient at long columns is small compared to G, from which it is computed.
        allowed = 2 * worst + 4 * (1 + size) * rounding
        assert (relative(g, slope) <= allowed).all(), (size, relative(g, slope))


@pytest.mark.parametrize("norm", [0.5, 1.0, 4.0, 16.0, 1600.0])
@pytest.mark.parametrize("shape", [(9, 9), (64, 64), (256, 256), (200, 40)], ids=str)
def test_columns_that_are_nearly_equal(shape, norm):
    """The compact form is ill conditioned, and computed in double. float32 is as accurate as torch's."""
    X = torch.ones(shape, dtype=F64) + 1e-4 * torch.randn(shape, dtype=F64)
    X = (norm / shape[0] ** 0.5 * X).float()
    G = torch.randn(shape)
    truth, slope = theirs(X.double()), gradient(theirs, X.double(), G.double())
    rounding = 8 * math.sqrt(shape[0]) * 2.0**-23
    assert relative(householder(X), truth) <= 2 * relative(theirs(X), truth) + rounding
    assert defect(householder(X)) <= 2 * defect(theirs(X)) + rounding
    g = ops.householder_backward.default(G, X)
    assert relative(g, slope) <= 2 * relative(gradient(theirs, X, G), slope) + rounding
    assert defect(householder(X.double())) <= 1e-10


def test_more_digits():
    """Compares double precision with a reference of more digits."""
    for shape in ((6, 6), (40, 17)):
        X, G = torch.randn(2, 3, *shape, dtype=F64) / shape[0] ** 0.5
        with digits.more():
            Q, g = _reference.householder(X), _reference.householder_backward(G, X)
        assert (householder(X) - Q).abs().max() <= 1e-14
        assert (ops.householder_backward.default(G, X) - g).abs().max() <= 1e-13


@DTYPES
@pytest.mark.parametrize("shape", [(3, 3), (20, 7), (70, 70)], ids=str)
def test_matrices_change_no_bit_of_their_neighbours(shape, dtype):
    X = torch.randn(7, *shape, dtype=dtype) * torch.logspace(-3, 3, 7, dtype=dtype)[:, None, None]
    G = torch.randn_like(X)
    X[3, -1, 0] = math.nan
    X[5, 1, 0] = math.inf
    for f in (householder, lambda X: ops.householder_backward.default(G[: len(X)], X)):
        together = f(X)
        finite = torch.tensor([i not in (3, 5) for i in range(7)])
        assert together[finite].isfinite().all() and together[3].isnan().any() and together[5].isnan().any()
        for i in range(7):
            alone = ops.householder_backward.default(G[i], X[i]) if f is not householder else f(X[i])
            assert torch.equal(bits(together[i]), bits(alone))


@DTYPES
def test_nothing_is_read_on_the_diagonal_and_above(dtype):
    for shape in ((5, 5), (40, 33), (100, 70)):
        X, G = torch.randn(2, 2, *shape, dtype=dtype) / shape[0] ** 0.5
        hole = torch.where(torch.ones(shape, dtype=torch.bool).triu(), math.nan, X)
        assert torch.equal(householder(hole), householder(X))
        g = ops.householder_backward.default(G, hole)
        assert torch.equal(g, ops.householder_backward.default(G, X)) and not g.triu().any()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_types_are_computed_in_float32(dtype):
    X, G = torch.randn(2, 3, 30, 20).to(dtype)
    assert torch.equal(householder(X), householder(X.float()).to(dtype))
    g = ops.householder_backward.default(G, X)
    assert torch.equal(g, ops.householder_backward.default(G.float(), X.float()).to(dtype))


DIRTY = """
import torch
from table import ops

for dtype in (torch.float32, torch.float64):
    for n, k in ((1, 1), (3, 2), (9, 9), (17, 17), (40, 31), (66, 66), (90, 20)):
        X, G = torch.randn(2, 3, n, k, dtype=dtype) / n**0.5
        X[1] *= 100
        for f in (lambda: ops.householder(X), lambda: ops.householder_backward(G, X)):
            results = []
            for rest in (float("nan"), 0.5):
                for size in range(1, 9):  # fills the memory of the next work space
                    torch.full((size * (n + 16) * (k + 16),), rest, dtype=dtype)
                results.append(f())
            assert results[0].isfinite().all() and torch.equal(*results), (dtype, n, k)
print("right")
"""


@pytest.mark.slow
@pytest.mark.parametrize("level", ["default", "avx2", "avx512"])
def test_no_level_reads_what_it_has_not_written(level):
    if level not in fastparam._C.supported_levels():
        pytest.skip(f"this CPU has no {level}")
    done = python(DIRTY, ATEN_CPU_CAPABILITY=level)
    assert done.stdout.strip() == "right", done.stderr
