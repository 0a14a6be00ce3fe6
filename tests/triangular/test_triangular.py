"""Tests of symmetric, skew and their adjoints only: exact structure, triangles that are not read, and the
positions of NaN and inf.
"""

import pytest
import torch
from table import COMPLEX, REAL, SIZES, bits, ops

from fastparam import _reference as reference

both = pytest.mark.parametrize("lower", [False, True], ids=["upper", "lower"])
every_dtype = pytest.mark.parametrize(
    "dtype", REAL + COMPLEX, ids=lambda dtype: str(dtype).removeprefix("torch.")
)
real_dtype = pytest.mark.parametrize("dtype", REAL, ids=lambda dtype: str(dtype).removeprefix("torch."))
every_word = pytest.mark.parametrize("word", ["symmetric", "symmetric_adjoint", "skew", "skew_adjoint"])
SIGN = {2: -(2**15), 4: -(2**31), 8: -(2**63)}  # the sign bit, as a signed integer of this many bytes


def any_bits(*shape, dtype, device="cpu"):
    """Numbers of every kind: each bit is random, so that NaN, inf, subnormal numbers and signed zeros all
    occur.
    """
    size = torch.empty((), dtype=dtype).element_size()
    integers = {2: torch.int16, 4: torch.int32, 8: torch.int64}[size]
    X = torch.randint(
        torch.iinfo(integers).min, torch.iinfo(integers).max, shape, dtype=integers, device=device
    )
    X[torch.rand(shape, device=device) < 0.1] = 0
    X[torch.rand(shape, device=device) < 0.1] = SIGN[size]
    return X.view(dtype)


def same(actual, expected):
    torch.testing.assert_close(actual, expected, rtol=0, atol=0, equal_nan=True)


@both
@every_dtype
def test_symmetric_is_exactly_symmetric(lower, dtype, device):
    for n in SIZES:
        X = torch.randn(2, n, n, dtype=dtype, device=device)
        S = ops.symmetric(X, lower)
        assert torch.equal(bits(S), bits(S.mT))
        keep = (
            torch.ones(n, n, dtype=bool, device=device).tril()
            if lower
            else torch.ones(n, n, dtype=bool, device=device).triu()
        )
        assert torch.equal(S[:, keep], X[:, keep])


@both
@real_dtype
def test_skew_is_skew_bit_for_bit(lower, dtype, device):
    for n in SIZES:
        for X in (
            torch.randn(2, n, n, dtype=dtype, device=device),
            any_bits(2, n, n, dtype=dtype, device=device),
        ):
            K = bits(ops.skew(X, lower))
            off = ~torch.eye(n, dtype=bool, device=device)
            assert torch.equal(
                K[:, off], (K ^ SIGN[X.element_size()]).mT[:, off]
            )  # including signed zeros and NaN payloads
            assert (K.diagonal(dim1=-2, dim2=-1) == 0).all()  # +0, whatever is on the diagonal of X


@both
@pytest.mark.parametrize("dtype", COMPLEX, ids=["complex64", "complex128"])
def test_complex_skew(lower, dtype, device):
    for n in SIZES:
        X = torch.randn(2, n, n, dtype=dtype, device=device)
        K = ops.skew(X, lower)
        assert torch.equal(K, -K.mT) and (K.diagonal(dim1=-2, dim2=-1) == 0).all()


@both
@every_word
@real_dtype
def test_every_kind_of_number(word, lower, dtype, device):
    """Sums are rounded like those of the eager expression. The forward pass only moves bits."""
    for n in (1, 2, 3, 5, 8, 9, 15, 16, 17, 33, 64, 100):
        X = any_bits(5, n, n, dtype=dtype, device=device)
        Y = getattr(ops, word)(X, lower)
        same(Y, getattr(reference, word)(X, lower))
        if word == "symmetric":
            assert torch.equal(bits(Y), bits(torch.where(mask(n, lower, device), X, X.mT)))


def mask(n, lower, device):
    ones = torch.ones(n, n, dtype=bool, device=device)
    return ones.tril() if lower else ones.triu()


@both
@pytest.mark.parametrize("word", ["symmetric_adjoint", "skew_adjoint"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=["float16", "bfloat16"])
def test_half_sums_round_to_nearest_even(word, lower, dtype, device):
    """Every 16-bit number is added to numbers near it, to its negative and to numbers of other sizes."""
    every = torch.arange(-(2**15), 2**15, dtype=torch.int16, device=device)
    for other in (every ^ 1, every ^ SIGN[2], every ^ (SIGN[2] + 1), every.flip(0), every.roll(1234)):
        for n in (2, 16):  # both paths of the kernel: a pair is at (0, n - 1) and (n - 1, 0)
            G = torch.zeros(2**16, n, n, dtype=torch.int16, device=device)
            G[:, 0, n - 1], G[:, n - 1, 0] = every, other
            G = G.view(dtype)
            D = getattr(ops, word)(G, lower)
            row, column = (n - 1, 0) if lower else (0, n - 1)
            sign = -1 if word == "skew_adjoint" else 1
            x, y = G[:, row, column], G[:, column, row]
            expected = (x.double() + sign * y.double()).to(dtype)  # exact in float64, rounded once
            same(D[:, row, column], expected)
            assert torch.equal(bits(D[:, row, column])[expected == 0], bits(expected)[expected == 0])
            assert (bits(D[:, column, row]) == 0).all()


@both
@pytest.mark.parametrize("word", ["symmetric_adjoint", "skew_adjoint"])
@every_dtype
def test_adjoint_fills_one_triangle(word, lower, dtype, device):
    for n in SIZES:
        D = getattr(ops, word)(torch.randn(2, n, n, dtype=dtype, device=device), lower)
        other = ~mask(n, lower, device) | (
            torch.eye(n, dtype=bool, device=device) if word == "skew_adjoint" else False
        )
        assert (bits(D[:, other]) == 0).all()


@both
@every_word
@every_dtype
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")], ids=["nan", "inf", "-inf"])
def test_non_finite_entries_stay_where_they_belong(word, lower, dtype, value, device):
    """One entry per matrix, at every position: the result differs from that of the finite matrix exactly
    where the eager result does.
    """
    op, eager = getattr(ops, word), getattr(reference, word)
    for n in (1, 2, 8, 9, 17):
        X = torch.randn(n, n, dtype=dtype, device=device).expand(n * n + 1, n, n).contiguous()
        X[:-1].view(n * n, n * n).fill_diagonal_(value)
        same(op(X, lower), eager(X, lower))
        assert torch.isfinite(op(X, lower)[-1]).all()


@both
@pytest.mark.parametrize("word", ["symmetric", "skew"])
@every_dtype
def test_unread_triangle_may_hold_anything(word, lower, dtype, device):
    for n in SIZES:
        X = torch.randn(3, n, n, dtype=dtype, device=device)
        read = mask(n, lower, device)
        if word == "skew":
            read &= ~torch.eye(n, dtype=bool, device=device)
        clean = getattr(ops, word)(X, lower)
        for junk in (float("nan"), float("inf"), torch.finfo(dtype).max):
            Y = getattr(ops, word)(
                torch.where(read, X, torch.tensor(junk, dtype=dtype, device=device)), lower
            )
            assert torch.isfinite(Y).all() and torch.equal(Y, clean)


@both
@every_word
def test_adjoint_is_the_adjoint(word, lower, device):
    """<f(X), G> = <X, f*(G)>, in float64."""
    other = word.removesuffix("_adjoint") if "adjoint" in word else word + "_adjoint"
    for n in SIZES:
        X, G = torch.randn(2, 3, n, n, dtype=torch.float64, device=device)
        left, right = (getattr(ops, word)(X, lower) * G).sum(), (X * getattr(ops, other)(G, lower)).sum()
        torch.testing.assert_close(left, right, rtol=1e-12, atol=1e-10)


@both
@pytest.mark.parametrize("word", ["symmetric", "skew"])
def test_lower_is_upper_of_the_transpose(word, lower, device):
    sign = -1 if word == "skew" else 1
    X = torch.randn(2, 17, 17, device=device)
    assert torch.equal(getattr(ops, word)(X.mT, not lower), sign * getattr(ops, word)(X, lower))


@both
@pytest.mark.parametrize("word", ["symmetric", "skew"])
def test_idempotent(word, lower, device):
    X = torch.randn(2, 33, 33, device=device)
    once = getattr(ops, word)(X, lower)
    assert torch.equal(bits(getattr(ops, word)(once, lower)), bits(once))


@pytest.mark.parametrize("n", [182, 257, 600])
@every_word
def test_orders_that_wake_threads(word, n, device):
    """Work for several threads: matrices larger than a chunk, and batches of them."""
    for lower in (False, True):
        for batch in ((), (3,)):
            X = torch.randn(*batch, n, n, device=device)
            same(getattr(ops, word)(X, lower), getattr(reference, word)(X, lower))
    X = torch.randn(5000, 5, 5, device=device)
    same(getattr(ops, word)(X), getattr(reference, word)(X))
