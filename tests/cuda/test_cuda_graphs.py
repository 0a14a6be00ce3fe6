"""CUDA graphs: a captured forward and backward of every op, replayed on new data."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import pytest
import torch
from table import Case, every
from torch import Tensor
from torch.nn.utils import parametrize

import fastparam
from fastparam.functional import pack_mask, unpack_mask

SHAPES = [(1000, 3), (50, 16), (50, 32), (5, 100), (2, 300)]  # (batch, n)
every_shape = pytest.mark.parametrize("batch, n", SHAPES, ids=str)


def fixed(case: Case, X: tuple[Tensor, ...]) -> Callable[..., Tensor]:
    """The op as a function of its tensors. Its other arguments are made once instead of at each call, because
    a mask can come from the host.
    """
    made = dataclasses.replace(case, others=case.arguments(X[0]))
    return made.bind(made.entry)


def agree(case: Case, actual: Tensor, expected: Tensor) -> None:
    """Compares bit for bit or, if the op contains matrix products, whose algorithm can depend on the stream,
    up to a tolerance.
    """
    if case.linear:
        assert torch.equal(actual, expected)
    else:
        assert (actual - expected).abs().max() <= 1e-3 * expected.abs().max()


def capture(step: Callable[[], tuple[Tensor, ...]]) -> tuple[torch.cuda.CUDAGraph, tuple[Tensor, ...]]:
    """Runs the step once on a side stream, as capture requires, and then captures it. Returns the graph and
    the tensors that it writes.
    """
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        written = step()
    return graph, written


@every
@every_shape
def test_graph_of_forward_and_backward(case, batch, n, gpu):
    def draw() -> tuple[Tensor, ...]:
        return case.inputs(batch, n=n, dtype=torch.float32, device=gpu)

    X = draw()
    f = fixed(case, X)
    G = torch.randn_like(f(*X))

    def step() -> tuple[Tensor, ...]:
        Y = f(*X)
        return (Y.detach(), *torch.autograd.grad(Y, X, G))

    graph, written = capture(step)
    for _ in range(2):
        with torch.no_grad():
            for t, new in zip((*X, G), (*draw(), torch.randn_like(G)), strict=True):
                t.copy_(new)
        graph.replay()
        torch.cuda.synchronize()
        for actual, expected in zip(written, step(), strict=True):
            agree(case, actual, expected)


def test_graph_of_packing(gpu):
    m = torch.rand(3, 1001, device=gpu) > 0.4
    graph, (packed, back) = capture(lambda: (p := pack_mask(m), unpack_mask(p, m.shape)))
    for _ in range(2):
        m.copy_(torch.rand(3, 1001, device=gpu) > 0.4)
        graph.replay()
        torch.cuda.synchronize()
        assert torch.equal(packed, pack_mask(m)) and torch.equal(back, m)


def test_graph_of_a_parametrized_layer_in_training(gpu):
    """A whole step is captured once. The losses of the replays are those of the same steps without
    a graph.
    """

    def start() -> torch.nn.Module:
        torch.manual_seed(1)
        layer = torch.nn.Linear(48, 48, device=gpu)
        parametrize.register_parametrization(layer, "weight", fastparam.Skew())
        return layer

    data = torch.randn(4, 16, 48, device=gpu)

    def losses(captured: bool) -> list[float]:
        layer, x = start(), data[0].clone()

        def step() -> tuple[Tensor, ...]:
            layer.zero_grad()
            loss = (layer(x) - x).square().mean()
            loss.backward()
            with torch.no_grad():
                for p in layer.parameters():
                    p.sub_(p.grad, alpha=0.1)
            return (loss.detach(),)

        seen, run = [], step
        if captured:
            before = [p.detach().clone() for p in layer.parameters()]
            graph, written = capture(step)
            with torch.no_grad():
                for p, old in zip(layer.parameters(), before, strict=True):
                    p.copy_(old)  # the warm-up was a step, too
            run = lambda: graph.replay() or written
        for batch in data:
            x.copy_(batch)
            seen.append(run()[0].item())
        return seen

    torch.testing.assert_close(losses(captured=True), losses(captured=False), rtol=1e-4, atol=0)
