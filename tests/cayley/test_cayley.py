"""What is particular to the Cayley map: accuracy over norms and families, orthogonality, errors, where NaN
goes, modes that round.
"""

import math

import pytest
import torch
from table import F64, REAL, ops
from torch._subclasses.fake_tensor import FakeTensorMode

import fastparam
from fastparam import _C
from fastparam import _reference as reference

functional = fastparam.functional
NORMS = (0.0, 0.01, 0.1, 1.0, 10.0, 100.0, 1e3, 1e4)


def skew_of(X):
    return X.triu(1) - X.triu(1).mT


def gaussian(n):
    return skew_of(torch.randn(3, n, n, dtype=F64))


def one_plane(n):
    u, v = torch.randn(2, 3, n, 1, dtype=F64)
    return 1e-3 * gaussian(n) + u @ v.mT - v @ u.mT


def blocks(n):
    A, order = 1e-3 * gaussian(n), torch.randperm(n)
    for i, j in zip(order[::2], order[1::2]):  # noqa: B905, an odd one is left over
        A[:, i, j] += 1
        A[:, j, i] -= 1
    return A


def graded(n):
    d = torch.logspace(0, -4, n, dtype=F64)
    return gaussian(n) * d[:, None] * d


FAMILIES = (gaussian, one_plane, blocks, graded)
every_family = pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.__name__)


def scaled(A, norm):
    size = torch.linalg.matrix_norm(A, 2)[:, None, None]
    return A / torch.where(size == 0, 1, size) * norm


def eager(A, alpha=1.0):
    I = torch.eye(A.shape[-1], dtype=A.dtype, device=A.device)
    return torch.linalg.solve(I + alpha * A, I - alpha * A)


def distance(Q, truth):
    return torch.linalg.matrix_norm(Q.to(F64) - truth.to(Q.device), 2).max().item()


def loss_of_orthogonality(Q):
    Q = Q.to(F64)
    return (
        torch.linalg.matrix_norm(Q.mT @ Q - torch.eye(Q.shape[-1], dtype=F64, device=Q.device), 2)
        .max()
        .item()
    )


@every_family
@pytest.mark.parametrize("dtype", [torch.float32, F64], ids=str)
def test_accuracy(family, dtype, device):
    """Judged against float64 (for float64: against itself, by orthogonality). Below norm 1, in float32,
    better than eager.
    """
    for n in (1, 2, 3, 5, 8, 13, 16, 24, 32, 33, 48, 64, 65, 100, 128, 130, 200, 300):
        floor = 8 * math.sqrt(n) * torch.finfo(dtype).eps
        for norm in NORMS:
            A = scaled(family(n), norm).to(device, dtype)
            G = torch.randn(3, n, n, dtype=dtype, device=device)
            values, gradients, orthogonality = [], [], []
            truth = eager(A.to(F64))
            a = A.to(F64).requires_grad_()
            (gradient,) = torch.autograd.grad(eager(skew_of(a)), a, G.to(F64))
            for f in (eager, lambda A: ops.skew_cayley(A)):
                x = A.clone().requires_grad_()
                Q = f(skew_of(x) if f is eager else x)
                (g,) = torch.autograd.grad(Q, x, G)
                values.append(distance(Q.detach(), truth))
                orthogonality.append(loss_of_orthogonality(Q.detach()))
                gradients.append(
                    distance(g, gradient) / max(1.0, torch.linalg.matrix_norm(gradient, 2).max().item())
                )
            where = f"{family.__name__} {n} {norm}"
            assert orthogonality[1] <= 2 * orthogonality[0] + floor, where
            if dtype == torch.float32:
                assert values[1] <= 2 * values[0] + floor, where
                assert gradients[1] <= 2 * gradients[0] + floor, where


@pytest.mark.parametrize("dtype, norms", [(torch.float32, (1e4, 1e6)), (F64, (1e6, 1e9, 1e12))], ids=str)
@every_family
def test_never_out_of_bounds(family, dtype, norms, device):
    """At norms where no digit of the value may be left, the result is still orthogonal."""
    for n in (2, 3, 8, 17, 32, 50, 96, 150, 300):
        for norm in norms:
            Q = ops.skew_cayley(scaled(family(n), norm).to(device, dtype))
            assert loss_of_orthogonality(Q) < (1e-4 if dtype == torch.float32 else 1e-9), (n, norm)


@every_family
def test_three_ways_are_one(family, device):
    """A whole, a triangle of X, packed: the same matrix, and alpha and -alpha are transposes."""
    for n in (2, 7, 16, 33, 70, 140):
        A = scaled(family(n), 3.0).to(device)
        rows, columns = torch.triu_indices(n, n, 1)
        for alpha in (1.0, -0.5, 2.0):
            Q = ops.cayley(A, alpha)
            close = {"rtol": 0, "atol": 1e-13}
            torch.testing.assert_close(ops.skew_cayley(A, alpha), Q, **close)
            torch.testing.assert_close(ops.skew_cayley(A, alpha, True), Q, **close)
            torch.testing.assert_close(ops.skew_cayley_packed(A[:, rows, columns], alpha), Q, **close)
            torch.testing.assert_close(ops.cayley(A, -alpha), Q.mT, **close)


def test_the_unread_triangle_and_diagonal_may_hold_anything(device):
    for n in (1, 2, 5, 16, 33, 65, 130):
        for lower in (False, True):
            X = torch.randn(2, n, n, device=device)
            clean = ops.skew_cayley(X, 1.0, lower)
            X[:, torch.ones(n, n, dtype=bool).triu() if lower else torch.ones(n, n, dtype=bool).tril()] = (
                float("nan")
            )
            assert torch.equal(ops.skew_cayley(X, 1.0, lower), clean)
            T = torch.randn(2, 2 * n, n, device=device)
            clean = ops.stiefel_cayley(T, 1.0, lower)
            T[:, :n][
                :, torch.ones(n, n, dtype=bool).triu() if lower else torch.ones(n, n, dtype=bool).tril()
            ] = float("nan")
            assert torch.equal(ops.stiefel_cayley(T, 1.0, lower), clean)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")], ids=str)
@pytest.mark.parametrize("dtype", REAL, ids=str)
def test_a_matrix_that_is_not_finite_is_lost_alone(value, dtype, device):
    for n in (2, 3, 8, 17, 32, 33, 65, 129, 260):
        X = torch.randn(4, n, n, device=device).to(dtype)
        A = skew_of(X)
        clean, whole = ops.skew_cayley(X), ops.cayley(A)
        for j in {1, n // 2 or 1, n - 1}:
            Y, B = X.clone(), A.clone()
            Y[2, 0, j] = B[2, 0, j] = value
            B[2, j, 0] = -value
            rows, columns = torch.triu_indices(n, n, 1)
            for Q, truth in (
                (ops.skew_cayley(Y), clean),
                (ops.cayley(B), whole),
                (ops.skew_cayley_packed(Y[:, rows, columns]), clean),
            ):
                assert Q[2].isnan().all()
                torch.testing.assert_close(
                    Q[[0, 1, 3]], truth[[0, 1, 3]], rtol=0, atol=4 * torch.finfo(dtype).eps
                )
        T = torch.randn(3, 2 * n, n, device=device).to(dtype)
        clean = ops.stiefel_cayley(T)
        T[1, n + 1, 0] = value
        Q = ops.stiefel_cayley(T)
        assert Q[1].isnan().all()
        torch.testing.assert_close(Q[[0, 2]], clean[[0, 2]], rtol=0, atol=16 * torch.finfo(dtype).eps)


@pytest.mark.parametrize("dtype", [torch.float32, F64, torch.complex128], ids=str)
def test_singular_matrices(dtype, device):
    for A in (
        -torch.eye(3),
        torch.stack([torch.zeros(3, 3), -torch.eye(3)]),
        torch.tensor([[-1.0, 5.0], [0.0, 2.0]]),
    ):
        A = A.to(device, dtype)
        if device == "cpu":
            with pytest.raises(torch.linalg.LinAlgError, match="singular"):
                ops.cayley(A)
        else:
            assert not ops.cayley(A).isfinite().all()


def test_a_batch_of_skew_and_other_matrices(device):
    for n in (3, 20, 70):
        A = 0.1 * torch.randn(6, n, n, dtype=F64, device=device)
        A[::2] = skew_of(A[::2])
        torch.testing.assert_close(ops.cayley(A), reference.cayley(A), rtol=0, atol=1e-11)


@pytest.mark.parametrize("n", [2, 8, 16, 33, 64, 100, 300, 600])
def test_denormal_products(n, device):
    """Entries whose squares are subnormal: Q = I - 2A, and no slower path may lose that."""
    A = skew_of(torch.full((n, n), 1e-20, device=device))
    torch.testing.assert_close(ops.skew_cayley(A), torch.eye(n, device=device) - 2 * A, rtol=1e-6, atol=0)


@pytest.mark.parametrize("n", [8, 32, 64, 128, 300, 700])
def test_reduced_precision_of_products_stays_outside(n, device):
    X = torch.randn(n, n, device=device) / n**0.5
    G = torch.randn(n, n, device=device)

    def run():
        x = X.clone().requires_grad_()
        Q = ops.skew_cayley(x)
        return Q.detach(), torch.autograd.grad(Q, x, G)[0]

    expected, before = run(), torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("medium")
        assert all(map(torch.equal, run(), expected))
        with torch.autocast(device, dtype=torch.bfloat16):
            assert all(map(torch.equal, run(), expected))
    finally:
        torch.set_float32_matmul_precision(before)


# ---- tall matrices ---------------------------------------------------------------------------------------


def gaussian_columns(n, k):
    return torch.randn(n, k, dtype=F64)


def nearly_equal_columns(n, k):
    return torch.cat(
        [
            torch.randn(k, k, dtype=F64),
            torch.randn(n - k, 1, dtype=F64) + 1e-5 * torch.randn(n - k, k, dtype=F64),
        ]
    )


def graded_columns(n, k):
    return torch.randn(n, k, dtype=F64) * torch.logspace(0, -4, k, dtype=F64)


@pytest.mark.parametrize(
    "family", [gaussian_columns, nearly_equal_columns, graded_columns], ids=lambda family: family.__name__
)
@pytest.mark.parametrize("n, k", [(3, 1), (5, 4), (40, 7), (64, 32), (256, 32), (130, 100)])
def test_tall_accuracy(family, n, k, device):
    """Not worse than the n x n solve, and orthonormal to rounding at every norm."""
    for dtype, norms in ((torch.float32, (0.01, 1.0, 10.0, 100.0, 1e4)), (F64, (1.0, 1e4, 1e8, 1e12))):
        floor = 8 * math.sqrt(n) * torch.finfo(dtype).eps
        for norm in norms:
            X = family(n, k)
            X = (X / torch.linalg.matrix_norm(X, 2) * norm).to(device, dtype)
            Q = ops.stiefel_cayley(X)
            assert Q.shape == (n, k) and loss_of_orthogonality(Q) <= floor, (dtype, norm)
            truth, padded = reference.stiefel_cayley(X.to(F64)), reference.stiefel_cayley(X)
            if dtype == torch.float32:
                assert distance(Q, truth) <= 2 * distance(padded, truth) + floor, (dtype, norm)


def test_tall_gradient_at_large_norms(device):
    for norm in (1.0, 1e2, 1e4):
        X = torch.randn(40, 8, dtype=F64)
        X = (X / torch.linalg.matrix_norm(X, 2) * norm).to(device)
        G = torch.randn(40, 8, dtype=F64, device=device)
        x = X.clone().requires_grad_()
        (truth,) = torch.autograd.grad(reference.stiefel_cayley(x), x, G)
        x = X.float().requires_grad_()
        (ours,) = torch.autograd.grad(ops.stiefel_cayley(x), x, G.float())
        x = X.float().requires_grad_()
        (padded,) = torch.autograd.grad(reference.stiefel_cayley(x), x, G.float())
        assert (ours - truth).abs().max() <= 2 * (padded - truth).abs().max() + 1e-5 * truth.abs().max()


def test_no_matrix_of_order_n_for_a_tall_one():
    """The largest allocation of forward and backward is of the size of X (in float64)."""
    n, k = 3000, 4
    X = torch.randn(n, k, requires_grad=True)
    with torch.profiler.profile(
        profile_memory=True, activities=[torch.profiler.ProfilerActivity.CPU]
    ) as profile:
        ops.stiefel_cayley(X).sum().backward()
    largest = max(abs(event.cpu_memory_usage) for event in profile.events())
    assert 0 < largest <= 16 * n * k * 8


# ---- errors ----------------------------------------------------------------------------------------------


def entries(word):
    return (getattr(ops, word), getattr(functional, word), getattr(_C, word))


@pytest.mark.parametrize("alpha", [float("nan"), float("inf"), float("-inf")], ids=str)
def test_alpha_must_be_finite(alpha, device):
    G = torch.randn(3, 3, device=device)
    for word, X in (
        ("cayley", G),
        ("skew_cayley", G),
        ("skew_cayley_packed", G),
        ("stiefel_cayley", G[:, :2]),
    ):
        for f in entries(word):
            for x in (X, X.to("meta"), X.clone().requires_grad_()):
                with pytest.raises(ValueError, match=f"^{word}: expected a finite alpha, got -?(nan|inf)$"):
                    f(x, alpha)
        if word != "stiefel_cayley":
            with pytest.raises(
                ValueError, match=f"^{word}_backward: expected a finite alpha, got -?(nan|inf)$"
            ):
                getattr(ops, f"{word}_backward")(G, G, alpha)


@pytest.mark.parametrize("alpha", ["1", None, [1.0], 1j], ids=repr)
def test_alpha_must_be_a_number(alpha):
    X = torch.randn(3, 3)
    for word in ("cayley", "skew_cayley", "skew_cayley_packed", "stiefel_cayley"):
        with pytest.raises(
            TypeError, match=f"^{word}: expected alpha to be a number, got {type(alpha).__name__}$"
        ):
            getattr(functional, word)(X, alpha)


@pytest.mark.parametrize("shape", [(2,), (3, 4), (5, 7), ()], ids=str)
def test_a_packed_vector_has_a_triangular_number_of_entries(shape, device):
    sentence = r"^skew_cayley_packed: expected v of shape \(\.\.\., n \(n - 1\) / 2\), got \("
    v = torch.randn(shape, device=device)
    for f in entries("skew_cayley_packed"):
        for x in (v, v.to("meta"), v.clone().requires_grad_()):
            with pytest.raises(ValueError, match=sentence):
                f(x)
        with FakeTensorMode() as mode, pytest.raises(ValueError, match=sentence):
            f(mode.from_tensor(v))


def test_other_sentences(device):
    X = torch.randn(3, device=device)
    for f in entries("stiefel_cayley"):
        with pytest.raises(
            ValueError, match=r"^stiefel_cayley: expected X of shape \(\.\.\., n, k\), got \(3,\)$"
        ):
            f(X)
        with pytest.raises(ValueError, match=r"^stiefel_cayley: expected X of dtype float32.* got int64$"):
            f(torch.ones(3, 2, dtype=torch.int64, device=device))
    for f in entries("skew_cayley_packed"):
        with pytest.raises(
            ValueError, match=r"^skew_cayley_packed: expected v of dtype float32.* got int64$"
        ):
            f(torch.ones(3, dtype=torch.int64, device=device))
    for word in ("skew_cayley", "stiefel_cayley"):
        with pytest.raises(TypeError, match=f"^{word}: expected lower to be True or False, got int$"):
            getattr(functional, word)(torch.randn(3, 3), 1.0, 1)
    G, Q = torch.randn(2, 3, 3, device=device), torch.randn(3, 3, device=device)
    for word in ("cayley_backward", "skew_cayley_backward", "skew_cayley_packed_backward"):
        f = getattr(ops, word)
        with pytest.raises(
            ValueError, match=rf"^{word}: expected G of the shape of Q \(3, 3\), got \(2, 3, 3\)$"
        ):
            f(G, Q)
        with pytest.raises(
            ValueError, match=rf"^{word}: expected G of the dtype of Q, float32, got float64$"
        ):
            f(G[0].double(), Q)
        with pytest.raises(ValueError, match=rf"^{word}: expected G on the device of Q, .*, got meta$"):
            f(G[0].to("meta"), Q)
