"""masked_prune, pack_mask and unpack_mask under vmap: over X, over the mask, over both, and nested."""

import math
import re

import pytest
import torch
from table import F64, mask, ops
from test_prune import X33, random_mask

from fastparam.functional import masked_prune, pack_mask, unpack_mask


@pytest.mark.parametrize("shape", [(), (5,), (3, 3), (2, 3, 5)], ids=str)
def test_vmap(shape, device):
    X, keep = torch.randn(4, *shape, dtype=F64, device=device), random_mask(4, *shape, device=device)
    packed = torch.stack([pack_mask(m) for m in keep])
    expected = torch.where(keep, X, 0)
    for m in (keep, packed):
        assert torch.equal(torch.vmap(masked_prune)(X, m), expected)
        assert torch.equal(torch.vmap(masked_prune, in_dims=(0, None))(X, m[0]), torch.where(keep[0], X, 0))
        assert torch.equal(torch.vmap(masked_prune, in_dims=(None, 0))(X[0], m), torch.where(keep, X[0], 0))
        assert torch.equal(torch.vmap(masked_prune, in_dims=(0, -1))(X, m.movedim(0, -1)), expected)
        if shape:
            assert torch.equal(
                torch.vmap(masked_prune, in_dims=(-1, 0), out_dims=-1)(X.movedim(0, -1), m),
                expected.movedim(0, -1),
            )
        gradient = torch.vmap(torch.func.grad(lambda X, m: (masked_prune(X, m) ** 3).sum()))(X, m)
        torch.testing.assert_close(gradient, 3 * expected**2)
        tangents = torch.func.jvp(lambda X: torch.vmap(masked_prune)(X, m), (X,), (X,))[1]  # noqa: B023
        assert torch.equal(tangents, expected)


def test_nested_vmap():
    X, keep = torch.randn(4, 5, 3, 3), random_mask(4, 5, 3, 3)
    packed = torch.stack([torch.stack([pack_mask(m) for m in row]) for row in keep])
    for m in (keep, packed):
        assert torch.equal(torch.vmap(torch.vmap(masked_prune))(X, m), torch.where(keep, X, 0))
        inner = torch.vmap(torch.vmap(masked_prune, in_dims=(0, None)), in_dims=(0, None))
        assert torch.equal(inner(X, m[0, 0]), torch.where(keep[0, 0], X, 0))


def test_vmap_over_masks_of_fewer_dimensions():
    X = torch.randn(
        3, 3, 3
    )  # the batch is as large as a matrix: a mask shifted by one dimension would fit, too
    row, rows = random_mask(3), random_mask(3, 3)
    for f in (masked_prune, ops.masked_prune.default):
        assert torch.equal(torch.vmap(f, in_dims=(0, None))(X, row), torch.where(row, X, 0))
        assert torch.equal(torch.vmap(f)(X, rows), torch.where(rows[:, None, :], X, 0))
        assert torch.equal(
            torch.vmap(f, in_dims=(None, 1))(X[0], rows), torch.where(rows.mT[:, None, :], X[0], 0)
        )
        assert torch.equal(torch.vmap(f)(X, row), torch.where(row[:, None, None], X, 0))
    with pytest.raises(ValueError, match=r"^masked_prune: expected mask to be broadcastable to X of shape "):
        torch.vmap(masked_prune)(X[0, 0], rows)


@pytest.mark.filterwarnings("error")  # torch warns if it loops over examples
@pytest.mark.parametrize("shape", [(), (8,), (13,), (0,), (3, 5), (2, 3, 8)], ids=str)
def test_packing_in_vmap(shape, device):
    for batch in (4, 0):
        m = random_mask(batch, *shape, device=device)
        packed = torch.vmap(pack_mask)(m)
        assert packed.shape == (batch, math.ceil(math.prod(shape) / 8)) and packed.is_contiguous()
        assert all(torch.equal(p, pack_mask(one)) for p, one in zip(packed, m, strict=True))
        assert torch.equal(torch.vmap(pack_mask, in_dims=-1)(m.movedim(0, -1)), packed)
        for dim in (0, 1):
            back = torch.vmap(lambda p: unpack_mask(p, shape), in_dims=dim)(packed.movedim(0, dim))
            assert back.dtype == torch.bool and back.is_contiguous() and torch.equal(back, m)
    nested = random_mask(2, 3, 9, device=device)
    assert torch.equal(torch.vmap(torch.vmap(lambda m: unpack_mask(pack_mask(m), (9,))))(nested), nested)
    for f, sentence in [
        (lambda: torch.vmap(pack_mask)(X33), "pack_mask: expected mask of dtype bool, got float32"),
        (
            lambda: torch.vmap(lambda p: unpack_mask(p, (3, 7)))(pack_mask(mask((32,))).view(2, 2)),
            "unpack_mask: expected packed of shape (3,) for size (3, 7), got (2,)",
        ),
        (
            lambda: torch.vmap(lambda p: unpack_mask(p, (3,)))(pack_mask(mask((8,)))),
            "unpack_mask: expected packed of shape (1,) for size (3,), got ()",
        ),
    ]:
        with pytest.raises(ValueError, match=f"^{re.escape(sentence)}$"):
            f()
