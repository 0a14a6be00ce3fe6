"""Pruning refuses what it cannot do in one sentence and leaves the layer as it was; 2:4 masks in torch's compressed form."""

import re

import pytest
import torch
from table import mask
from test_module_errors import Snapshot
from test_pruning import X56, prune_one
from torch import nn
from torch.nn.utils import parametrize

from fastparam import Pruning, PruningParametrization


def raises(sentence, f, kind=ValueError):
    with pytest.raises(kind, match=f"^{re.escape(sentence)}$"):
        f()


# ---- 2:4 ----

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
        raises(sentence, lambda: Pruning.n_m(X).to_sparse_semi_structured(X))  # noqa: B023
    raises(f"{SPARSE}X on cuda, got cpu", lambda: two.to_sparse_semi_structured(H))
    raises(f"{SPARSE}X of dtype float16 or bfloat16, got float64", lambda: two.to_sparse_semi_structured(H.double()))
    sentence = f"{SPARSE}a mask that keeps at most 2 of every 4 entries of a row, got one that keeps 4 of 4"
    raises(sentence, lambda: Pruning.random(H, 0.0).to_sparse_semi_structured(H))
    raises("masked_prune: expected X to be a torch.Tensor, got NoneType", lambda: two.to_sparse_semi_structured(None), TypeError)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch.sparse.to_sparse_semi_structured needs a CUDA device")
def test_semi_structured_on_cuda():
    H, x = torch.randn(64, 128, device="cuda").half(), torch.randn(64, 128, device="cuda").half()
    two = Pruning.n_m(H)
    torch.testing.assert_close(
        nn.functional.linear(x, two.to_sparse_semi_structured(H)), nn.functional.linear(x, two(H)), rtol=1e-2, atol=1e-2
    )


# ---- errors leave the layer as it was ----

BAD = {
    "p_drop 1.5": (lambda: Pruning.random(X56, 1.5), "Pruning.random: expected p_drop between 0 and 1, got 1.5", ValueError),
    "p_drop nan": (
        lambda: PruningParametrization(X56, float("nan")),
        "PruningParametrization: expected p_drop between 0 and 1, got nan",
        ValueError,
    ),
    "p_drop text": (lambda: Pruning.random(X56, "0.2"), "Pruning.random: expected p_drop to be a number, got str", TypeError),
    "generator": (
        lambda: Pruning.random(X56, generator="x"),
        "Pruning.random: expected generator to be a torch.Generator, got str",
        TypeError,
    ),
    "within": (
        lambda: Pruning.n_m(X56, 1, 2, within=mask((5, 6))),
        "Pruning.n_m: expected within to be a fastparam.Pruning, got Tensor",
        TypeError,
    ),
    "within, shape": (
        lambda: Pruning.magnitude(X56, 1, within=Pruning(mask((3, 3)))),
        "Pruning.magnitude: expected within to fit X of shape (5, 6), got a mask of (3, 3)",
        ValueError,
    ),
    "within, larger": (
        lambda: Pruning.random(X56[0], within=Pruning(mask((5, 6)))),
        "Pruning.random: expected within to fit X of shape (6,), got a mask of (5, 6)",
        ValueError,
    ),
    "no tensor": (lambda: Pruning.magnitude([1.0], 1), "Pruning.magnitude: expected X to be a torch.Tensor, got list", TypeError),
    "no mask": (lambda: Pruning([True]), "Pruning: expected mask to be a torch.Tensor, got list", TypeError),
    "amount": (lambda: Pruning.magnitude(X56, 31), "amount=31 should be smaller than the number of parameters to prune=30", ValueError),
    "share": (
        lambda: Pruning.magnitude(X56, 1.5),
        "amount=1.5 should either be a float in the range [0, 1] or a non-negative integer",
        ValueError,
    ),
    "kind": (lambda: Pruning.magnitude(X56, "1"), "Invalid type for amount: 1. Must be int or float.", TypeError),
    "meta": (
        lambda: Pruning.structured(X56.to("meta"), 6, 2, 0),
        "amount=6 should be smaller than the number of parameters to prune=5",
        ValueError,
    ),
    "dim": (lambda: Pruning.structured(X56, 1, 2, 2), "Invalid index 2 for tensor of size torch.Size([5, 6])", IndexError),
    "4": (lambda: Pruning.n_m(X56), "Pruning.n_m: expected X of shape (..., k * 4), got (5, 6)", ValueError),
    "5:4": (lambda: Pruning.n_m(X56, 5, 4), "Pruning.n_m: expected 0 <= n <= m and m > 0, got n = 5, m = 4", ValueError),
    "n": (lambda: Pruning.n_m(X56, 1.0, 2), "Pruning.n_m: expected n to be an int, got float", TypeError),
    "update": (lambda: Pruning.n_m(X56, 1, 2).update_(X56[1:]), "Pruning.update_: expected X of shape (5, 6), got (4, 6)", ValueError),
    "given": (
        lambda: Pruning(mask((5, 6))).update_(X56),
        "Pruning.update_: expected a mask chosen by random, magnitude, structured or n_m, got one that was given",
        ValueError,
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_sentences(name):
    f, sentence, kind = BAD[name]
    raises(sentence, f, kind)


def test_layer_is_unchanged():
    fits = "masked_prune: expected mask to broadcast to X, (5, 6), got (4, 6)"
    layer = nn.Linear(6, 5)
    before = Snapshot(layer)
    raises(fits, lambda: parametrize.register_parametrization(layer, "weight", Pruning(mask((4, 6)))))
    before.check()
    layer = prune_one()
    for value, sentence in [
        (torch.ones(4, 6), "masked_prune: expected mask to broadcast to X, (4, 6), got (5, 6)"),
        (torch.ones(5, 6).long(), "masked_prune: expected X of dtype float32, float64, bfloat16, float16 or complex, got int64"),
        (torch.ones(5, 6, device="meta"), "masked_prune: expected mask on meta, the device of X, got cpu"),
    ]:
        before = Snapshot(layer)
        raises(sentence, lambda: setattr(layer, "weight", value))  # noqa: B023
        before.check()
