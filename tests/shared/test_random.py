"""Random shapes, layouts and dtypes against the reference."""

import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from table import CASES, COMPLEX, F64, REAL, bits

cpu = settings(
    max_examples=250,
    derandomize=True,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)


@st.composite
def layouts(draw, dtypes):
    """Tensors of shape (..., n, n) with any strides: sliced, permuted, expanded or negated views of fresh
    storage.
    """
    n = draw(st.integers(0, 40) | st.sampled_from([64, 65, 100, 129]))
    batch = (
        draw(st.lists(st.integers(0, 4), max_size=3))
        if n < 64
        else draw(st.lists(st.integers(1, 2), max_size=1))
    )
    shape = [*batch, n, n]
    dims = len(shape)
    order = draw(st.permutations(range(dims)))  # of the dimensions in memory
    steps = [draw(st.sampled_from([1, 1, 1, 2, 3])) for _ in shape]
    starts = [draw(st.integers(0, 3)) for _ in shape]
    ends = [draw(st.integers(0, 2)) for _ in shape]
    expanded = [draw(st.integers(0, 5)) == 0 for _ in shape]
    stored = [
        1 if e else a + s * k + b for e, a, s, k, b in zip(expanded, starts, steps, shape, ends, strict=True)
    ]
    dtype = draw(st.sampled_from(dtypes))
    torch.manual_seed(draw(st.integers(0, 2**16)))
    X = torch.randn([stored[d] for d in order], dtype=dtype).permute([order.index(d) for d in range(dims)])
    index = tuple(
        slice(None) if e else slice(a, a + s * k, s)
        for e, a, s, k in zip(expanded, starts, steps, shape, strict=True)
    )
    X = X[index].expand(shape)
    if draw(st.booleans()) and draw(st.booleans()):
        X = torch._neg_view(X)
    if dtype.is_complex and draw(st.booleans()):
        X = X.conj()
    assert list(X.shape) == shape
    return X


@st.composite
def windows(draw, dtypes):
    """Any as_strided view, whose strides can coincide, be zero or overlap."""
    n = draw(st.integers(1, 36))
    shape = [*draw(st.lists(st.integers(1, 3), max_size=2)), n, n]
    strides = [draw(st.integers(0, 3) | st.integers(n, n + 3) | st.integers(n * n, n * n + 2)) for _ in shape]
    offset = draw(st.integers(0, 5))
    size = offset + 1 + sum((k - 1) * s for k, s in zip(shape, strides, strict=True))
    torch.manual_seed(draw(st.integers(0, 2**16)))
    return torch.randn(size, dtype=draw(st.sampled_from(dtypes))).as_strided(shape, strides, offset)


def compare(case, X):
    ts = (X, *(torch.randn_like(X) for _ in range(case.tensors - 1)))
    before = [t.clone() for t in ts]
    f = case.bind(case.op)
    Y = f(*ts)
    assert Y.is_contiguous() and Y.shape == X.shape and Y.dtype == X.dtype
    case.check_values(lambda f, *ts: f(*ts), ts)
    assert all(torch.equal(t, b) for t, b in zip(ts, before, strict=True)), "an input was written"
    if case.linear:
        assert torch.equal(bits(Y), bits(f(*(t.contiguous() for t in ts)))), "the bits depend on the strides"


@cpu
@given(X=layouts(REAL), case=st.sampled_from(CASES))
def test_layouts(X, case):
    compare(case, X)


@cpu
@given(X=windows(REAL), case=st.sampled_from(CASES))
def test_windows(X, case):
    compare(case, X)


@settings(cpu, max_examples=100)
@given(X=layouts(COMPLEX) | windows(COMPLEX), case=st.sampled_from(CASES))
def test_complex(X, case):
    compare(case, X)


@settings(cpu, max_examples=100)
@given(X=layouts([F64]), V=st.integers(0, 2**16), case=st.sampled_from(CASES))
def test_derivatives(X, V, case):
    torch.manual_seed(V)
    G = torch.randn_like(X)
    ts = (
        X.clone().requires_grad_(),
        *(torch.randn_like(X, requires_grad=True) for _ in range(case.tensors - 1)),
    )
    case.check_values(lambda f, *ts: torch.autograd.grad(f(*ts), ts, G), ts)
    plain = tuple(t.detach() for t in ts)
    tangents = [
        torch.func.jvp(case.bind(f), plain, tuple(t.mT for t in plain))[1] for f in (case.op, case.reference)
    ]
    torch.testing.assert_close(*tangents)


@settings(cpu, max_examples=100)
@given(X=layouts(REAL), data=st.data(), case=st.sampled_from([case for case in CASES if case.public]))
def test_vmap(X, data, case):
    """Compares with a loop over the op, whose values are tested above."""
    assume(X.dim() > 2 and X.shape[0] > 0)
    dim = data.draw(st.integers(0, X.dim() - 1))
    f = case.bind(case.public)
    case.check(torch.vmap(f, in_dims=dim)(X.movedim(0, dim)), torch.stack([f(x) for x in X]))


@pytest.mark.parametrize("shape", [(2, 3, 257, 257), (100, 64, 64), (4097, 3, 3), (1, 1025, 1025)], ids=str)
def test_large(shape):
    """Sizes at which work is divided, for every dtype and from transposed memory. Maps that are not linear
    divide their work by order and batch, whatever the dtype is.
    """
    for dtype in REAL:
        others = shape[-1] < 1000 and dtype == torch.float32
        for case in CASES if others else [case for case in CASES if case.linear]:
            compare(case, torch.randn(shape, dtype=dtype))
        compare(CASES[0], torch.randn(shape, dtype=dtype).mT)
