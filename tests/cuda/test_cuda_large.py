"""More elements than 32 bits can count, if the memory of the device allows it. Without a device, the tests
run at a small size.
"""

from __future__ import annotations

import math

import pytest
import torch
from table import CASES, Case
from test_cuda_graphs import agree
from torch import Tensor

from fastparam.functional import masked_prune, pack_mask, unpack_mask

GIB = 1 << 30
every_square = pytest.mark.parametrize(
    "case", [case for case in CASES if case.square], ids=lambda case: case.name
)
every_triangular = pytest.mark.parametrize(
    "case",
    [case for case in CASES if case.word.split("_")[0] in ("symmetric", "skew") and case.linear],
    ids=lambda case: case.name,
)


@pytest.fixture
def limit(gpu: str) -> int:
    return 1 << 31 if gpu == "cuda" else 1 << 12


@pytest.fixture(autouse=True)
def give_back():
    yield
    torch.cuda.empty_cache()


def needs_memory(gib: int) -> None:
    torch.cuda.empty_cache()
    free = torch.cuda.mem_get_info()[0] / GIB
    if free < gib:
        pytest.skip(f"needs {gib} GiB of free device memory, {free:.0f} are there")


def normal(*shape: int, dtype: torch.dtype, device: str) -> Tensor:
    return torch.empty(*shape, device=device, dtype=dtype).normal_()


def parts(count: int, size: int = 1000) -> list[slice]:
    """The first, the middle and the last part of this many elements."""
    size = min(size, count)
    return [slice(0, size), slice((count - size) // 2, (count + size) // 2), slice(count - size, count)]


@every_triangular
@pytest.mark.parametrize("by", ["16 bytes", "elements"])
def test_in_one_matrix(case: Case, by: str, gpu: str, limit: int) -> None:
    needs_memory(48)
    n = math.isqrt(limit) // 8 * 8 + (16 if by == "16 bytes" else 11)
    assert n * n > limit
    X = normal(n, n, dtype=torch.bfloat16, device=gpu)
    Y = case.op(X, *case.others)
    sign, adjoint, (lower,) = (-1 if "skew" in case.word else 1), "adjoint" in case.word, case.others
    places = torch.arange(n, device=gpu)
    chunk = max(1, n // 12)
    for start in range(0, n, chunk):
        rows, across, down = (
            places[start : start + chunk, None],
            X[start : start + chunk],
            X[:, start : start + chunk].mT * sign,
        )
        given = places < rows if lower else places > rows
        mirrored = places > rows if lower else places < rows
        wanted = torch.where(
            given, across + down if adjoint else across, torch.zeros_like(across) if sign < 0 else across
        )
        wanted = torch.where(mirrored, torch.zeros_like(down) if adjoint else down, wanted)
        assert torch.equal(Y[start : start + chunk], wanted)


@every_square
@pytest.mark.parametrize("n", [3, 32, 40])
def test_in_many_matrices(case: Case, n: int, gpu: str, limit: int) -> None:
    needs_memory(48 if case.linear else 120)
    batch = limit // (n * n) + 1001
    dtype = torch.bfloat16 if case.linear else torch.float32
    X = case.inputs(batch, n=n, dtype=dtype, device=gpu, grad=False)
    others = case.arguments(X[0])
    Y = case.op(*X, *others)
    for part in parts(batch):
        x = tuple(x[part] for x in X)
        theirs = [a[part] if isinstance(a, torch.Tensor) and len(a) == batch else a for a in others]
        agree(case, Y[part], case.op(*x, *theirs))
        if case.linear:
            assert torch.equal(Y[part].cpu(), case.reference(*(t.cpu() for t in x), *theirs))


@pytest.mark.parametrize("kind", ["packed", "bool", "row", "column"])
def test_prune(kind: str, gpu: str, limit: int) -> None:
    needs_memory(48)
    wide = math.isqrt(limit)
    shape = (limit // wide + 3, wide)
    mask_shape = {"row": (1, shape[1]), "column": (shape[0], 1)}.get(kind, shape)
    X = normal(*shape, dtype=torch.bfloat16, device=gpu)
    mask = torch.empty(mask_shape, dtype=torch.uint8, device=gpu).random_(2).bool()
    assert X.numel() > limit
    Y = masked_prune(X, pack_mask(mask) if kind == "packed" else mask)
    chunk = max(1, shape[0] // 16)
    for start in range(0, shape[0], chunk):
        rows = slice(start, start + chunk)
        kept = mask if kind == "row" else mask[rows]
        assert torch.equal(Y[rows], torch.where(kept, X[rows], 0))


def test_packing(gpu: str, limit: int) -> None:
    needs_memory(16)
    count = limit + 1003
    mask = torch.empty(count, dtype=torch.uint8, device=gpu).random_(2).bool()
    packed = pack_mask(mask)
    assert packed.numel() == (count + 7) // 8 and torch.equal(unpack_mask(packed, (count,)), mask)
    last = count // 8 * 8 - 800
    assert torch.equal(packed[last // 8 :], pack_mask(mask[last:].clone()))
