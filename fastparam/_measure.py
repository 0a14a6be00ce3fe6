"""``python -m fastparam --measure``: how far the ops are from their floors on this machine."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from . import functional
from ._cayley import trivialized_cayley

Step = Callable[[], object]
ROUNDS = 9
LEAST = 1e-3  # seconds of a round: a clock ticks, and a launch on CUDA takes its time


@dataclass(frozen=True)
class Row:
    """An op, and its floor: a copy of its argument or result, whichever is larger, or, where products bound
    the op, as many of them as it cannot avoid, forward and forward + backward.
    """

    op: str
    f: Callable[[Tensor], Tensor]
    X: Tensor
    products: tuple[int, int] | None = None

    def steps(self) -> Iterator[tuple[Step, Step]]:
        """The op and what its floor is counted in: forward; forward + backward, if there is one."""
        f, X, Y = self.f, self.X, self.f(self.X)
        larger = max(X, Y, key=lambda t: t.nbytes)

        def product() -> Tensor:
            result: Tensor = Y @ Y[..., : Y.shape[-1], :]
            return result

        yield lambda: f(X), product if self.products else larger.clone
        if not X.is_floating_point():
            return
        V, Z, G = X.clone().requires_grad_(), Y.clone().requires_grad_(), torch.randn_like(Y)

        def copies() -> None:
            torch.autograd.grad(Z.clone(), Z, G)
            G.clone()  # the gradient, since the backward pass of clone hands on the one that it is given

        yield lambda: torch.autograd.grad(f(V), V, G), product if self.products else copies


def rows(device: torch.device) -> Iterator[Row]:
    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, device=device).div(max(shape[-2:]) ** 0.5)

    for op in (functional.symmetric, functional.skew):
        for shape in ((8, 8), (64, 64, 64), (512, 512), (2048, 2048)):
            yield Row(op.__name__, op, normal(*shape))
    for n in (8, 512, 2048):
        mask = normal(n, n) > 0
        yield Row("masked_prune", partial(functional.masked_prune, mask=mask), normal(n, n))
    mask = normal(512, 512) > 0
    yield Row("pack_mask", functional.pack_mask, mask)
    bits = functional.pack_mask(mask)
    yield Row("unpack_mask", partial(functional.unpack_mask, size=mask.shape), bits)
    for shape in ((4096, 4, 4), (4096, 8, 8)):
        yield Row("skew_cayley", functional.skew_cayley, normal(*shape))
    for shape in (
        (1024, 16, 16),
        (256, 32, 32),
        (64, 64, 64),
        (128, 128),
        (256, 256),
        (512, 512),
        (1024, 1024),
    ):
        yield Row("skew_cayley", functional.skew_cayley, normal(*shape), (1, 3))
    yield Row("skew_cayley_packed", functional.skew_cayley_packed, normal(256, 496) / 5, (1, 3))
    yield Row("cayley", functional.cayley, functional.skew(normal(256, 32, 32)), (1, 3))
    for shape in ((900, 48), (1024, 64), (4096, 128)):
        yield Row("stiefel_cayley", functional.stiefel_cayley, normal(*shape), (2, 6))
    base = torch.linalg.qr(normal(512, 512)).Q
    trivialized = partial(trivialized_cayley, base=base, alpha=-0.5, lower=True)
    yield Row("trivialized_cayley", trivialized, normal(512, 512), (2, 4))
    # the products of the polynomial, and two beside each of them, which are made again; no squaring
    exponentials: tuple[Callable[..., Tensor], ...] = (
        functional.skew_exp,
        functional.symmetric_exp,
        functional.matrix_exp,
    )
    for op in exponentials:
        for shape in ((1024, 8, 8), (64, 32, 32), (256, 256)):
            yield Row(op.__name__, op, normal(*shape), (4, 16))
    direction = partial(functional.exp_frechet, normal(64, 32, 32))
    yield Row("exp_frechet", direction, normal(64, 32, 32), (12, 24))
    for shape in ((128, 32, 32), (256, 256)):
        yield Row("householder", functional.householder, normal(*shape), (2, 6))


def seconds(step: Step, calls: int, device: torch.device) -> float:
    """Of one call. On a CPU of the thread's own time, in which other work on the machine has no part."""
    on_cuda = device.type == "cuda"
    clock = time.perf_counter if on_cuda else time.thread_time
    if on_cuda:
        torch.cuda.synchronize(device)
    start = clock()
    for _ in range(calls):
        step()
    if on_cuda:
        torch.cuda.synchronize(device)
    return (clock() - start) / calls


def compare(steps: tuple[Step, Step], device: torch.device) -> list[float]:
    """Seconds of one call of each, medians of rounds in turn."""
    calls = []
    for step in steps:
        seconds(step, 2, device)
        once = min(seconds(step, 1, device) for _ in range(3))
        calls.append(max(1, int(LEAST / max(once, 1e-7))))
    rounds = [[seconds(s, c, device) for s, c in zip(steps, calls, strict=True)] for _ in range(ROUNDS)]
    return [statistics.median(column) for column in zip(*rounds, strict=True)]


def table(device: torch.device) -> Iterator[str]:
    """Lines: microseconds of each op, and how many times its floor they are; on a CPU of one thread."""
    titles = ("op", "shape", "forward us", "x floor", "+ backward us", "x floor", "floor")
    line = "{:<20}{:<14}{:>11}{:>9}{:>15}{:>9}  {}".format
    yield line(*titles)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for row in rows(device):
            cells = []
            for steps, count in zip(row.steps(), row.products or (1, 1), strict=False):
                ours, unit = compare(steps, device)
                cells += [f"{1e6 * ours:.1f}", f"{ours / unit / count:.2f}"]
            floor = "{} | {} products".format(*row.products) if row.products else "copy"
            shape = "x".join(map(str, row.X.shape))
            yield line(row.op, shape, *cells, *["-"] * (4 - len(cells)), floor)
    finally:
        torch.set_num_threads(threads)
