"""Memory on the device: an op allocates its result and frees everything else, and the same input gives the
same bits, whatever ran before.
"""

from __future__ import annotations

import pytest
import torch
from table import REAL, bits, every, python
from test_cuda_graphs import fixed
from test_cuda_streams import every_linear, step


def requested(what: str) -> int:
    """Requested bytes, because allocated bytes are rounded up depending on the free memory that the allocator
    finds.
    """
    return torch.cuda.memory_stats()[f"requested_bytes.all.{what}"]


@every_linear
@pytest.mark.parametrize("batch, n", [(200_000, 3), (1024, 32), (1, 2048)])
def test_allocates_its_output_only(case, batch, n, gpu):
    X = case.inputs(batch, n=n, dtype=torch.float32, device=gpu, grad=False)
    f = fixed(case, X)
    f(*X)
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = requested("current")
    Y = f(*X)
    assert requested("peak") - before <= Y.nbytes
    del Y
    assert requested("current") == before


@every
@pytest.mark.parametrize("batch, n", [(1000, 3), (20, 33), (3, 100), (1, 300)])
def test_gives_all_memory_back(case, batch, n, gpu):
    X = case.inputs(batch, n=n, dtype=torch.float32, device=gpu)
    f = fixed(case, X)
    G = torch.randn_like(f(*X))
    for _ in range(2):  # libraries keep workspaces from their first calls
        step(f, X, G)
    torch.cuda.synchronize()
    allocated, reserved = torch.cuda.memory_allocated(), torch.cuda.memory_reserved()
    for _ in range(20):
        step(f, X, G)
    torch.cuda.synchronize()
    assert torch.cuda.memory_allocated() == allocated
    assert torch.cuda.memory_reserved() == reserved


@every_linear
def test_keeps_no_more_than_its_arguments_for_backward(case, gpu):
    X = case.inputs(n=1024, dtype=torch.float32, device=gpu)
    f = fixed(case, X)
    before = torch.cuda.memory_allocated()
    Y = f(*X)
    node = Y.grad_fn
    del Y
    assert node is not None and torch.cuda.memory_allocated() == before


@every
def test_same_input_same_bits(case, gpu):
    for dtype in REAL:
        for batch, n in [(50, 3), (50, 24), (5, 130), (1, 520)]:
            X = case.inputs(batch, n=n, dtype=dtype, device=gpu)
            f = fixed(case, X)
            G = torch.randn_like(f(*X))
            first = [bits(t) for t in step(f, X, G)]
            for _ in range(3):
                torch.randn(300, 300, device=gpu).mm(
                    torch.randn(300, 300, device=gpu)
                )  # something else in between
                assert all(
                    torch.equal(bits(t), wanted) for t, wanted in zip(step(f, X, G), first, strict=True)
                )


DIGEST = """
import hashlib, torch
from table import CASES, bits
torch.manual_seed(0)
for case in CASES:
    seen = hashlib.sha256()
    for batch, n in [(50, 3), (50, 24), (5, 130), (1, 300)]:
        X = case.inputs(batch, n=n, dtype=torch.float32, grad=False)
        X = tuple(x.to({device!r}).requires_grad_() for x in X)
        Y = case.bind(case.entry)(*X)
        G = torch.randn(Y.shape).to({device!r})
        for t in (Y, *torch.autograd.grad(Y, X, G)):
            seen.update(bits(t.detach()).cpu().numpy().tobytes())
    print(case.name, seen.hexdigest())
"""


@pytest.mark.slow
def test_same_bits_in_another_process(gpu):
    first, second = (python(DIGEST.format(device=gpu), timeout=300) for _ in range(2))
    assert first.returncode == second.returncode == 0, first.stderr + second.stderr
    assert first.stdout and first.stdout == second.stdout
