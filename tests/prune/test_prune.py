"""Tests of masked_prune only: masks of every shape, lengths of every kind, and +0 in place of any value."""

import re

import numpy
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from table import COMPLEX, F64, REAL, bits, mask, ops
from test_random import cpu
from test_system import unusual
from test_triangular import any_bits
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd import gradcheck, gradgradcheck

from fastparam import _C
from fastparam import _reference as reference
from fastparam.functional import masked_prune, pack_mask, unpack_mask

every_dtype = pytest.mark.parametrize("dtype", REAL + COMPLEX, ids=str)
LENGTHS = (0, 1, 2, 7, 8, 9, 15, 16, 17, 31, 33, 63, 64, 65, 71)
LENGTHS += (127, 128, 129, 255, 257, 511, 513, 1000, 4097, 70001)
SHAPES = [(), (1,), (5,), (0,), (3, 0), (3, 5), (7, 9), (2, 3, 5), (4, 1, 3, 3), (1, 1, 1, 1, 1, 13)]
BROADCAST = [
    ((3, 5), (1, 5)),
    ((3, 5), (3, 1)),
    ((3, 5), (1, 1)),
    ((0, 5), (1, 5)),
    ((8, 5, 3, 3), (8, 1, 1, 1)),
    ((8, 5, 3, 3), (1, 5, 1, 1)),
    ((8, 5, 3, 3), (8, 5, 1, 1)),
    ((8, 5, 3, 3), (1, 1, 3, 3)),
    ((8, 5, 3, 3), (8, 1, 3, 1)),
    ((65, 257), (1, 257)),
    ((65, 257), (65, 1)),
]


def any_numbers(*shape, dtype, device="cpu"):
    """Numbers of every kind: NaN, inf, subnormal numbers, signed zeros."""
    if not dtype.is_complex:
        return any_bits(*shape, dtype=dtype, device=device)
    part = {torch.complex64: torch.float32, torch.complex128: F64}[dtype]
    return torch.view_as_complex(any_bits(*shape, 2, dtype=part, device=device))


def where_bits(X, keep):
    """The expected bits: those of X where it is kept, and 0 elsewhere."""
    keep = keep.expand(X.shape)
    return torch.where(keep[..., None] if X.is_complex() else keep, bits(X), 0)


def random_mask(*shape, device="cpu"):
    return torch.rand(shape, device=device) > 0.4


@every_dtype
def test_every_length_and_every_kind_of_number(dtype, device):
    for n in LENGTHS:
        X, keep = any_numbers(n, dtype=dtype, device=device), random_mask(n, device=device)
        for m in (keep, pack_mask(keep)):
            Y = masked_prune(X, m)
            assert torch.equal(bits(Y), where_bits(X, keep)), "a pruned entry is +0, a kept one has its bits"


@every_dtype
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_every_shape(dtype, shape, device):
    X, keep = any_numbers(*shape, dtype=dtype, device=device), random_mask(*shape, device=device)
    for m in (keep, pack_mask(keep), torch.ones_like(keep), torch.zeros_like(keep)):
        Y = masked_prune(X, m)
        assert Y.shape == X.shape and Y.dtype == X.dtype and Y.device == X.device and Y.is_contiguous()
        assert torch.equal(bits(Y), where_bits(X, m if m.dtype == torch.bool else keep))


@every_dtype
@pytest.mark.parametrize("shape, small", BROADCAST, ids=str)
def test_broadcast(dtype, shape, small, device):
    X, keep = any_numbers(*shape, dtype=dtype, device=device), random_mask(*small, device=device)
    expected = where_bits(X, keep)
    trimmed = keep.view(
        small[next((i for i, s in enumerate(small) if s > 1), len(small)) :]
    )  # without its leading dimensions
    for m in (keep, keep.expand(shape), trimmed):
        for f in (masked_prune, ops.masked_prune.default):
            assert torch.equal(bits(f(X, m)), expected) and f(X.to("meta"), m.to("meta")).shape == shape
    assert torch.equal(bits(masked_prune(X.mT.contiguous().mT, keep)), expected)


@every_dtype
def test_strides_of_mask_and_tensor(dtype, device):
    X, keep = any_numbers(6, 70, 9, dtype=dtype, device=device), random_mask(6, 70, 9, device=device)
    views = [
        lambda t: t.mT,
        lambda t: t[::2, 1::3],
        lambda t: t.permute(2, 0, 1),
        lambda t: t[:, 3:68, 1:],
        lambda t: t[:1].expand(4, 70, 9),
        lambda t: t[..., :1].expand(6, 70, 9),
        lambda t: t.flatten()[1:],
    ]
    for of_X in views:
        for of_mask in views:
            x = of_X(X)
            m = of_mask(keep)
            m = m if m.shape == x.shape else of_X(keep)
            for y in (masked_prune(x, m), masked_prune(x, pack_mask(m))):
                assert torch.equal(bits(y), where_bits(x.contiguous(), m))


@every_dtype
def test_gradient_of_pruned_entries_is_plus_zero(dtype, device):
    for n in (1, 9, 65, 257):
        X = torch.randn(n, dtype=dtype, device=device, requires_grad=True)
        G, keep = any_numbers(n, dtype=dtype, device=device), random_mask(n, device=device)
        for m in (keep, pack_mask(keep)):
            (gradient,) = torch.autograd.grad(masked_prune(X, m), X, G)
            assert torch.equal(bits(gradient), where_bits(G, keep))


@pytest.mark.parametrize("dtype", [F64, torch.complex128], ids=str)
@pytest.mark.parametrize(
    "shape, small",
    [((), ()), ((9,), (9,)), ((0, 3), (0, 3)), ((2, 3, 5), (2, 3, 5)), *BROADCAST[:3]],
    ids=str,
)
def test_derivatives(dtype, shape, small, device):
    X, keep = torch.randn(shape, dtype=dtype, device=device, requires_grad=True), mask(small, device)
    for m in (keep, pack_mask(keep.expand(shape))):
        f = lambda X: masked_prune(X, m)  # noqa: B023
        assert gradcheck(
            f,
            X,
            check_forward_ad=True,
            check_batched_grad=X.numel() > 0,
            check_batched_forward_grad=X.numel() > 0,
        )
        assert gradgradcheck(f, X, check_fwd_over_rev=True)
        gradient = lambda g: torch.func.grad(lambda X: (g(X, m) ** 4).abs().sum())(X)  # noqa: B023
        torch.testing.assert_close(gradient(masked_prune), gradient(reference.masked_prune))


def test_no_gradient_to_the_mask():
    X, m = torch.randn(9, requires_grad=True), mask((9,))
    Y = masked_prune(X, m)
    assert len(Y.grad_fn.next_functions) == 1 and torch.autograd.grad(Y.sum(), X)[0].sum() == m.sum()


# ---- any shape -------------------------------------------------------------------------------------------


@st.composite
def pruned(draw):
    shape = draw(st.lists(st.integers(0, 9) | st.sampled_from([17, 64, 65]), max_size=3))
    small = [1 if draw(st.integers(0, 3)) == 0 else s for s in shape]
    order = draw(st.permutations(range(len(shape))))
    torch.manual_seed(draw(st.integers(0, 2**16)))
    X = torch.randn([shape[d] for d in order], dtype=draw(st.sampled_from(REAL))).permute(
        [order.index(d) for d in range(len(shape))]
    )
    return X, random_mask(*small)


@cpu
@given(pruned())
def test_random_shapes(case):
    X, m = case
    full = m.expand(X.shape)
    for given_mask in (m, full, pack_mask(full)):
        Y = masked_prune(X, given_mask)
        assert Y.is_contiguous() and torch.equal(bits(Y), where_bits(X, full))
        assert torch.equal(Y, reference.masked_prune(X, given_mask))
    assert torch.equal(unpack_mask(pack_mask(full), X.shape), full)
    assert torch.equal(pack_mask(full), reference.pack_mask(full))


# ---- errors ----------------------------------------------------------------------------------------------

X33 = torch.randn(3, 3)
KINDS = "masked_prune: expected mask of dtype bool or uint8 (packed), got "
ERRORS = {
    "float": (X33, torch.ones(3, 3), KINDS + "float32"),
    "int64": (X33, torch.ones(3, 3).long(), KINDS + "int64"),
    "rows": (
        X33,
        mask((2, 3)),
        "masked_prune: expected mask to be broadcastable to X of shape (3, 3), got shape (2, 3)",
    ),
    "columns": (
        X33,
        mask((3, 4)),
        "masked_prune: expected mask to be broadcastable to X of shape (3, 3), got shape (3, 4)",
    ),
    "dimensions": (
        X33,
        mask((1, 3, 3)),
        "masked_prune: expected mask to be broadcastable to X of shape (3, 3), got shape (1, 3, 3)",
    ),
    "larger": (
        torch.randn(1, 3),
        mask((3, 3)),
        "masked_prune: expected mask to be broadcastable to X of shape (1, 3), got shape (3, 3)",
    ),
    "packed": (
        X33,
        pack_mask(mask((40,))),
        "masked_prune: expected a packed mask of shape (2,) for X of shape (3, 3), got (5,)",
    ),
    "packed, short": (
        X33,
        pack_mask(mask((8,))),
        "masked_prune: expected a packed mask of shape (2,) for X of shape (3, 3), got (1,)",
    ),
    "packed, of the shape of X": (
        X33,
        mask((3, 3)).byte(),
        "masked_prune: expected a packed mask of shape (2,) or (3, 1) for X of shape (3, 3), got (3, 3); "
        "use mask.bool() for a mask of zeros and ones",
    ),
    "packed, in rows": (
        X33,
        mask((3, 2)).byte(),
        "masked_prune: expected a packed mask of shape (2,) or (3, 1) for X of shape (3, 3), got (3, 2)",
    ),
    "device": (
        X33,
        mask((3, 3)).to("meta"),
        "masked_prune: expected mask on the same device as X (cpu), got meta",
    ),
    "dtype": (
        torch.ones(3, 3, dtype=torch.int64),
        mask((3, 3)),
        "masked_prune: expected X of dtype float32, float64, bfloat16, float16 or complex, got int64",
    ),
}


@pytest.mark.parametrize("name", ERRORS)
def test_sentences(name):
    X, m, sentence = ERRORS[name]
    for f in (masked_prune, ops.masked_prune, ops.masked_prune.default, _C.masked_prune):
        for x in (X, X.clone().requires_grad_(X.is_floating_point())):
            with pytest.raises(ValueError, match=f"^{re.escape(sentence)}$"):
                f(x, m)
    if name != "device":
        with pytest.raises(ValueError, match=f"^{re.escape(sentence)}$"):
            masked_prune(X.to("meta"), m.to("meta"))
        with FakeTensorMode() as mode, pytest.raises(ValueError, match=f"^{re.escape(sentence)}$"):
            masked_prune(mode.from_tensor(X), mode.from_tensor(m))
    Y = torch.randn(3, 3, requires_grad=True)  # it works as before
    assert torch.autograd.grad(masked_prune(Y, mask((3, 3))).sum(), Y)[0].sum() == mask((3, 3)).sum()


@pytest.mark.parametrize("thing", [None, [[True]], numpy.ones((3, 3), dtype=bool), torch.Tensor], ids=repr)
def test_a_mask_that_is_no_tensor(thing):
    given = "the class Tensor" if thing is torch.Tensor else type(thing).__name__
    with pytest.raises(TypeError, match=f"^masked_prune: expected mask to be a torch.Tensor, got {given}$"):
        masked_prune(X33, thing)


def test_a_mask_of_another_layout():
    for kind, word in unusual():
        with pytest.raises(
            ValueError, match=f"^masked_prune: expected mask to be a strided tensor, got {word}$"
        ):
            masked_prune(X33, kind)
