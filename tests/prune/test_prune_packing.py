"""pack_mask and unpack_mask: one bit an entry, in numpy's order, through vmap and the compiler; what they refuse."""

import math
import re

import numpy
import pytest
import torch
from table import mask, ops
from test_prune import LENGTHS, SHAPES, X33, random_mask
from torch.fx.experimental.proxy_tensor import make_fx

from fastparam.functional import masked_prune, pack_mask, unpack_mask


def test_pack_is_numpys(device):
    for n in LENGTHS:
        m = random_mask(n, device=device)
        packed = pack_mask(m)
        assert packed.dtype == torch.uint8 and packed.shape == (math.ceil(n / 8),) and packed.device == m.device
        assert numpy.array_equal(packed.cpu().numpy(), numpy.packbits(m.cpu().numpy(), bitorder="little"))
        assert torch.equal(unpack_mask(packed, (n,)), m)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_round_trip(shape, device):
    m = random_mask(*shape, device=device)
    for size in (m.shape, tuple(shape), list(shape)):
        back = unpack_mask(pack_mask(m), size)
        assert back.dtype == torch.bool and back.is_contiguous() and torch.equal(back, m)
    if m.dim() > 1:
        assert torch.equal(unpack_mask(pack_mask(m.mT), m.mT.shape), m.mT), "in the order of the mask's dimensions, not of memory"


@pytest.mark.filterwarnings("error")  # torch warns of what it does example by example
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


def test_bits_after_the_last_entry_do_not_matter():
    X, m = torch.randn(13), mask((13,))
    packed = pack_mask(m)
    assert packed[-1] < 32
    packed[-1] += 0b11100000
    assert torch.equal(masked_prune(X, packed), torch.where(m, X, 0)) and torch.equal(unpack_mask(packed, (13,)), m)


def test_packing_through_the_compiler_and_opcheck(dynamo):
    m = mask((3, 7))
    f = lambda m: unpack_mask(pack_mask(m), (3, 7))
    assert torch.equal(torch.compile(f, fullgraph=True, backend="aot_eager")(m), m)
    assert torch.equal(make_fx(f)(m)(m), m)
    torch.library.opcheck(ops.pack_mask.default, (m,))
    torch.library.opcheck(ops.unpack_mask.default, (pack_mask(m), [3, 7]))
    assert pack_mask(m.to("meta")).shape == (3,) and unpack_mask(pack_mask(m.to("meta")), (3, 7)).shape == (3, 7)


# ---- errors ----


@pytest.mark.parametrize("size", [13, 1.5, "13", None, (13.0,), torch.tensor([13])], ids=repr)
def test_not_a_size(size):
    with pytest.raises(TypeError, match=f"^{re.escape(f'unpack_mask: expected size to be a sequence of ints, got {size!r}')}$"):
        unpack_mask(pack_mask(mask((13,))), size)


def test_sentences_of_packing():
    for f, sentence in [
        (lambda: pack_mask(X33), "pack_mask: expected mask of dtype bool, got float32"),
        (lambda: unpack_mask(mask((3,)), (3,)), "unpack_mask: expected packed of dtype uint8, got bool"),
        (lambda: unpack_mask(pack_mask(mask((9,))), (3, 7)), "unpack_mask: expected packed of shape (3,) for size (3, 7), got (2,)"),
        (lambda: unpack_mask(pack_mask(mask((9,))), (-3, -3)), "unpack_mask: expected sizes of at least 0, got (-3, -3)"),
    ]:
        with pytest.raises(ValueError, match=f"^{re.escape(sentence)}$"):
            f()
