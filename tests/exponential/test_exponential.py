"""Accuracy of the exponentials at all norms against more digits, structure, and matrices side by side."""

import math

import digits
import pytest
import torch
from families import every_family, every_tall_family, gaussian, scaled
from orthogonality import defect
from table import F64, bits, ops, python

import fastparam
from fastparam import _reference
from fastparam.functional import exp_frechet, matrix_exp, skew_exp, stiefel_exp, symmetric_exp

DTYPES = pytest.mark.parametrize("dtype", [torch.float32, F64], ids=str)
ORDERS = (1, 2, 3, 4, 5, 7, 8, 12, 16, 17, 24, 33, 64, 65, 100, 130)
NORMS = (1e-8, 0.01, 0.1, 0.5, 1.0, 2.0, 5.0, 10.0, 100.0, 1000.0)


def symmetric_of(X):
    return X.triu() + X.triu(1).mT


def accurate(result, truth, theirs, n, eps, norm):
    """Allows twice torch's error, 8 sqrt(n) eps, and four times the effect of rounding the matrix."""
    size = torch.linalg.matrix_norm(truth)
    error, allowed = (torch.linalg.matrix_norm(Y.double() - truth) / size for Y in (result, theirs))
    assert (error <= 2 * allowed + (8 * math.sqrt(n) + 4 * norm) * eps).all(), (n, norm, error, allowed)


def exact(f, *X, **options):
    with digits.more():
        return f(*(x.double() for x in X), **options)


@DTYPES
@pytest.mark.parametrize("n", ORDERS)
def test_skew(n, dtype):
    eps = torch.finfo(dtype).eps
    for norm in NORMS:
        X = scaled(gaussian(n), norm).to(dtype)
        Q, truth = skew_exp(X), exact(_reference.skew_exp, X)
        accurate(Q, truth, torch.matrix_exp(X.triu(1) - X.triu(1).mT), n, eps, norm)
        assert defect(Q) <= (4e-5 if dtype == torch.float32 else 3e-13)


@DTYPES
@pytest.mark.parametrize("n", ORDERS)
def test_symmetric_and_general(n, dtype):
    """The norms are limited to those at which exp(A) determines all its eigenvalues."""
    eps = torch.finfo(dtype).eps
    for norm in NORMS[: NORMS.index(10.0) + 1]:
        X = scaled(torch.randn(3, n, n, dtype=F64), norm).to(dtype)
        A = symmetric_of(X)
        P = symmetric_exp(X)
        accurate(P, exact(_reference.symmetric_exp, X), torch.matrix_exp(A), n, eps, norm)
        assert torch.equal(P, P.mT)
        accurate(matrix_exp(X), exact(_reference.matrix_exp, X), torch.matrix_exp(X), n, eps, norm)


@DTYPES
@pytest.mark.parametrize("n", ORDERS[:-3])
def test_derivatives(n, dtype):
    """The size of the direction does not matter. In torch's derivative it is a part of the norm."""
    eps = torch.finfo(dtype).eps
    for norm in NORMS[: NORMS.index(10.0) + 1]:
        A, E = (scaled(torch.randn(2, n, n, dtype=F64), size).to(dtype) for size in (norm, 1e3))
        truth = exact(_reference.exp_frechet, A, E)
        accurate(exp_frechet(A, E), truth, truth, n, eps, norm)


@DTYPES
@pytest.mark.parametrize("n", [2, 3, 4])
def test_rotations(n, dtype):
    """The angles include zero, tiny ones, and those from 2^13 (float64: 2^20) on, which take the path of
    other orders. Gradients are tested for the entries on either side of the diagonal.
    """
    eps = torch.finfo(dtype).eps
    norms = (0.0, 1e-30, 1e-20, 1e-8, 0.1, 0.999, 1.001, math.pi / 2, math.pi, 2 * math.pi, 300.0, 1e4, 3e6)
    A = torch.stack([scaled(gaussian(n, batch=5), norm or 1.0) * bool(norm) for norm in norms])
    X, G = A.to(dtype), torch.randn(A.shape, dtype=dtype)
    for lower in (False, True):
        Q, truth = skew_exp(X, lower), exact(_reference.skew_exp, X, lower=lower)
        L = ops.skew_exp_backward.default(G, X, lower)
        derivative = exact(_reference.skew_exp_backward, G, X, lower=lower)
        for i, norm in enumerate(norms):
            allowed = (8 * math.sqrt(n) + 4 * norm) * eps
            assert (Q[i] - truth[i]).abs().max() <= allowed, norm
            error = torch.linalg.matrix_norm(L[i] - derivative[i]) / torch.linalg.matrix_norm(G[i])
            assert error.max() <= allowed, norm
        assert torch.equal(Q[0], torch.eye(n, dtype=dtype).expand_as(Q[0]))


@DTYPES
@pytest.mark.parametrize("n", [2, 3, 4, 5, 16, 33, 100])
def test_orthogonal_for_every_finite_matrix(n, dtype):
    for power in (3, 4, 6, 8, 12, 20, 30, 38):
        X = gaussian(n).to(dtype).clamp(-3, 3) * (10.0**power / 3)
        assert X.isfinite().all()
        assert defect(skew_exp(X)) <= (4e-5 if dtype == torch.float32 else 3e-13), power


@DTYPES
@pytest.mark.parametrize("n", [5, 8, 16, 17, 48, 200, 256])
def test_orthogonal_with_as_many_squarings_as_go_unpolished(n, dtype):
    """Each squaring doubles the defect, which is corrected only if there are more than a few squarings."""
    single = 0.1 * torch.sin(torch.arange(n * n, dtype=torch.float64)).view(n, n)  # and one large entry
    for norm in (10.0, 15.0, 20.0, 30.0, 41.0, 80.0, 100.0, 127.0, 150.0, 164.0, 200.0, 254.0, 290.0, 328.0):
        single[0, -1] = norm
        for X in (scaled(gaussian(n), norm), single):
            assert defect(skew_exp(X.to(dtype))) <= (4e-5 if dtype == torch.float32 else 3e-13), norm


@DTYPES
def test_order_one_is_the_exponential_of_a_number(dtype):
    X = torch.linspace(-60, 60, 241, dtype=dtype).view(-1, 1, 1)
    expected = X.double().exp()
    for f in (matrix_exp, symmetric_exp):
        Y, L = torch.func.jvp(f, (X,), (X,))
        for actual, of in ((Y, expected), (L, expected * X.double())):
            torch.testing.assert_close(actual.double(), of, rtol=2 * torch.finfo(dtype).eps, atol=0)
    assert torch.equal(skew_exp(X), torch.ones_like(X))


@every_family
def test_families_of_skew_matrices(family):
    for n in (9, 40):
        for norm in (1.0, 30.0):
            X = scaled(family(n), norm).float()
            accurate(skew_exp(X), exact(_reference.skew_exp, X), torch.matrix_exp(X), n, 2.0**-23, norm)


@pytest.mark.parametrize("f", [matrix_exp, skew_exp, symmetric_exp], ids=lambda f: f.__name__)
@pytest.mark.parametrize("n", [1, 3, 8, 16, 17, 40])
def test_what_is_not_finite_stays_in_its_matrix(f, n):
    X = torch.randn(40, n, n)
    for place, value in ((3, math.nan), (17, math.inf), (38, -math.inf)):
        X[place, 0, -1] = value
    finite = torch.tensor([i not in (3, 17, 38) for i in range(40)])
    if f is skew_exp and n == 1:  # the diagonal is not read
        finite[:] = True
    for lower in (False, True):
        arguments = () if f is matrix_exp else (lower,)
        given = X.mT if lower else X
        Y = f(given, *arguments)
        assert Y[finite].isfinite().all() and Y[~finite].isnan().all()
        assert torch.equal(Y[finite], f(given[finite], *arguments))
        word = "exp_frechet" if f is matrix_exp else f"{f.__name__}_backward"
        tensors = (given, torch.ones_like(X)) if f is matrix_exp else (torch.ones_like(X), given)
        L = getattr(ops, word).default(*tensors, *arguments)
        assert L[finite].isfinite().all()
        read = torch.ones(n, n, dtype=torch.bool)  # the gradient is zero elsewhere
        if f is not matrix_exp:
            read = read.tril(-(f is skew_exp)) if lower else read.triu(int(f is skew_exp))
        assert torch.equal(L[~finite].isnan(), read.expand(L[~finite].shape))


@DTYPES
@pytest.mark.parametrize("n", [2, 3, 4, 8, 12, 16])
def test_neighbours_of_other_norms_change_no_bit(n, dtype):
    """Each of the matrices side by side is squared as often as it needs."""
    X = torch.randn(9, n, n, dtype=dtype) * torch.logspace(-3, 7, 9, dtype=dtype)[:, None, None]
    G = torch.randn_like(X)
    for f in (
        lambda X, G: skew_exp(X),
        lambda X, G: ops.skew_exp_backward.default(G, X),
        lambda X, G: symmetric_exp(X / 1e6),
        lambda X, G: exp_frechet(X / 1e6, G),
    ):
        together = f(X, G)
        alone = torch.stack([f(x[None], g[None])[0] for x, g in zip(X, G, strict=True)])
        assert torch.equal(bits(together), bits(alone))


@DTYPES
@pytest.mark.parametrize("n", [1, 2, 3, 9, 16, 17, 40])
def test_small_positive_definite_matrices_keep_their_digits(n, dtype):
    """Variances of 1e-9 are common. exp(A) - I could not represent them."""
    for shift in (-1.0, -5.0, -20.0, -60.0):
        X = 0.3 * torch.randn(3, n, n, dtype=dtype) / n**0.5
        X.diagonal(dim1=-2, dim2=-1).add_(shift)
        truth = exact(_reference.symmetric_exp, X)
        error = torch.linalg.matrix_norm(symmetric_exp(X).double() - truth) / torch.linalg.matrix_norm(truth)
        assert (error <= 16 * (math.sqrt(n) + abs(shift) + 1) * torch.finfo(dtype).eps).all()


def test_extreme_entries():
    large = torch.tensor([[0.0, 1e30], [0.0, 0.0]])
    torch.testing.assert_close(matrix_exp(large), torch.tensor([[1.0, 1e30], [0.0, 1.0]]))
    assert torch.equal(matrix_exp(torch.full((1, 1), -1000.0)), torch.zeros(1, 1))
    assert torch.equal(matrix_exp(torch.full((1, 1), 1000.0)), torch.full((1, 1), math.inf))
    tiny = torch.full((3, 3), 1e-30, dtype=F64)
    torch.testing.assert_close(matrix_exp(tiny), torch.eye(3, dtype=F64) + tiny, rtol=1e-15, atol=0)


# ---- tall ------------------------------------------------------------------------------------------------


def padded(X, lower):
    n, k = X.shape[-2:]
    T = X.tril() if lower else torch.cat([-X[..., :k, :].triu().mH, X[..., k:, :]], -2)
    T = torch.nn.functional.pad(T, (0, n - k))
    return torch.matrix_exp(T - T.mH)[..., :k]


@every_tall_family
@pytest.mark.parametrize(
    "shape", [(9, 4), (96, 5), (97, 29), (97, 30), (100, 40), (100, 41), (120, 7), (98, 1)], ids=str
)
def test_tall(family, shape):
    """The shapes are on both sides of the border to n x n matrices, and norms go up to 1000."""
    for norm in (0.1, 1.0, 10.0, 1000.0):
        X = family(*shape)
        X *= norm / torch.linalg.matrix_norm(X, 2)
        for lower in (False, True):
            for dtype, allowed in ((F64, 1e-12), (torch.float32, 1e-6)):
                given = X.to(dtype)
                Q = stiefel_exp(given, lower)
                error = (Q.double() - padded(given.double(), lower)).abs().max()
                assert max(error, defect(Q)) <= max(1.0, norm) * allowed
            assert torch.equal(stiefel_exp(X.mT, lower), stiefel_exp(X, lower).mT)


@pytest.mark.parametrize("dtype", [F64, torch.complex128], ids=str)
@pytest.mark.parametrize("shape", [(5, 2), (98, 2)], ids=str)
def test_derivatives_of_tall(shape, dtype):
    """Derivatives are also checked at lower rows of zeros, where a trivialization starts."""
    X = torch.randn(shape, dtype=dtype)
    X[5:] = 0
    f = lambda X: stiefel_exp(X, True)[:8]
    for at in (X, torch.zeros_like(X)):
        at.requires_grad_()
        torch.autograd.gradcheck(f, at, check_forward_ad=True, fast_mode=True)
        torch.autograd.gradgradcheck(f, at, fast_mode=True)


def test_tall_of_large_norms():
    """Columns are orthonormal even in the closed form, whose matrix is not skew. The diagonal is not read."""
    X = torch.randn(97, 20, dtype=F64)
    X /= torch.linalg.matrix_norm(X, 2)
    for norm in (1.0, 1e3, 1e5, 1e7):
        assert defect(stiefel_exp(norm * X)) <= 1e-13
        assert defect(stiefel_exp((norm * X).float())) <= 1e-6
    equal = torch.ones(120, 2, dtype=F64) * 5e4 / 240**0.5
    assert defect(stiefel_exp(equal)) <= 3e-13 and defect(stiefel_exp(equal.float())) <= 1e-6
    hole = X.clone().fill_diagonal_(math.nan)
    for lower in (False, True):
        assert torch.equal(stiefel_exp(hole, lower), stiefel_exp(X, lower))


@pytest.mark.parametrize("dtype", [torch.complex64, torch.complex128], ids=str)
@pytest.mark.parametrize("shape", [(0, 0), (0, 3, 3)], ids=str)
def test_empty_complex_derivatives(shape, dtype):
    A, E, dE = torch.zeros(3, *shape, dtype=dtype)
    assert exp_frechet(A, E) is not E
    assert torch.func.jvp(lambda E: exp_frechet(A, E), (E,), (dE,))[1].shape == shape


@pytest.mark.parametrize("dtype", [torch.complex64, torch.complex128], ids=str)
def test_complex_derivative_along_the_smallest_direction(dtype):
    smallest = torch.finfo(dtype).smallest_normal * torch.finfo(dtype).eps  # denormal
    E = torch.full((3, 3), smallest, dtype=dtype)
    assert torch.equal(exp_frechet(torch.zeros_like(E), E), E)


def test_complex_derivative_along_a_large_direction():
    A, E = torch.randn(2, 3, 3, dtype=torch.complex64)
    L = exp_frechet(A, E * 1e35)
    torch.testing.assert_close(L / 1e35, exp_frechet(A, E), rtol=1e-5, atol=1e-5)


def test_tall_half_types_are_computed_in_float32():
    X = torch.randn(100, 6)
    for dtype in (torch.bfloat16, torch.float16):
        half = X.to(dtype)
        assert torch.equal(stiefel_exp(half), stiefel_exp(half.float()).to(dtype))


def test_third_order():
    A = torch.randn(3, 3, dtype=F64, requires_grad=True)
    E = torch.randn(3, 3, dtype=F64)

    def second(A):
        (first,) = torch.autograd.grad((matrix_exp(A) ** 3).sum(), A, create_graph=True)
        return torch.autograd.grad((first * E).sum(), A, create_graph=True)[0]

    torch.autograd.gradcheck(second, A)


# ---- every level -----------------------------------------------------------------------------------------

DIRTY = """
import torch
from table import ops

torch.manual_seed(0)
for dtype in (torch.float32, torch.float64):
    for n in (*range(1, 42), 63, 65, 70):
        X, G = torch.randn(2, 2, n, n, dtype=dtype) / n**0.5
        for lower in (False, True):
            for f in (
                lambda: ops.skew_exp(X, lower),
                lambda: ops.skew_exp_backward(G, X, lower),
                lambda: ops.symmetric_exp(X, lower),
                lambda: ops.symmetric_exp_backward(G, X, lower),
                lambda: ops.exp_frechet(X, G),
            ):
                results = []
                for rest in (float("nan"), 0.5):
                    for wide in (n, n + 4, n + 8, n + 16):
                        for matrices in (8, 16):  # fills the memory of the next work space
                            torch.full((matrices * wide * wide,), rest, dtype=dtype)
                    results.append(f())
                assert results[0].isfinite().all() and torch.equal(*results), (dtype, n, lower)
print("right")
"""


@pytest.mark.slow
@pytest.mark.parametrize("level", ["default", "avx2", "avx512"])
def test_no_level_reads_what_it_has_not_written(level):
    if level not in fastparam._C.supported_levels():
        pytest.skip(f"this CPU has no {level}")
    done = python(DIRTY, ATEN_CPU_CAPABILITY=level)
    assert done.stdout.strip() == "right", done.stderr
