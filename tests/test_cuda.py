"""The CUDA kernels on a device: values, strides, streams, devices, graphs, synchronisation, memory. tests/test_simt.py needs none."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

import fastparam.functional as F
from fastparam import _reference as reference

OPS = ("symmetric", "symmetric_adjoint", "skew", "skew_adjoint")
MAPS = ("symmetric", "skew")
DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
SIZES = (0, 1, 2, 3, 5, 7, 8, 9, 12, 15, 16, 17, 24, 31, 32, 33, 40, 63, 64, 65, 96, 100, 127, 128, 130, 257, 520, 1024)
GIB = 1 << 30

HAS_KERNELS = all(torch._C._dispatch_has_kernel_for_dispatch_key(f"fastparam::{name}", "CUDA") for name in OPS)

pytestmark = [
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
    pytest.mark.skipif(not HAS_KERNELS, reason="needs a build with CUDA kernels: FASTPARAM_BUILD=cuda"),
]


def op(name: str):
    return getattr(torch.ops.fastparam, name).default


def needs_memory(gib: int) -> None:
    free = torch.cuda.mem_get_info()[0] / GIB
    if free < gib:
        pytest.skip(f"needs {gib} GiB of free device memory, {free:.0f} are there")


def check(name: str, X: Tensor, lower: bool) -> None:
    """The op on X against the reference on the CPU; both round each entry once, so they agree in every bit that is not a zero's sign."""
    Y = op(name)(X, lower)
    assert Y.device == X.device and Y.is_contiguous() and Y.shape == X.shape and Y.dtype == X.dtype
    assert torch.equal(Y.cpu(), getattr(reference, name)(X.cpu(), lower))


# ---- values -------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("lower", [False, True])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", OPS)
def test_values(name, dtype, lower):
    for n in SIZES:
        for batch in [(), (0,), (1,), (7,), (2, 3)] if n < 500 else [(), (2,)]:
            check(name, torch.randn(*batch, n, n, device="cuda").to(dtype), lower)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", OPS)
def test_large_batches_and_large_tiles(name, dtype):
    for batch, n in [(100_000, 3), (5003, 8), (1001, 16), (1001, 24), (601, 33), (601, 64), (301, 100), (1, 2056), (1, 2051)]:
        check(name, torch.randn(batch, n, n, device="cuda").to(dtype), lower=False)


@pytest.mark.parametrize("lower", [False, True])
@pytest.mark.parametrize("n", [3, 16, 24, 40, 64, 130])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_other_triangle_is_not_used(dtype, n, lower):
    X = torch.randn(300, n, n, device="cuda").to(dtype)
    other = X.triu(1) if lower else X.tril(-1)
    poisoned = torch.where(other != 0, torch.nan, X)
    for name in MAPS:
        assert torch.equal(op(name)(poisoned, lower), op(name)(X, lower))


@pytest.mark.parametrize("n", [3, 16, 24, 130])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_skew_is_exact_in_every_bit(dtype, n):
    X = torch.randn(300, n, n, device="cuda").to(dtype)
    X[X.abs() < 0.3] = 0.0
    X[0, 0, -1] = torch.inf
    integers = {2: torch.int16, 4: torch.int32, 8: torch.int64}[X.element_size()]
    A = F.skew(X)
    off_diagonal = ~torch.eye(n, dtype=torch.bool, device="cuda")
    assert torch.equal(A.view(integers)[:, off_diagonal], (-A.mT).contiguous().view(integers)[:, off_diagonal])
    assert (A.diagonal(dim1=-2, dim2=-1).contiguous().view(integers) == 0).all()


@pytest.mark.parametrize("name", OPS)
def test_nan_stays_in_its_matrix(name):
    X = torch.randn(50, 20, 20, device="cuda")
    X[7, 2, 5] = torch.nan
    bad = op(name)(X).isnan().flatten(1).any(1)
    assert bad[7] and bad.sum() == 1


def test_complex_runs_the_plain_expressions():
    X = torch.randn(3, 5, 5, device="cuda", dtype=torch.complex64)
    for name in OPS:
        check(name, X, lower=False)


# ---- strides and alignment ------------------------------------------------------------------------------------------------------


def views(n: int, dtype: torch.dtype) -> dict[str, Tensor]:
    def base(*shape: int) -> Tensor:
        return torch.randn(*shape, device="cuda").to(dtype)

    return {
        "transposed": base(3, n, n).mT,
        "cut from wider": base(3, n + 8, n + 8)[:, :n, :n],
        "cut at an odd column": base(3, n + 5, n + 5)[:, 2 : n + 2, 1 : n + 1],
        "misaligned": base(3 * n * n + 1)[1:].view(3, n, n),
        "one matrix for all": base(n, n).expand(5, n, n),
        "every other matrix": base(6, n, n)[::2],
        "batch transposed": base(2, 3, n, n).transpose(0, 1),
        "rows in steps": base(3, 2 * n, n)[:, ::2],
        "columns in steps": base(3, n, 2 * n)[..., ::2],
        "one row for all": base(3, 1, n).expand(3, n, n),
        "negated": torch._neg_view(base(3, n, n)),
    }


@pytest.mark.parametrize("n", [3, 8, 16, 32, 33, 64, 72, 130])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", OPS)
def test_views(name, dtype, n):
    for X in views(n, dtype).values():
        check(name, X, lower=n % 2 == 0)


# ---- derivatives, compilation -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [3, 18])
@pytest.mark.parametrize("name", MAPS)
def test_gradcheck(name, n):
    X = torch.randn(2, n, n, device="cuda", dtype=torch.float64, requires_grad=True)
    f = getattr(F, name)
    assert torch.autograd.gradcheck(f, X, check_forward_ad=True, fast_mode=n > 8)
    assert torch.autograd.gradgradcheck(f, X, fast_mode=n > 8)


@pytest.mark.parametrize("name", MAPS)
def test_compile(name):
    torch._dynamo.reset()
    f = getattr(F, name)
    X = torch.randn(4, 33, 33, device="cuda", requires_grad=True)

    def loss(X):
        return (f(X) * 2).sin().sum()

    (expected,) = torch.autograd.grad(loss(X), X)
    (got,) = torch.autograd.grad(torch.compile(loss, fullgraph=True)(X), X)
    torch.testing.assert_close(got, expected)


# ---- streams, devices, graphs -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [3, 100, 1000])
@pytest.mark.parametrize("name", OPS)
def test_runs_on_the_current_stream(name, n):
    source = torch.randn(8, n, n, device="cuda")
    X = torch.full_like(source, torch.nan)
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(50_000_000)  # the input comes late: who runs on another stream reads NaN
        X.copy_(source)
        Y = op(name)(X)
    stream.synchronize()
    assert torch.equal(Y.cpu(), getattr(reference, name)(source.cpu()))


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
@pytest.mark.parametrize("n", [3, 100])
@pytest.mark.parametrize("name", OPS)
def test_runs_on_the_device_of_its_input(name, n):
    with torch.cuda.device(0):
        check(name, torch.randn(8, n, n, device="cuda:1"), lower=False)
        assert torch.cuda.current_device() == 0


@pytest.mark.parametrize("shape", [(1000, 3, 3), (50, 32, 32), (300, 300)])
@pytest.mark.parametrize("name", MAPS)
def test_graph_of_forward_and_backward(name, shape):
    f = getattr(F, name)
    X, G = torch.randn(shape, device="cuda", requires_grad=True), torch.randn(shape, device="cuda")
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        torch.autograd.grad(f(X), X, G)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        Y = f(X)
        (D,) = torch.autograd.grad(Y, X, G)
    for _ in range(2):
        with torch.no_grad():
            X.copy_(torch.randn(shape)), G.copy_(torch.randn(shape))
        graph.replay()
        assert torch.equal(Y.cpu(), getattr(reference, name)(X.detach().cpu()))
        assert torch.equal(D.cpu(), getattr(reference, name + "_adjoint")(G.cpu()))


@pytest.mark.parametrize("n", [3, 24, 300])
@pytest.mark.parametrize("name", MAPS)
def test_never_waits_for_the_device(name, n):
    X, G = torch.randn(9, n, n, device="cuda", requires_grad=True), torch.randn(9, n, n, device="cuda")
    mode = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        torch.autograd.grad(getattr(F, name)(X), X, G)
    finally:
        torch.cuda.set_sync_debug_mode(mode)


@pytest.mark.parametrize("shape", [(1000, 3, 3), (50, 32, 32), (300, 300), (2048, 2048)])
@pytest.mark.parametrize("name", MAPS)
def test_one_launch_forward_one_backward(name, shape):
    X, G = torch.randn(shape, device="cuda", requires_grad=True), torch.randn(shape, device="cuda")
    torch.autograd.grad(getattr(F, name)(X), X, G)
    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as seen:
        torch.autograd.grad(getattr(F, name)(X), X, G)
        torch.cuda.synchronize()
    on_device = [e.name for e in seen.events() if e.device_type == torch.autograd.DeviceType.CUDA]
    if not on_device:
        pytest.skip("the profiler sees no device activity here")
    assert len(on_device) == 2 and all("triangular" in kernel for kernel in on_device), on_device


# ---- memory, determinism ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(200_000, 3, 3), (1024, 32, 32), (2048, 2048)])
@pytest.mark.parametrize("name", OPS)
def test_allocates_its_output_only(name, shape):
    X = torch.randn(shape, device="cuda")
    op(name)(X)
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    Y = op(name)(X)
    assert torch.cuda.max_memory_allocated() - before <= Y.nbytes + 512
    del Y
    assert torch.cuda.memory_allocated() == before


def test_keeps_nothing_for_backward():
    X = torch.randn(1024, 1024, device="cuda", requires_grad=True)
    before = torch.cuda.memory_allocated()
    Y = F.skew(X)
    grad_fn = Y.grad_fn
    del Y
    assert grad_fn is not None and torch.cuda.memory_allocated() == before


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", OPS)
def test_same_input_same_bits(name, dtype):
    for n in (3, 24, 130, 1000):
        X = torch.randn(5, n, n, device="cuda").to(dtype)
        first = op(name)(X)
        assert all(torch.equal(op(name)(X), first) for _ in range(5))


# ---- beyond 2^31 elements ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [46400, 46341], ids=["by 16 bytes", "by elements"])
@pytest.mark.parametrize("name", OPS)
def test_more_than_2_31_elements_in_a_matrix(name, n):
    needs_memory(48)
    X = torch.empty(n, n, device="cuda", dtype=torch.bfloat16).normal_()
    Y = op(name)(X)
    sign = -1 if "skew" in name else 1
    columns = torch.arange(n, device="cuda")
    for start in range(0, n, 4096):
        rows = columns[start : start + 4096, None]
        across, down = X[start : start + 4096], X[:, start : start + 4096].mT * sign
        above = across + down if "adjoint" in name else across
        below = torch.zeros_like(down) if "adjoint" in name else down
        diagonal = torch.zeros_like(across) if sign < 0 else across
        want = torch.where(columns > rows, above, torch.where(columns < rows, below, diagonal))
        assert torch.equal(Y[start : start + 4096], want)


@pytest.mark.parametrize("name", OPS)
def test_more_than_2_31_elements_in_tiny_matrices(name):
    needs_memory(48)
    batch = (1 << 31) // 9 + 1000
    X = torch.empty(batch, 3, 3, device="cuda", dtype=torch.bfloat16).normal_()
    Y = op(name)(X)
    for part in (slice(0, 1000), slice(batch // 2, batch // 2 + 1000), slice(batch - 1000, batch)):
        assert torch.equal(Y[part].cpu(), getattr(reference, name)(X[part].cpu()))
