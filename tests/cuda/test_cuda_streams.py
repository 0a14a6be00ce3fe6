"""Where and when CUDA work runs: on the current stream, on the device of the input, in one launch, and
without waiting for the device.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

import pytest
import torch
from table import CASES, REAL, every
from test_cuda_graphs import agree, fixed
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from fastparam.functional import pack_mask, unpack_mask

every_linear = pytest.mark.parametrize(
    "case", [case for case in CASES if case.linear], ids=lambda case: case.name
)
every_n = pytest.mark.parametrize("n", [3, 24, 100, 300])


def step(f: Callable[..., Tensor], X: tuple[Tensor, ...], G: Tensor) -> tuple[Tensor, ...]:
    Y = f(*X)
    return (Y.detach(), *torch.autograd.grad(Y, X, G))


@contextlib.contextmanager
def no_waiting() -> Iterator[None]:
    """Makes any wait for the device that torch knows of an error."""
    mode = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode(mode)


@every
@every_n
def test_runs_on_the_current_stream(case, n, gpu):
    """The input arrives late, on a side stream. Work on another stream would read NaN."""
    source = case.inputs(4, n=n, dtype=torch.float32, device=gpu, grad=False)
    f, X = fixed(case, source), tuple(torch.full_like(x, torch.nan).requires_grad_() for x in source)
    G_source = torch.randn_like(f(*source))
    G = torch.full_like(G_source, torch.nan)
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(20_000_000)
        with torch.no_grad():
            for t, s in zip((*X, G), (*source, G_source), strict=True):
                t.copy_(s)
        seen = step(f, X, G)
    stream.synchronize()
    torch.cuda.synchronize()
    expected = step(f, tuple(s.clone().requires_grad_() for s in source), G_source)
    for actual, wanted in zip(seen, expected, strict=True):
        agree(case, actual, wanted)


def test_packing_runs_on_the_current_stream(gpu):
    source = torch.rand(100_003, device=gpu) > 0.5
    m = ~source
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(20_000_000)
        m.copy_(source)
        packed = pack_mask(m)
        back = unpack_mask(packed, m.shape)
    stream.synchronize()
    assert torch.equal(packed, pack_mask(source)) and torch.equal(back, source)


@every
def test_two_streams_at_once(case, gpu):
    """The same op runs on two streams at a time, and neither uses memory of the other."""
    X = [case.inputs(64, n=33, dtype=torch.float32, device=gpu, grad=False) for _ in range(2)]
    f = fixed(case, X[0])
    expected = [f(*x) for x in X]
    torch.cuda.synchronize()
    streams, seen = [torch.cuda.Stream() for _ in X], []
    for _ in range(5):
        for stream, x in zip(streams, X, strict=True):
            with torch.cuda.stream(stream):
                seen.append(f(*x))
    torch.cuda.synchronize()
    for i, Y in enumerate(seen):
        agree(case, Y, expected[i % 2])


@every
@pytest.mark.parametrize("n", [3, 100])
def test_runs_on_the_device_of_its_input(case, n, gpu):
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two CUDA devices")
    X = case.inputs(4, n=n, dtype=torch.float32, device="cuda:1")
    f, at_home = fixed(case, X), tuple(x.detach().to("cuda:0").requires_grad_() for x in X)
    with torch.cuda.device(0):
        Y = f(*X)
        gradients = torch.autograd.grad(Y, X, torch.ones_like(Y))
        assert torch.cuda.current_device() == 0 and all(t.device == X[0].device for t in (Y, *gradients))
        Z = fixed(case, at_home)(*at_home)
        agree(case, Y.detach().to("cuda:0"), Z.detach())


@every
@every_n
def test_never_waits_for_the_device(case, n, gpu):
    for dtype in REAL:
        X = case.inputs(9, n=n, dtype=dtype, device=gpu)
        f = fixed(case, X)
        G = torch.randn_like(f(*X))
        step(f, X, G)  # libraries that are loaded at the first call
        with no_waiting():
            step(f, X, G)


def test_packing_never_waits_for_the_device(gpu):
    m = torch.rand(1001, device=gpu) > 0.5
    with no_waiting():
        unpack_mask(pack_mask(m), m.shape)


@every_linear
@pytest.mark.parametrize("batch, n", [(1000, 3), (50, 32), (1, 300), (1, 2048)])
def test_one_launch_forward_one_backward(case, batch, n, gpu):
    X = case.inputs(batch, n=n, dtype=torch.float32, device=gpu)
    f = fixed(case, X)
    G = torch.randn_like(f(*X))
    step(f, X, G)
    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as seen:
        step(f, X, G)
        torch.cuda.synchronize()
    on_device = [event.name for event in seen.events() if event.device_type == torch.autograd.DeviceType.CUDA]
    if not on_device:
        pytest.skip("the profiler sees no device activity here")
    assert len(on_device) == 2 and all("fastparam" in kernel for kernel in on_device), on_device
