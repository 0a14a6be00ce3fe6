"""Logarithms of orthogonal and of positive definite matrices, and assignment to modules that use them."""

import math

import pytest
import torch
from families import haar, orthogonal_matrices, rotations
from modules import positive_weight
from table import F64
from torch import nn
from torch.nn.utils import parametrize

import fastparam
from fastparam import MatrixExponential, NotOrthogonalError, PositiveDefinite, SkewExponential
from fastparam.functional import log_orthogonal, log_positive_definite, matrix_exp

ROUND_TRIP = {torch.float32: 1e-5, F64: 1e-12, torch.bfloat16: 0.05, torch.float16: 0.01}


def hard_angles(n):
    """Rotations by angles that are equal, tiny, or nearly pi, in planes that contain no axis."""
    B = haar(n, n)
    for angles in (
        [1e-8] * n,
        [3.0] * n,
        [math.pi] * n,
        [math.pi - 10.0**-k for k in range(16)],
        [math.pi * i / n for i in range(n)],
    ):
        D = torch.eye(n, dtype=F64)
        for i, angle in zip(range(0, n - 1, 2), angles, strict=False):
            D[i : i + 2, i : i + 2] = rotations(2, angle)
        yield B @ D @ B.mT


@pytest.mark.parametrize("n", [1, 2, 3, 5, 8, 31, 64, 128, 256])
def test_every_orthogonal_matrix_comes_back(n):
    for dtype in (torch.float32, F64):
        eps = torch.finfo(dtype).eps
        close = max(ROUND_TRIP[dtype], 8 * n**0.5 * eps)
        for Q in (*(Q for _, Q in orthogonal_matrices(n)), *hard_angles(n)):
            module, Q = SkewExponential(), Q.to(dtype)
            X = module.right_inverse(Q)
            assert X.dtype == dtype and (X.tril() == 0).all()
            assert (module(X) - Q).abs().max() <= close
            if torch.linalg.det(Q.double()) > 0:
                A = log_orthogonal(Q)
                assert torch.equal(A, -A.mT)
                assert torch.linalg.matrix_norm(A.double(), 2) <= math.pi + (100 + 8 * n) * eps
                assert (matrix_exp(A) - Q).abs().max() <= close


@pytest.mark.parametrize("dtype", [torch.complex64, torch.complex128], ids=str)
def test_unitary_matrices(dtype):
    for n in (1, 2, 5, 33):
        for Q in (haar(2, n, n, dtype=dtype), -torch.eye(n, dtype=dtype), torch.eye(n, dtype=dtype)):
            A = log_orthogonal(Q)
            assert torch.equal(A, -A.mH)
            assert (matrix_exp(A) - Q).abs().max() <= (1e-5 if dtype == torch.complex64 else 1e-12)
            for lower in (False, True):
                module = SkewExponential(lower)
                assert (module(module.right_inverse(Q)) - Q).abs().max() <= 1e-5


def test_a_batch_may_mix_cases():
    Q = torch.stack([Q for _, Q in orthogonal_matrices(6)]).float()
    layer = nn.Module()
    layer.weight = nn.Parameter(Q.clone())
    parametrize.register_parametrization(layer, "weight", SkewExponential())
    assert (layer.weight - Q).abs().max() <= 1e-5
    assert layer.parametrizations.weight[0].signs.shape == (len(Q), 6)
    layer.weight = Q.flip(0)
    assert (layer.weight - Q.flip(0)).abs().max() <= 1e-5


@pytest.mark.parametrize("dtype", [torch.float32, F64, torch.complex128], ids=str)
def test_positive_definite_matrices(dtype):
    for n in (1, 2, 3, 64, 200):
        for condition in (1.0, 1e3, 1e6 if dtype == F64 else 1e4):
            Q = haar(n, n, dtype=dtype)
            P = (Q * torch.logspace(0, -math.log10(condition), n, dtype=Q.real.dtype)) @ Q.mH
            P = (P + P.mH) / 2
            A = log_positive_definite(P)
            assert torch.equal(A, A.mH)
            assert (matrix_exp(A) - P).abs().max() <= (1e-5 if dtype == torch.float32 else 1e-12)


@pytest.mark.parametrize("dtype", ROUND_TRIP, ids=str)
def test_assignment(dtype):
    Q, P = haar(5, 5, dtype=dtype), positive_weight().to(dtype)
    layer = nn.Linear(5, 5, dtype=dtype)
    parametrize.register_parametrization(layer, "weight", SkewExponential())
    layer.weight = Q
    assert (layer.weight - Q).abs().max() <= ROUND_TRIP[dtype]
    if dtype in (torch.float32, F64):
        layer = fastparam.parametrizations.positive_definite(nn.Linear(4, 4, dtype=dtype), lower=True)
        layer.weight = P
        assert (layer.weight - P).abs().max() <= ROUND_TRIP[dtype]
        assert (layer.parametrizations.weight.original.triu(1) == 0).all()


def test_matrix_exponential_takes_what_its_argument_may_be():
    for first, weight in (
        (fastparam.Skew, haar(4, 4, det=1)),
        (fastparam.Skew, torch.diag(torch.tensor([-1.0, -1.0, 1.0, 1.0], dtype=F64))),  # also symmetric
        (fastparam.Skew, -torch.eye(4, dtype=F64)),
        (fastparam.Symmetric, positive_weight().double()),
    ):
        layer = nn.Linear(4, 4, dtype=F64)
        parametrize.register_parametrization(layer, "weight", first())
        parametrize.register_parametrization(layer, "weight", MatrixExponential())
        layer.weight = weight
        assert (layer.weight - weight).abs().max() <= 1e-12


@pytest.mark.parametrize("dtype", [torch.float32, F64, torch.bfloat16], ids=str)
def test_near_the_identity_the_nearer_kind_is_meant(dtype):
    """The weights are within both tolerances: in bfloat16, that of orthogonal matrices is 0.05."""
    I = torch.eye(3, dtype=F64)
    for first, Y in (
        (fastparam.Symmetric, 1.0234375 * I),
        (fastparam.Symmetric, 1.00005 * I),
        (fastparam.Skew, torch.matrix_exp(torch.tensor([[0.0, 3e-3], [-3e-3, 0.0]], dtype=F64))),
        (fastparam.Symmetric, I),
        (fastparam.Skew, I),
    ):
        Y = Y.to(dtype)
        layer = nn.Linear(len(Y), len(Y), dtype=dtype)
        parametrize.register_parametrization(layer, "weight", first())
        parametrize.register_parametrization(layer, "weight", MatrixExponential())
        layer.weight = Y
        error = (layer.weight - Y).abs().max()
        assert error <= 4 * torch.finfo(dtype).eps, (first, error)


def test_an_orthogonal_weight_of_determinant_minus_one_is_a_free_parameter():
    Q = haar(4, 4, det=-1)
    for module in (MatrixExponential(), SkewExponential(signs=False)):
        layer = nn.Linear(4, 4, dtype=F64)
        layer.weight = nn.Parameter(Q.clone())
        parametrize.register_parametrization(layer, "weight", module)
        assert torch.equal(layer.parametrizations.weight.original, Q)


REFUSED = {
    "SkewExponential, 2 I": (
        lambda: SkewExponential().right_inverse(2 * torch.eye(3)),
        NotOrthogonalError,
        "SkewExponential: expected a matrix with orthonormal rows and columns, "
        "got one with max |Q^T Q - I| = 3",
    ),
    "SkewExponential, determinant": (
        lambda: SkewExponential(signs=False).right_inverse(torch.diag(torch.tensor([1.0, -1.0]))),
        NotOrthogonalError,
        "SkewExponential: expected a matrix of determinant 1, got one of determinant -1, "
        "which the exponential does not reach without signs=True",
    ),
    "SkewExponential, tall": (
        lambda: SkewExponential().right_inverse(torch.eye(3)[:, :2]),
        NotImplementedError,
        "SkewExponential: only square weights can be assigned; SkewCayley and the orthogonal of "
        "parametrizations take tall and wide ones, got (3, 2)",
    ),
    "PositiveDefinite, symmetric": (
        lambda: PositiveDefinite().right_inverse(torch.tensor([[1.0, 0.5], [0.0, 1.0]])),
        fastparam.NotPositiveDefiniteError,
        "PositiveDefinite: expected a symmetric matrix, got one with max |P - P^T| = 0.5",
    ),
    "PositiveDefinite, symmetric, bfloat16": (
        lambda: PositiveDefinite().right_inverse(torch.tensor([[2.0, 1.5], [0.0, 2.0]]).bfloat16()),
        fastparam.NotPositiveDefiniteError,
        "PositiveDefinite: expected a symmetric matrix, got one with max |P - P^T| = 1.5",
    ),
    "positive_definite, None": (
        lambda: fastparam.parametrizations.positive_definite(torch.nn.Linear(2, 2, bias=False), "bias"),
        ValueError,
        "Module 'Linear(in_features=2, out_features=2, bias=False)' has no parameter or buffer with name "
        "'bias'",
    ),
    "PositiveDefinite, eigenvalue": (
        lambda: PositiveDefinite().right_inverse(torch.diag(torch.tensor([1.0, -2.0]))),
        fastparam.NotPositiveDefiniteError,
        "PositiveDefinite: expected a positive definite matrix, got one with the eigenvalue -2",
    ),
    "PositiveDefinite, nan": (
        lambda: PositiveDefinite().right_inverse(torch.full((2, 2), math.nan)),
        fastparam.NotPositiveDefiniteError,
        "PositiveDefinite: expected a symmetric matrix, got one with nan or inf",
    ),
    "PositiveDefinite, complex": (
        lambda: PositiveDefinite().right_inverse(torch.eye(2, dtype=torch.complex64)),
        ValueError,
        "PositiveDefinite: expected a real weight, got a complex one",
    ),
    "MatrixExponential, general": (
        lambda: MatrixExponential().right_inverse(torch.tensor([[1.0, 1.0], [0.0, 1.0]])),
        NotOrthogonalError,
        "MatrixExponential: expected a matrix with orthonormal rows and columns, "
        "got one with max |Q^T Q - I| = 1",
    ),
    "MatrixExponential, determinant": (
        lambda: MatrixExponential().right_inverse(haar(3, 3, det=-1)),
        NotOrthogonalError,
        "MatrixExponential: expected a matrix of determinant 1, got one of determinant -1, "
        "which the exponential does not reach without SkewExponential()",
    ),
    "MatrixExponential, symmetric": (
        lambda: MatrixExponential().right_inverse(torch.diag(torch.tensor([-2.0, -1.0, 1.0]))),
        fastparam.NotPositiveDefiniteError,
        "MatrixExponential: expected a positive definite matrix, got one with the eigenvalue -2",
    ),
    "log_orthogonal, determinant": (
        lambda: log_orthogonal(torch.tensor([[0.0, 1.0], [1.0, 0.0]])),
        ValueError,
        "log_orthogonal: expected a matrix of determinant 1, got one of determinant -1",
    ),
    "log_orthogonal, shape": (
        lambda: log_orthogonal(torch.eye(3)[:2]),
        ValueError,
        "log_orthogonal: expected Q of shape (..., n, n), got (2, 3)",
    ),
    "log_positive_definite, dtype": (
        lambda: log_positive_definite(torch.eye(2, dtype=torch.int32)),
        ValueError,
        "log_positive_definite: expected P of dtype float32, float64, bfloat16, float16 or complex, "
        "got int32",
    ),
    "stiefel_exp, dimensions": (
        lambda: fastparam.functional.stiefel_exp(torch.ones(3)),
        ValueError,
        "stiefel_exp: expected X of shape (..., n, k), got (3,)",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_sentences(case):
    call, kind, sentence = REFUSED[case]
    with pytest.raises(kind) as e:
        call()
    assert type(e.value) is kind and str(e.value) == sentence


def test_logarithm_of_the_largest_numbers():
    P = 1.2e308 * torch.eye(3, dtype=torch.float64)
    assert torch.allclose(log_positive_definite(P).diagonal(), P.diagonal().log())


@pytest.mark.parametrize("f", [log_orthogonal, log_positive_definite], ids=lambda f: f.__name__)
def test_logarithms_say_that_they_have_no_derivative(f):
    X = torch.eye(3, requires_grad=True)
    with pytest.raises(NotImplementedError, match=rf"^{f.__name__}: the logarithm has no derivative; detach"):
        f(X).sum().backward()
    with pytest.raises(NotImplementedError, match=rf"^{f.__name__}: the logarithm has no derivative; detach"):
        torch.func.jvp(f, (torch.eye(3),), (torch.ones(3, 3),))


@pytest.mark.parametrize("f", [log_orthogonal, log_positive_definite], ids=lambda f: f.__name__)
def test_logarithms_under_vmap(f):
    X = haar(5, 3, 3, det=1) if f is log_orthogonal else torch.stack([positive_weight() for _ in range(5)])
    assert torch.equal(torch.vmap(f, 1)(X.movedim(0, 1)), f(X))


def test_a_tall_weight_starts_from_itself():
    weight = torch.randn(5, 3)
    layer = nn.Linear(3, 5)
    layer.weight = nn.Parameter(weight.clone())
    parametrize.register_parametrization(layer, "weight", SkewExponential())
    assert torch.equal(layer.parametrizations.weight.original, weight)
    with pytest.raises(NotImplementedError, match="only square weights"):
        layer.weight = torch.eye(5)[:, :3]
