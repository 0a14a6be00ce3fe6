"""pack_mask and unpack_mask: one bit per entry, in numpy's order, under the compiler, and their errors."""

import math
import re

import numpy
import pytest
import torch
from table import mask, ops
from test_prune import LENGTHS, SHAPES, X33, random_mask
from test_system import unusual
from torch.fx.experimental.proxy_tensor import make_fx

from fastparam.functional import masked_prune, pack_mask, unpack_mask


def test_pack_is_numpys(device):
    for n in LENGTHS:
        m = random_mask(n, device=device)
        packed = pack_mask(m)
        assert (
            packed.dtype == torch.uint8 and packed.shape == (math.ceil(n / 8),) and packed.device == m.device
        )
        assert numpy.array_equal(packed.cpu().numpy(), numpy.packbits(m.cpu().numpy(), bitorder="little"))
        assert torch.equal(unpack_mask(packed, (n,)), m)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_round_trip(shape, device):
    m = random_mask(*shape, device=device)
    for size in (m.shape, tuple(shape), list(shape)):
        back = unpack_mask(pack_mask(m), size)
        assert back.dtype == torch.bool and back.is_contiguous() and torch.equal(back, m)
    if m.dim() > 1:
        assert torch.equal(unpack_mask(pack_mask(m.mT), m.mT.shape), m.mT), (
            "in the order of the mask's dimensions, not of memory"
        )


def test_bits_after_the_last_entry_do_not_matter():
    X, m = torch.randn(13), mask((13,))
    packed = pack_mask(m)
    assert packed[-1] < 32
    packed[-1] += 0b11100000
    assert torch.equal(masked_prune(X, packed), torch.where(m, X, 0)) and torch.equal(
        unpack_mask(packed, (13,)), m
    )


def test_packing_through_the_compiler_and_opcheck(dynamo):
    m = mask((3, 7))
    f = lambda m: unpack_mask(pack_mask(m), (3, 7))
    assert torch.equal(torch.compile(f, fullgraph=True, backend="aot_eager")(m), m)
    assert torch.equal(make_fx(f)(m)(m), m)
    torch.library.opcheck(ops.pack_mask.default, (m,))
    torch.library.opcheck(ops.unpack_mask.default, (pack_mask(m), [3, 7]))
    assert pack_mask(m.to("meta")).shape == (3,) and unpack_mask(pack_mask(m.to("meta")), (3, 7)).shape == (
        3,
        7,
    )


# ---- errors ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [13, 1.5, "13", None, (13.0,), torch.tensor([13])], ids=repr)
def test_not_a_size(size):
    sentence = f"unpack_mask: expected size to be a sequence of ints, got {size!r}"
    with pytest.raises(TypeError, match=f"^{re.escape(sentence)}$"):
        unpack_mask(pack_mask(mask((13,))), size)


def test_sentences_of_packing():
    nine = pack_mask(mask((9,)))
    for f, sentence in [
        (lambda: pack_mask(X33), "pack_mask: expected mask of dtype bool, got float32"),
        (lambda: unpack_mask(mask((3,)), (3,)), "unpack_mask: expected packed of dtype uint8, got bool"),
        (
            lambda: unpack_mask(nine, (3, 7)),
            "unpack_mask: expected packed of shape (3,) for size (3, 7), got (2,)",
        ),
        (lambda: unpack_mask(nine, (-3, -3)), "unpack_mask: expected non-negative sizes, got (-3, -3)"),
    ]:
        with pytest.raises(ValueError, match=f"^{re.escape(sentence)}$"):
            f()


def test_tensors_of_other_kinds():
    for f, argument in ((pack_mask, "mask"), (lambda packed: unpack_mask(packed, (3,)), "packed")):
        word = "pack_mask" if argument == "mask" else "unpack_mask"
        for kind, name in unusual():
            with pytest.raises(
                ValueError, match=f"^{word}: expected {argument} to be a strided tensor, got {name}$"
            ):
                f(kind)
        for thing, name in ((None, "NoneType"), ([[True]], "list"), (torch.Tensor, "the class Tensor")):
            with pytest.raises(
                TypeError, match=f"^{word}: expected {argument} to be a torch.Tensor, got {name}$"
            ):
                f(thing)
