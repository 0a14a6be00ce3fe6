"""masked_prune with several chunks per thread of its CUDA kernel: lengths that the other tests of the op do
not reach.
"""

from __future__ import annotations

import pytest
import torch
from table import COMPLEX, REAL, bits
from test_prune import any_numbers, random_mask, where_bits

from fastparam.functional import masked_prune, pack_mask, unpack_mask

LENGTHS = (2**20 - 1, 2**20 + 1, 3 * 2**20 + 7, 2**23 + 5)
every_dtype = pytest.mark.parametrize(
    "dtype", REAL + COMPLEX, ids=lambda dtype: str(dtype).removeprefix("torch.")
)


def lengths(gpu: str) -> tuple[int, ...]:
    return LENGTHS if gpu == "cuda" else tuple(n // 1000 for n in LENGTHS)


@every_dtype
def test_many_chunks_a_thread(dtype, gpu):
    for n in lengths(gpu):
        X, keep = any_numbers(n, dtype=dtype, device=gpu), random_mask(n, device=gpu)
        for x, m in (
            (X, keep),
            (X, pack_mask(keep)),
            (X[1:], keep[1:]),
            (X[1:], pack_mask(keep[1:])),
            (X[:-1], keep[1:]),
        ):
            kept = m if m.dtype == torch.bool else keep[1:] if x.numel() < n else keep
            assert torch.equal(bits(masked_prune(x, m)), where_bits(x, kept))


@every_dtype
@pytest.mark.parametrize("last", [1024, 1001])
def test_many_rows(dtype, last, gpu):
    rows = lengths(gpu)[2] // last + 1
    X = any_numbers(rows, last, dtype=dtype, device=gpu)
    for small in ((1, last), (rows, 1)):
        keep = random_mask(*small, device=gpu)
        assert torch.equal(bits(masked_prune(X, keep)), where_bits(X, keep))


def test_packing_of_long_masks(gpu):
    for n in lengths(gpu):
        m = random_mask(n, device=gpu)
        for given in (m, m[1:], m[3:]):
            packed = pack_mask(given)
            assert torch.equal(unpack_mask(packed, given.shape), given)
            assert torch.equal(pack_mask(given.cpu()), packed.cpu())
