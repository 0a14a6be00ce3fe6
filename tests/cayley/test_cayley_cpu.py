"""The CPU kernels of the Cayley map: accuracy, the guard, denormal numbers, determinism, every path and the
crossovers between them.
"""

import json

import pytest
import torch
from table import python

import fastparam  # noqa: F401  registers the ops

ops = torch.ops.fastparam
F32, F64 = torch.float32, torch.float64
# On both sides of every crossover: lanes (12, 16, 20, 28), whole vectors, one leaf (64), blocks, threads that
# share a matrix (192).
SIZES = (
    1,
    2,
    3,
    4,
    5,
    8,
    9,
    12,
    13,
    16,
    17,
    20,
    21,
    24,
    28,
    29,
    31,
    32,
    33,
    48,
    49,
    64,
    65,
    68,
    96,
    100,
    128,
    129,
    191,
    192,
    200,
    256,
    300,
    600,
)


def eager(X, alpha=1.0, lower=False):
    T = X.tril(-1) if lower else X.triu(1)
    A, eye = alpha * (T - T.mT), torch.eye(X.shape[-1], dtype=X.dtype)
    return torch.linalg.solve(eye + A, eye - A)


def skew(n, batch=4):
    X = torch.randn(batch, n, n, dtype=F64).triu(1)
    return X - X.mT


def plane(n):
    u, v = torch.randn(2, 4, n, 1, dtype=F64)
    return u @ v.mT - v @ u.mT + 1e-3 * skew(n)


def block(n):
    A = skew(n)
    A[:, : n // 2, n // 2 :] = A[:, n // 2 :, : n // 2] = 0
    return A


def graded(n):
    scale = torch.logspace(0, -4, n, dtype=F64)
    return skew(n) * scale[:, None] * scale


FAMILIES = (skew, plane, block, graded)


def scaled(A, norm):
    return A * (norm / torch.linalg.matrix_norm(A, 2).clamp_min(1e-300)[:, None, None])


def spectral(E):
    return float(torch.linalg.matrix_norm(E.double(), 2).max())


def departure(Q):
    Q = Q.double()
    return spectral(Q.mT @ Q - torch.eye(Q.shape[-1], dtype=F64))


def value_and_gradient(f, X, G):
    X = X.clone().requires_grad_()
    Q = f(X)
    Q.backward(G.to(Q.dtype))
    return Q.detach(), X.grad


@pytest.mark.parametrize("norm", [0.01, 0.1, 1, 10, 100, 1e3, 1e4])
@pytest.mark.parametrize("n", [2, 3, 4, 7, 8, 9, 16, 17, 24, 31, 33, 48, 64, 65, 100, 200])
def test_accuracy(n, norm):
    torch.manual_seed(n)
    floor = 8 * n**0.5 * torch.finfo(F32).eps
    for family in FAMILIES if n > 3 else (skew, plane, graded):
        X, G = scaled(family(n), norm).float(), torch.randn(4, n, n)
        Y, dY = value_and_gradient(eager, X.double(), G)
        E, dE = value_and_gradient(eager, X, G)
        Q, dQ = value_and_gradient(ops.skew_cayley, X, G)
        assert spectral(Q - Y) <= (spectral(E - Y) if norm < 1 else 2 * spectral(E - Y) + floor), (
            family.__name__
        )
        assert departure(Q) <= (departure(E) if norm < 1 else 2 * departure(E) + floor), family.__name__
        assert spectral(dQ - dY) <= 2 * spectral(dE - dY) + floor * max(1, dY.abs().max()), family.__name__


@pytest.mark.parametrize("norm", [1e-2, 1, 10, 1e3, 1e6, 1e12])
@pytest.mark.parametrize("n", [2, 5, 12, 13, 33, 64, 65, 200])
def test_float64_stays_orthogonal(n, norm):
    for family in FAMILIES if n > 3 else (skew, plane):
        X = scaled(family(n), norm)
        Q, E = ops.skew_cayley(X), eager(X)
        assert departure(Q) <= 2 * min(departure(E), 1e-12) + 8 * n**0.5 * torch.finfo(F64).eps
        if norm <= 10:
            assert spectral(Q - E) <= 16 * n**0.5 * torch.finfo(F64).eps


@pytest.mark.parametrize("n", SIZES)
@pytest.mark.parametrize("dtype", [F32, F64])
def test_every_path(n, dtype):
    """All layouts give the same matrix; what is not read may be NaN; the gradients are those of the ATen
    expressions.
    """
    X, G = torch.randn(2, 3, n, n, dtype=dtype) / n**0.5, torch.randn(2, 3, n, n, dtype=dtype)
    i, j = torch.triu_indices(n, n, 1)
    hidden = torch.where(torch.ones(n, n).triu(1) > 0, X, float("nan"))
    Q = ops.skew_cayley(hidden, 0.7)
    torch.testing.assert_close(Q, eager(X, 0.7), rtol=0, atol=64 * n**0.5 * torch.finfo(dtype).eps)
    A = X.triu(1) - X.triu(1).mT
    assert torch.equal(Q, ops.skew_cayley(-hidden.mT, 0.7, True))
    assert torch.equal(Q, ops.skew_cayley_packed(X[..., i, j], 0.7))
    assert torch.equal(Q, ops.cayley(A, 0.7))
    P = Q.double() + torch.eye(n, dtype=F64)
    whole = -0.35 * P.mT @ G.double() @ P.mT
    upper = (whole - whole.mT).triu(1)
    close = {"rtol": 0, "atol": 32 * n**0.5 * torch.finfo(dtype).eps, "check_dtype": False}
    torch.testing.assert_close(ops.cayley_backward(G, Q, 0.7), whole, **close)
    torch.testing.assert_close(ops.skew_cayley_backward(G, Q, 0.7, False), upper, **close)
    torch.testing.assert_close(ops.skew_cayley_backward(G, Q, 0.7, True), -upper.mT, **close)
    torch.testing.assert_close(ops.skew_cayley_packed_backward(G, Q, 0.7), upper[..., i, j], **close)


@pytest.mark.parametrize("n", [3, 16, 17, 32, 65, 200])
@pytest.mark.parametrize("dtype", [F32, F64, torch.bfloat16])
def test_place_in_the_batch_does_not_matter(n, dtype):
    X, G = (torch.randn(37 if n < 64 else 5, n, n, dtype=dtype) for _ in range(2))
    X[1] *= 1e3  # fails the guard
    Q = ops.skew_cayley(X)
    D = ops.skew_cayley_backward(G, Q)
    for m in (0, 1, 2, len(X) - 1):
        assert torch.equal(Q[m], ops.skew_cayley(X[m]))
        assert torch.equal(D[m], ops.skew_cayley_backward(G[m], Q[m]))


@pytest.mark.parametrize("n", [3, 8, 24, 33, 65, 200])
@pytest.mark.parametrize("dtype", [F32, F64])
def test_strides(n, dtype):
    X, G = torch.randn(2, 4, n, n, dtype=dtype), torch.randn(4, n, n, dtype=dtype)
    window = torch.cat([X[0], X[0]], -1)[..., 1 : n + 1]
    for x in (X[0].mT, window, X[0].transpose(0, 1).contiguous().transpose(0, 1), X[:1, 0].expand(4, n, n)):
        Q = ops.skew_cayley(x)
        assert Q.is_contiguous() and torch.equal(Q, ops.skew_cayley(x.contiguous()))
        assert torch.equal(
            ops.skew_cayley_backward(G.mT, Q.mT),
            ops.skew_cayley_backward(G.mT.contiguous(), Q.mT.contiguous()),
        )


@pytest.mark.parametrize("n", [2, 9, 33, 100])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_types_are_computed_in_float32(n, dtype):
    X, G = torch.randn(70, n, n, dtype=dtype), torch.randn(70, n, n, dtype=dtype)
    X.view(-1)[::5] *= 1e-4  # float16: subnormal
    Q = ops.skew_cayley(X)
    assert torch.equal(Q, ops.skew_cayley(X.float()).to(dtype))
    D = ops.skew_cayley_backward(G, Q)
    assert torch.equal(D, ops.skew_cayley_backward(G.float(), Q.float()).to(dtype))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("n", [2, 8, 24, 33, 65, 200])
def test_what_is_not_finite_stays_in_its_matrix(n, value):
    X = torch.randn(19 if n < 64 else 3, n, n)
    expected = ops.skew_cayley(X)
    X[1, 0, 1] = value
    A = X.triu(1) - X.triu(1).mT
    i, j = torch.triu_indices(n, n, 1)
    for Q in (
        ops.skew_cayley(X),
        ops.skew_cayley(-X.mT, 1.0, True),
        ops.skew_cayley_packed(X[:, i, j]),
        ops.cayley(A),
    ):
        assert Q[1].isnan().all()
        assert torch.equal(Q[0], expected[0]) and torch.equal(Q[2:], expected[2:])


@pytest.mark.parametrize("n", [2, 5, 24, 33, 65, 192])
def test_whole_matrices_that_are_not_skew(n):
    A = torch.randn(5, n, n) / n**0.5
    A[2] = A[2].triu(1) - A[2].triu(1).mT
    Q, eye = ops.cayley(A, 0.1), torch.eye(n)
    assert torch.equal(Q[2], ops.skew_cayley(A[2], 0.1))
    half = A.bfloat16()
    assert torch.equal(ops.cayley(half[2], 0.1), ops.skew_cayley(half[2], 0.1))
    torch.testing.assert_close(ops.cayley(half, 0.1), Q.bfloat16(), rtol=0.1, atol=0.1)
    torch.testing.assert_close(Q, torch.linalg.solve(eye + 0.1 * A, eye - 0.1 * A), rtol=1e-4, atol=1e-4)
    with pytest.raises(RuntimeError, match="singular"):
        ops.cayley(torch.stack([A[2], -eye]))


@pytest.mark.parametrize("n", [4, 24, 64, 100, 300])
def test_denormal_numbers(n):
    """Entries whose products are denormal: the first order of the map, and the caller's mode of the processor
    as it was.
    """
    X = torch.full((3, n, n), 1e-20)
    Q = ops.skew_cayley(X)
    assert torch.equal(Q, eager(X))
    D = ops.skew_cayley_backward(torch.full((3, n, n), 1e-30), Q)
    assert (D.abs() <= 1e-35).all()
    assert torch.tensor(1e-40) * 1 != 0


@pytest.mark.parametrize("n", [16, 100, 300])
def test_reduced_precision_of_products_does_not_reach_inside(n):
    X, G = torch.randn(2, 3, n, n) / n**0.5
    Q = ops.skew_cayley(X)
    D = ops.skew_cayley_backward(G, Q)
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("medium")
        assert torch.equal(Q, ops.skew_cayley(X)) and torch.equal(D, ops.skew_cayley_backward(G, Q))
    finally:
        torch.set_float32_matmul_precision(before)


RUN = """
import hashlib, json, numpy, torch, fastparam
from table import bits

ops, hashes = torch.ops.fastparam, {}
for dtype in (torch.float32, torch.float64, torch.bfloat16):
    for shape in [(1000, 3, 3), (300, 8, 8), (200, 17, 17), (50, 33, 33), (9, 65, 65), (3, 200, 200), (1, 300, 300), (1, 600, 600)]:
        X, G = (torch.from_numpy(numpy.random.default_rng(s).standard_normal(shape) / shape[-1] ** 0.5).to(dtype) for s in (1, 2))
        X *= 0.5
        if len(X) > 1:
            X[::7] *= 1e3  # fails the guard
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            Q = ops.skew_cayley(X)
            D = ops.skew_cayley_backward(G, Q)
            digest = hashlib.sha1(bits(Q).numpy()).hexdigest() + hashlib.sha1(bits(D).numpy()).hexdigest()
            assert hashes.setdefault(f"{dtype} {shape}", digest) == digest, f"{dtype} {shape}: {threads} threads, other bits"
            if threads == 1:
                P = Q.double() + torch.eye(shape[-1])
                U = (P.mT @ G.double() @ P.mT) * -0.5
                wide = X.double().triu(1)
                A, eye = wide - wide.mT, torch.eye(shape[-1], dtype=torch.float64)
                truth = torch.linalg.solve(eye + A, eye - A)
                atol = max(torch.finfo(dtype).eps, 1e-13) * 16 * shape[-1] ** 0.5
                some = slice(min(1, len(X) - 1), 7)  # those that pass it
                torch.testing.assert_close(Q.double()[some], truth[some], rtol=0, atol=atol)
                if dtype == torch.float32:  # rounded inside: not redone in float64, as it would be if the guard failed
                    assert not torch.equal(Q[some], truth[some].float()), f"{shape}"
                torch.testing.assert_close(D.double(), (U - U.mT).triu(1), rtol=0, atol=atol)
print(json.dumps(fastparam._C.vector_bytes()))
"""


@pytest.mark.parametrize("level", ["default", "avx2", "avx512"])
def test_threads_at_every_level(level):
    done = python(RUN, ATEN_CPU_CAPABILITY=level)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) in (16, 32, 64)


@pytest.mark.parametrize("shape", [(0, 0), (3, 0, 0), (0, 4, 4), (0, 100, 100)])
def test_empty(shape):
    X = torch.empty(shape)
    assert ops.skew_cayley(X).shape == ops.cayley(X).shape == ops.skew_cayley_backward(X, X).shape == shape


def test_order_one():
    X = torch.full((5, 1, 1), float("nan"))
    assert torch.equal(ops.skew_cayley(X), torch.ones(5, 1, 1))
    assert torch.equal(ops.skew_cayley_packed(torch.empty(5, 0)), torch.ones(5, 1, 1))
    assert torch.equal(
        ops.skew_cayley_backward(torch.ones(5, 1, 1), torch.ones(5, 1, 1)), torch.zeros(5, 1, 1)
    )
    torch.testing.assert_close(ops.cayley(torch.full((5, 1, 1), 3.0)), torch.full((5, 1, 1), -0.5))


def test_denormal_numbers_outside_are_left_alone():
    """Threads first started by a large Cayley map must not keep flushing denormal numbers in what they do
    next.
    """
    source = """
import torch, fastparam
torch.set_num_threads(2)
fastparam.functional.skew_cayley(torch.randn(400, 400))
G = torch.full((8, 256, 256), 2.0**-24, dtype=torch.float16)
assert (torch.ops.fastparam.symmetric_adjoint(G)[:, 0, 1:] == 2.0**-23).all()
"""
    done = python(source)
    assert done.returncode == 0, done.stderr
