"""Pruning raises an error of one sentence, and leaves the layer and the random state unchanged; 2:4 masks."""

import re

import numpy
import pytest
import torch
from table import mask
from test_module_errors import Snapshot
from test_prune_module import X56, applied, prune_one
from test_system import unusual
from torch import nn
from torch.nn.utils import parametrize

from fastparam import Pruning, PruningParametrization
from fastparam import parametrizations as ours


def refused(sentence, f, kind=ValueError, layer=None):
    before, random = layer is not None and Snapshot(layer), torch.get_rng_state()
    with pytest.raises(kind, match=f"^{re.escape(sentence)}$"):
        f()
    assert torch.equal(torch.get_rng_state(), random)
    if layer is not None:
        before.check()


def pruned(amount=5):
    return ours.l1_unstructured(nn.Linear(7, 5), "weight", amount)


# ---- the module ------------------------------------------------------------------------------------------

AMOUNT = "amount=1.5 should either be a float in the range [0, 1] or a non-negative integer"
GIVEN = "Pruning.update_: expected a mask chosen by a rule, got one that was supplied"
BY_N_M = "Pruning.update_: expected a mask chosen by a rule with an amount, got one chosen by KeepNOfM"
QUANTIZED = torch.quantize_per_tensor(torch.ones(5, 6), 0.1, 0, torch.quint8)
MAGNITUDE = Pruning.magnitude(X56, 3)
BAD = [
    (
        lambda: Pruning(X56.sigmoid()),
        f"Pruning: expected mask to hold zeros and ones, got {X56.sigmoid()[0, 0]:.4g}",
    ),
    (
        lambda: Pruning(torch.ones(3, dtype=torch.uint8).view(torch.bits8)),
        "Pruning: expected mask to hold bools or numbers, got torch.bits8",
    ),
    (
        lambda: Pruning(torch.empty(3, dtype=torch.int4, device="meta")),
        "Pruning: expected mask to hold bools or numbers, got torch.int4",
    ),
    (lambda: Pruning(QUANTIZED), "Pruning: expected mask to hold bools or numbers, got torch.quint8"),
    (
        lambda: ours.from_torch({"weight_orig": X56, "weight_mask": QUANTIZED}),
        "from_torch: expected weight_mask to hold bools or numbers, got torch.quint8",
    ),
    (
        lambda: Pruning(nn.LazyLinear(3).weight),
        "Pruning: expected mask to have a shape, got an uninitialized tensor",
    ),
    (
        lambda: MAGNITUDE.update_(nn.LazyLinear(3).weight),
        "Pruning.update_: expected X to have a shape, got an uninitialized tensor",
    ),
    (lambda: Pruning(2 * mask((3, 3))), "Pruning: expected mask to hold zeros and ones, got 2"),
    (
        lambda: Pruning(torch.tensor([1.0, torch.nan])),
        "Pruning: expected mask to hold zeros and ones, got nan",
    ),
    (lambda: Pruning.random(X56, 1.5), "Pruning.random: expected p_drop between 0 and 1, got 1.5"),
    (
        lambda: PruningParametrization(X56, float("nan")),
        "PruningParametrization: expected p_drop between 0 and 1, got nan",
    ),
    (
        lambda: MAGNITUDE.magnitude(X56, 1, within=Pruning(mask((3, 3)))),
        "Pruning.magnitude: expected within to be broadcastable to X of shape (5, 6), got shape (3, 3)",
    ),
    (
        lambda: Pruning.random(X56[0], within=MAGNITUDE),
        "Pruning.random: expected within to be broadcastable to X of shape (6,), got shape (5, 6)",
    ),
    (
        lambda: Pruning.magnitude(X56, 31),
        "amount=31 should be smaller than the number of parameters to prune=30",
    ),
    (lambda: Pruning.magnitude(X56, 1.5), AMOUNT),
    (
        lambda: Pruning.structured(X56.to("meta"), 6, 2, 0),
        "amount=6 should be smaller than the number of parameters to prune=5",
    ),
    (lambda: Pruning.n_m(X56), "Pruning.n_m: expected X of shape (..., k * 4), got (5, 6)"),
    (lambda: Pruning.n_m(X56, 5, 4), "Pruning.n_m: expected 0 <= n <= m and m > 0, got n = 5, m = 4"),
    (lambda: MAGNITUDE.update_(X56[1:]), "Pruning.update_: expected X of shape (5, 6), got (4, 6)"),
    (lambda: MAGNITUDE.update_(X56.to("meta")), "Pruning.update_: expected X on cpu, got meta"),
    (lambda: MAGNITUDE.update_(X56, amount=1.5), AMOUNT),
    (lambda: Pruning(mask((5, 6))).update_(X56), GIVEN),
    (lambda: Pruning(mask((5, 6))).update_(X56, amount=3), GIVEN),
    (lambda: Pruning.n_m(X56, 1, 2).update_(X56, amount=3), BY_N_M),
]
BAD_KINDS = [
    (lambda: Pruning.random(X56, "0.2"), "Pruning.random: expected p_drop to be a number, got str"),
    (lambda: Pruning.random(X56, True), "Pruning.random: expected p_drop to be a number, got bool"),
    (
        lambda: Pruning.random(X56, generator="x"),
        "Pruning.random: expected generator to be a torch.Generator, got str",
    ),
    (
        lambda: Pruning.n_m(X56, 1, 2, within=mask((5, 6))),
        "Pruning.n_m: expected within to be a fastparam.Pruning, got Tensor",
    ),
    (
        lambda: Pruning.random(X56, within=Pruning),
        "Pruning.random: expected within to be a fastparam.Pruning, got the class Pruning",
    ),
    (lambda: Pruning.magnitude(X56, "1"), "Invalid type for amount: 1. Must be int or float."),
    (lambda: MAGNITUDE.update_(X56, amount="1"), "Invalid type for amount: 1. Must be int or float."),
    (lambda: Pruning.n_m(X56, 1.0, 2), "Pruning.n_m: expected n to be an int, got float"),
    (lambda: Pruning.structured(X56, 1, 2, "0"), "Pruning.structured: expected dim to be an int, got str"),
]


@pytest.mark.parametrize("case", range(len(BAD)))
def test_values(case):
    f, sentence = BAD[case]
    before = MAGNITUDE.mask, MAGNITUDE.rules
    refused(sentence, f)
    assert before[0] is MAGNITUDE.mask and before[1] is MAGNITUDE.rules


@pytest.mark.parametrize("case", range(len(BAD_KINDS)))
def test_kinds(case):
    f, sentence = BAD_KINDS[case]
    refused(sentence, f, TypeError)


def test_dim():
    sentence = "Invalid index 2 for tensor of size torch.Size([5, 6])"
    refused(sentence, lambda: Pruning.structured(X56, 1, 2, 2), IndexError)


# Every function that takes a tensor, as a function of it, and the beginning of its errors.
LAYER = pruned()
TAKE_X = {
    "PruningParametrization": (PruningParametrization, "PruningParametrization: expected X"),
    "random": (Pruning.random, "Pruning.random: expected X"),
    "magnitude": (lambda X: Pruning.magnitude(X, 1), "Pruning.magnitude: expected X"),
    "structured": (lambda X: Pruning.structured(X, 1, 2, 0), "Pruning.structured: expected X"),
    "n_m": (Pruning.n_m, "Pruning.n_m: expected X"),
    "update_": (Pruning.magnitude(torch.eye(3), 1).update_, "Pruning.update_: expected X"),
    "forward": (Pruning(torch.eye(3)), "masked_prune: expected X"),
    "right_inverse": (Pruning(torch.eye(3)).right_inverse, "masked_prune: expected X"),
    "compressed": (Pruning(torch.eye(3)).to_sparse_semi_structured, "masked_prune: expected X"),
}
TAKE_MASK = {
    "Pruning": (Pruning, "Pruning: expected mask"),
    "custom": (lambda m: ours.custom_from_mask(LAYER, "weight", m), "custom_from_mask: expected mask"),
    "scores": (
        lambda scores: ours.ln_structured(LAYER, "weight", 1, 2, 0, scores),
        "ln_structured: expected importance_scores",
    ),
}


@pytest.mark.parametrize("name", [*TAKE_X, *TAKE_MASK])
def test_tensors_of_other_layouts_and_no_tensors(name):
    f, words = {**TAKE_X, **TAKE_MASK}[name]
    for X, word in unusual():
        refused(f"{words} to be a strided tensor, got {word}", lambda: f(X))  # noqa: B023
    for thing in ("text", 1.0, [[1.0]], numpy.eye(3, dtype=numpy.float32), torch.Tensor, object):
        word = f"the class {thing.__name__}" if isinstance(thing, type) else type(thing).__name__
        refused(f"{words} to be a torch.Tensor, got {word}", lambda: f(thing), TypeError)  # noqa: B023


@pytest.mark.parametrize("name", TAKE_X)
def test_tensors_of_other_dtypes(name):
    f, words = TAKE_X[name]
    quantized = torch.quantize_per_tensor(torch.eye(3), 0.1, 0, torch.quint8)
    for X in (*(torch.eye(3).to(d) for d in (torch.int64, torch.bool, torch.float8_e5m2)), quantized):
        dtype = str(X.dtype).removeprefix("torch.")
        sentence = f"{words} of dtype float32, float64, bfloat16, float16 or complex, got {dtype}"
        refused(sentence, lambda: f(X))  # noqa: B023


# ---- the layer -------------------------------------------------------------------------------------------


def test_registration_and_assignment():
    layer = nn.Linear(6, 5)
    fits = "masked_prune: expected mask to be broadcastable to X of shape (5, 6), got shape (4, 6)"
    register = lambda: parametrize.register_parametrization(layer, "weight", Pruning(mask((4, 6))))
    refused(fits, register, layer=layer)
    layer = prune_one()
    for value, sentence in [
        (
            torch.ones(4, 6),
            "masked_prune: expected mask to be broadcastable to X of shape (4, 6), got shape (5, 6)",
        ),
        (
            torch.ones(5, 6).long(),
            "masked_prune: expected X of dtype float32, float64, bfloat16, float16 or complex, got int64",
        ),
        (
            torch.ones(5, 6, device="meta"),
            "masked_prune: expected mask on the same device as X (meta), got cpu",
        ),
        (
            torch.ones(5, 6).double(),
            "The tensor returned by `right_inverse` has dtype torch.float64 "  # torch's own sentence
            "while `original` has dtype torch.float32",
        ),
    ]:
        refused(sentence, lambda: setattr(layer, "weight", value), layer=layer)  # noqa: B023


def test_a_buffer_that_is_no_mask():
    """The buffer accepts any tensor, as any buffer does, and the error is raised when it is read."""
    layer = prune_one()
    kinds = [
        (X, ValueError, f"Pruning: expected mask to be a strided tensor, got {word}") for X, word in unusual()
    ]
    kinds += [
        (None, TypeError, "Pruning: expected mask to be a torch.Tensor, got NoneType"),
        (
            mask((6, 5)),
            ValueError,
            "masked_prune: expected mask to be broadcastable to X of shape (5, 6), got shape (6, 5)",
        ),
        (
            mask((5, 6), "meta"),
            ValueError,
            "masked_prune: expected mask on the same device as X (cpu), got meta",
        ),
    ]
    for wrong, kind, sentence in kinds:
        applied(layer).mask = wrong
        refused(sentence, lambda: layer.weight, kind)
    applied(layer).mask = mask((5, 6))
    assert torch.equal(layer.weight != 0, mask((5, 6)))


# ---- 2:4 -------------------------------------------------------------------------------------------------

SPARSE = "Pruning.to_sparse_semi_structured: expected "


def test_semi_structured_rules():
    force = torch.sparse.SparseSemiStructuredTensor._FORCE_CUTLASS
    rows, columns = (32, 64) if force else (16, 16)
    H = torch.randn(64, 128).half()
    two = Pruning.n_m(H)
    assert (two.mask.view(64, 32, 4).sum(-1) == 2).all()
    for shape in [(3, 4), (rows, columns + 4), (rows + 1, columns), (2, 64, 64)]:
        X = torch.randn(shape).half()
        sentence = f"{SPARSE}X of shape (k * {rows}, l * {columns}) for float16, got {shape}"
        refused(sentence, lambda: Pruning(mask(X.shape)).to_sparse_semi_structured(X))  # noqa: B023
    refused(f"{SPARSE}X on cuda, got cpu", lambda: two.to_sparse_semi_structured(H))
    sentence = f"{SPARSE}X of dtype float16 or bfloat16, got float64"
    refused(sentence, lambda: two.to_sparse_semi_structured(H.double()))
    sentence = f"{SPARSE}a mask that keeps at most 2 of every 4 entries of a row, got 4 of 4"
    refused(sentence, lambda: Pruning(torch.ones(64, 128)).to_sparse_semi_structured(H))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch.sparse.to_sparse_semi_structured needs CUDA")
def test_semi_structured_on_cuda():
    H, x = torch.randn(64, 128, device="cuda").half(), torch.randn(64, 128, device="cuda").half()
    two, linear = Pruning.n_m(H), nn.functional.linear
    compressed = two.to_sparse_semi_structured(H)
    torch.testing.assert_close(linear(x, compressed), linear(x, two(H)), rtol=1e-2, atol=1e-2)
