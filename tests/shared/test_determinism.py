"""The same input gives the same bits, for any number of threads and any position of a matrix in a batch.

This holds for kernels. trivialized_cayley ends in torch's matmul. householder of large matrices, second
derivatives of the Cayley maps and complex dtypes are expressions of ATen, whose libraries sum in an order
that depends on both.
"""

import pytest
import torch
from table import CASES, REAL, Case, bits
from torch import Tensor

from fastparam import _reference as reference

# Orders of every path: lanes, rows, blocks, threads that share a matrix, and orders for which LAPACK would
# be worth a call.
SHAPES = [(300, 3), (40, 4), (37, 8), (21, 17), (9, 33), (5, 65), (3, 130), (3, 200), (17, 200), (2, 300)]
WITH_KERNELS = [case for case in CASES if not case.word.startswith("trivialized_cayley")]
every_kernel = pytest.mark.parametrize("case", WITH_KERNELS, ids=lambda case: case.name)


@pytest.fixture
def threads():
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def inputs(case: Case, batch: int, n: int, dtype: torch.dtype, device: str = "cpu") -> tuple[Tensor, ...]:
    """Matrices of many kinds side by side: well scaled, beyond the guard, exactly skew and not, and one of
    NaN.
    """
    X = case.inputs(batch, n=n, dtype=torch.float64, device=device, grad=False)
    X = tuple(x / n**0.5 for x in X)
    for x in X:
        x[::3] *= 1e3
        x[::2] = x[::2].triu(1) - x[::2].triu(1).mT
    if batch > 4:
        X[0][4, 0, 1:] = torch.nan
    return tuple(x.to(dtype) for x in X)


def both_ways(case: Case, X: tuple[Tensor, ...], G: Tensor, others: tuple) -> tuple[Tensor, ...]:
    once = case.linear or len(X) == 1  # otherwise a backward op, whose derivative is a second derivative
    X = tuple(x.detach().requires_grad_(once) for x in X)
    Y = case.after(case.op(*case.prepared(*X, others=others)), X[0].shape[-1])
    return (Y.detach(), *(torch.autograd.grad(Y, X, G) if once else ()))


def same(actual: tuple[Tensor, ...], expected: tuple[Tensor, ...]) -> bool:
    """NaN at the same positions, because the payload depends on the processor, and otherwise the
    same bits.
    """
    return all(
        torch.equal(a.isnan(), e.isnan()) and torch.equal(bits(a.nan_to_num()), bits(e.nan_to_num()))
        for a, e in zip(actual, expected, strict=True)
    )


@every_kernel
def test_any_number_of_threads(case, threads):
    for dtype in REAL:
        for batch, n in SHAPES:
            X = inputs(case, batch, n, dtype)
            G, others = torch.randn(batch, n, n).to(dtype), case.arguments(X[0])
            threads(1)
            expected = both_ways(case, X, G, others)
            # a number that does not divide the matrices, and more threads than there are matrices
            for count in (3, 8):
                threads(count)
                assert same(both_ways(case, X, G, others), expected), (dtype, batch, n, count)


def alone(argument: object, shape: torch.Size, i: int) -> object:
    """Returns the part for matrix i of an argument for a batch of this shape."""
    if not isinstance(argument, Tensor):
        return argument
    if argument.dtype == torch.uint8:
        return reference.pack_mask(reference.unpack_mask(argument, shape)[i])
    return argument[i if len(argument) == shape[0] else 0]


@every_kernel
def test_any_place_in_a_batch(case, device):
    """On a GPU up to a tolerance, because we do not control the order of its BLAS."""
    for dtype in REAL:
        for batch, n in SHAPES:
            X = inputs(case, batch, n, dtype, device)
            G, others = torch.randn(batch, n, n, device=device).to(dtype), case.arguments(X[0])
            together = both_ways(case, X, G, others)
            for i in {0, 1, 2, 4, batch // 2, batch - 1} & set(range(batch)):
                one = tuple(alone(a, X[0].shape, i) for a in others)
                apart, within = (
                    both_ways(case, tuple(x[i] for x in X), G[i], one),
                    tuple(t[i] for t in together),
                )
                if device == "cpu":
                    assert same(apart, within), (dtype, batch, n, i)
                else:
                    case.check(apart, within)
