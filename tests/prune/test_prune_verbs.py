"""The verbs against torch.nn.utils.prune itself: the same masks for the same inputs and seed, again and again; its checkpoints load."""

import copy
import re

import pytest
import torch
from table import bits
from test_module_errors import Snapshot
from torch import nn
from torch.nn.utils import parametrize, prune

import fastparam
from fastparam import Pruning
from fastparam import parametrizations as ours

LAYERS = {
    "linear": lambda: nn.Linear(7, 5),
    "conv": lambda: nn.Conv2d(4, 6, 3),
    "half": lambda: nn.Linear(16, 8, dtype=torch.bfloat16),
    "wide": lambda: nn.Linear(130, 3, dtype=torch.float64),
}
SCORES = lambda layer: torch.randn(layer.weight.shape, generator=torch.Generator().manual_seed(4))
# verb, and its arguments as a function of the layer
CALLS = {
    "random": ("random_unstructured", lambda layer: {"amount": 0.3}),
    "random count": ("random_unstructured", lambda layer: {"amount": 5}),
    "random none": ("random_unstructured", lambda layer: {"amount": 0}),
    "l1": ("l1_unstructured", lambda layer: {"amount": 0.4}),
    "l1 count": ("l1_unstructured", lambda layer: {"amount": 3}),
    "l1 scores": ("l1_unstructured", lambda layer: {"amount": 0.4, "importance_scores": SCORES(layer)}),
    "random rows": ("random_structured", lambda layer: {"amount": 1, "dim": 0}),
    "random columns": ("random_structured", lambda layer: {"amount": 0.25, "dim": 1}),
    "ln rows": ("ln_structured", lambda layer: {"amount": 1, "n": 2, "dim": 0}),
    "ln last": ("ln_structured", lambda layer: {"amount": 0.3, "n": 1, "dim": -1}),
    "ln inf": ("ln_structured", lambda layer: {"amount": 1, "n": float("inf"), "dim": 1}),
    "ln scores": (
        "ln_structured",
        lambda layer: {"amount": 1, "n": 2, "dim": 1, "importance_scores": SCORES(layer)},
    ),
    "custom": ("custom_from_mask", lambda layer: {"mask": SCORES(layer) > -1}),
    "custom numbers": ("custom_from_mask", lambda layer: {"mask": (SCORES(layer) > -0.5).float()}),
}
every_layer = pytest.mark.parametrize("layer", LAYERS)


def applied(layer, name="weight") -> Pruning:
    return layer.parametrizations[name][-1]


def both(library, call, layer, seed=11):
    torch.manual_seed(seed)
    verb, arguments = CALLS[call]
    return getattr(library, verb)(layer, "weight", **arguments(layer))


def same(mine, theirs, name="weight"):
    assert torch.equal(applied(mine, name).mask, getattr(theirs, f"{name}_mask") != 0)
    theirs(
        torch.zeros(1, 4, 5, 5)
        if isinstance(theirs, nn.Conv2d)
        else torch.zeros(1, theirs.in_features, dtype=theirs.weight.dtype)
    )
    assert torch.equal(getattr(mine, name), getattr(theirs, name))


@every_layer
@pytest.mark.parametrize("call", CALLS)
def test_same_masks(layer, call):
    mine = LAYERS[layer]()
    theirs = copy.deepcopy(mine)
    assert both(ours, call, mine) is mine
    after = torch.get_rng_state()
    both(prune, call, theirs)
    assert torch.equal(torch.get_rng_state(), after)
    same(mine, theirs)
    assert (
        ours.is_pruned(mine)
        and isinstance(applied(mine), Pruning)
        and isinstance(mine.parametrizations.weight.original, nn.Parameter)
    )


@every_layer
@pytest.mark.parametrize("second", CALLS)
@pytest.mark.parametrize("first", ["l1", "random columns", "ln rows", "custom"])
def test_composed_twice_and_thrice(layer, first, second):
    mine = LAYERS[layer]()
    theirs = copy.deepcopy(mine)
    buffer = None
    for seed, call in enumerate((first, second, "l1 count")):
        for library, module in ((ours, mine), (prune, theirs)):
            both(library, call, module, seed=seed)
        same(mine, theirs)
        buffer = buffer if buffer is not None else applied(mine).mask
        assert applied(mine).mask is buffer and len(mine.parametrizations.weight) == 1
    assert len(mine._load_state_dict_pre_hooks) == 1


@pytest.mark.parametrize("method", [prune.L1Unstructured, prune.RandomUnstructured])
@pytest.mark.parametrize("amount", [9, 0.35, 0])
@pytest.mark.parametrize("scored", [False, True])
def test_global(method, amount, scored):
    mine = nn.Sequential(nn.Linear(10, 4), nn.Linear(4, 3), nn.Conv2d(2, 3, 3))
    theirs = copy.deepcopy(mine)
    for library, net in ((ours, mine), (prune, theirs)):
        library.random_unstructured(net[1], "weight", 0)
        library.l1_unstructured(net[0], "weight", 0.2)
        pairs = [(net[0], "weight"), (net[1], "weight"), (net[1], "bias"), (net[2], "weight")]
        scores = {(net[2], "weight"): SCORES(net[2])} if scored else None
        for seed in (1, 2):
            torch.manual_seed(seed)
            assert library.global_unstructured(pairs, method, importance_scores=scores, amount=amount) is None
    for i, name in ((0, "weight"), (1, "weight"), (1, "bias"), (2, "weight")):
        assert torch.equal(applied(mine[i], name).mask, getattr(theirs[i], f"{name}_mask") != 0)
    ours.global_unstructured(
        ((m, "weight") for m in mine), prune.L1Unstructured, amount=1
    )  # an iterator will do
    assert ours.global_unstructured([], prune.L1Unstructured, amount=0) is None


def test_complex_and_other_layouts_work_too():
    layer = nn.Linear(6, 4, dtype=torch.complex64)
    for verb, k in (
        ("l1_unstructured", {}),
        ("random_unstructured", {}),
        ("ln_structured", {"n": 2, "dim": 0}),
        ("random_structured", {"dim": 0}),
    ):
        getattr(ours, verb)(layer, "weight", amount=1, **k)
    assert (layer.weight == 0).all(1).sum() == 2
    conv = nn.Conv2d(4, 6, 3).to(memory_format=torch.channels_last)
    twin = nn.Conv2d(4, 6, 3)
    twin.load_state_dict(conv.state_dict())
    assert torch.equal(
        ours.l1_unstructured(conv, "weight", 0.4).weight, ours.l1_unstructured(twin, "weight", 0.4).weight
    )


def test_training_is_torchs():
    mine = nn.Linear(7, 5)
    theirs, v = copy.deepcopy(mine), torch.randn(9, 7)
    for library, layer in ((ours, mine), (prune, theirs)):
        library.l1_unstructured(layer, "weight", 0.4)
        optimiser = torch.optim.SGD(layer.parameters(), lr=0.1, momentum=0.9)
        for step in range(6):
            if step == 3:
                layer(v)  # torch compares the weight of the last forward, which is older than the last step
                library.l1_unstructured(layer, "weight", 0.3)
            optimiser.zero_grad()
            layer(v).square().mean().backward()
            optimiser.step()
    same(mine, theirs)
    assert torch.equal(mine.parametrizations.weight.original, theirs.weight_orig)


# ---- remove, is_pruned ----


def test_remove():
    layer = ours.l1_unstructured(nn.Linear(7, 5), "weight", 0.5)
    ours.random_unstructured(layer, "bias", 2)
    weight, raw = layer.weight.detach().clone(), layer.parametrizations.weight.original
    assert (
        ours.remove(layer, "weight") is layer
        and layer.weight is raw
        and torch.equal(bits(layer.weight), bits(weight))
    )
    assert (
        ours.is_pruned(layer)
        and ours.is_pruned(nn.Sequential(layer))
        and len(layer._load_state_dict_pre_hooks) == 1
    )
    ours.remove(layer, "bias")
    assert type(layer) is nn.Linear and not ours.is_pruned(layer) and not layer._load_state_dict_pre_hooks
    assert set(layer.state_dict()) == {"weight", "bias"} and layer.weight.requires_grad


def test_beside_other_parametrizations():
    layer = parametrize.register_parametrization(nn.Linear(6, 6), "weight", fastparam.Symmetric())
    ours.l1_unstructured(layer, "weight", 0.5)
    assert [type(m) for m in layer.parametrizations.weight] == [fastparam.Symmetric, Pruning] and (
        layer.weight == 0
    ).sum() == 18
    ours.l1_unstructured(layer, "weight", 0.5)
    assert (layer.weight == 0).sum() == 27 and len(layer.parametrizations.weight) == 2
    refused(
        layer,
        lambda: ours.remove(layer, "weight"),
        "remove: expected no parametrization of 'weight' but its pruning, got Symmetric, Pruning",
    )
    row = parametrize.register_parametrization(
        nn.Linear(6, 4), "weight", Pruning(torch.tensor([True, False] * 3))
    )
    assert applied(ours.l1_unstructured(row, "weight", 3)).mask.sum() == 9, "a row mask becomes a whole one"
    row.load_state_dict(copy.deepcopy(row).state_dict())


@pytest.mark.parametrize("call", ["l1", "random", "random rows", "random columns", "ln rows"])
def test_update_after_a_verb(call):
    layer = both(ours, call, nn.Linear(16, 8))
    ours.l1_unstructured(layer, "weight", 3)
    dropped, pointer = (~applied(layer).mask).sum(), applied(layer).mask.data_ptr()
    applied(layer).update_(torch.randn(8, 16))
    assert (~applied(layer).mask).sum() == dropped and applied(layer).mask.data_ptr() == pointer


# ---- checkpoints ----


def net():
    return nn.Sequential(nn.Linear(7, 5), nn.Sequential(nn.Conv2d(4, 6, 3)), nn.Linear(5, 2))


def cut(library, model, amount):
    library.l1_unstructured(model[0], "weight", amount)
    library.random_unstructured(model[0], "bias", 1)
    library.ln_structured(model[1][0], "weight", 1, 2, 0)
    return model


@pytest.mark.parametrize("how", ["plain", "assign", "meta", "deepcopy", "layer"])
def test_checkpoints_of_torch_load(how):
    theirs = cut(prune, net(), 0.7)
    theirs[0](torch.zeros(1, 7))
    state, keys = theirs.state_dict(), list(theirs.state_dict())
    if how == "meta":
        with torch.device("meta"):
            mine = cut(ours, net(), 0.2)
        mine.to_empty(device="cpu")
    else:
        mine = cut(ours, net(), 0.2)
    mine = copy.deepcopy(mine) if how == "deepcopy" else mine
    if how == "layer":
        mine[0].load_state_dict(theirs[0].state_dict(), strict=True)
    else:
        mine.load_state_dict(state, strict=True, assign=how == "assign")
        assert torch.equal(applied(mine[1][0]).mask, theirs[1][0].weight_mask != 0)
    for name in ("weight", "bias"):
        assert torch.equal(applied(mine[0], name).mask, getattr(theirs[0], f"{name}_mask") != 0)
        assert torch.equal(mine[0].parametrizations[name].original, getattr(theirs[0], f"{name}_orig"))
    assert list(state) == keys, "the checkpoint is the caller's"
    again = cut(ours, net(), 0.1)
    again.load_state_dict(mine.state_dict(), strict=True)
    x = torch.randn(3, 7)
    assert torch.equal(again[0](x), mine[0](x)) and (how == "layer" or torch.equal(mine[0](x), theirs[0](x)))


def test_checkpoints_that_do_not_fit():
    mine, theirs = cut(ours, net(), 0.2), prune.l1_unstructured(nn.Linear(5, 7), "weight", 0.2)
    with pytest.raises(
        RuntimeError, match=re.escape("weight_mask: expected a mask of shape (5, 7), got (7, 5)")
    ):
        mine[0].load_state_dict(theirs.state_dict())
    with pytest.raises(RuntimeError, match="Missing key"):
        mine.load_state_dict(net().state_dict())


# ---- errors ----


def refused(layer, action, sentence, kind=ValueError):
    before, random = Snapshot(layer), torch.get_rng_state()
    with pytest.raises(kind, match=f"^{re.escape(sentence)}$"):
        action()
    before.check()
    assert torch.equal(torch.get_rng_state(), random) and "_load_state_dict_pre_hooks" in vars(layer)


VERBS = {
    "random_unstructured": {},
    "l1_unstructured": {},
    "random_structured": {"dim": 0},
    "ln_structured": {"n": 2, "dim": 0},
}


@pytest.mark.parametrize("again", [False, True], ids=["first", "again"])
@pytest.mark.parametrize("verb", VERBS)
def test_amounts_as_torch_refuses_them(verb, again):
    layer = nn.Linear(7, 5)
    theirs = nn.Linear(7, 5)
    if again:
        ours.l1_unstructured(layer, "weight", 5)
    for amount in (-1, 1.5, -0.1, "1", None, 1000):
        with pytest.raises((ValueError, TypeError)) as said:
            getattr(prune, verb)(theirs, "weight", amount=amount, **VERBS[verb])
        sentence = str(said.value)
        sentence = sentence.replace("=35", "=30") if again else sentence
        refused(
            layer,
            lambda: getattr(ours, verb)(layer, "weight", amount=amount, **VERBS[verb]),
            sentence,
            type(said.value),
        )  # noqa: B023


@pytest.mark.parametrize("again", [False, True], ids=["first", "again"])
def test_sentences(again):
    layer = ours.l1_unstructured(nn.Linear(7, 5), "weight", 5) if again else nn.Linear(7, 5)
    wrong = torch.ones(7)
    for f, argument in [
        (
            lambda: ours.l1_unstructured(layer, "weight", 1, wrong),
            "l1_unstructured: expected importance_scores",
        ),
        (
            lambda: ours.ln_structured(layer, "weight", 1, 2, 0, wrong),
            "ln_structured: expected importance_scores",
        ),
        (lambda: ours.custom_from_mask(layer, "weight", wrong), "custom_from_mask: expected mask"),
    ]:
        refused(layer, f, f"{argument} of the shape of weight, (5, 7), got (7,)")
    text = "custom_from_mask: expected mask to be a torch.Tensor, got str"
    refused(layer, lambda: ours.custom_from_mask(layer, "weight", "ones"), text, TypeError)
    dim = "Invalid index 2 for tensor of size torch.Size([5, 7])"
    refused(layer, lambda: ours.ln_structured(layer, "weight", 1, 2, 2), dim, IndexError)
    for name in ("nothing", "in_features"):
        sentence = f"random_unstructured: expected the name of a parameter or a buffer of {type(layer).__name__}, got '{name}'"
        refused(layer, lambda: ours.random_unstructured(layer, name, 1), sentence)  # noqa: B023
    refused(
        layer,
        lambda: ours.remove(layer, "bias"),
        f"remove: expected 'bias' of {type(layer).__name__} to be pruned, by a parametrization applied last",
    )
    with pytest.raises(
        TypeError, match=r"^l1_unstructured: expected module to be a torch.nn.Module, got Tensor$"
    ):
        ours.l1_unstructured(wrong, "weight", 1)


def test_global_is_all_or_nothing():
    layer, other, method, wrong = nn.Linear(7, 5), nn.Linear(3, 2), prune.L1Unstructured, torch.ones(5)
    pairs, both = (
        [(layer, "weight"), (other, "weight")],
        lambda *a, **k: ours.global_unstructured(*a, **{"amount": 1, **k}),
    )
    word = "global_unstructured: expected "
    for f, sentence, kind in [
        (
            lambda: both([*pairs, (other, "none")], method),
            f"{word}the name of a parameter or a buffer of Linear, got 'none'",
            ValueError,
        ),
        (
            lambda: both(pairs, method, {pairs[1]: wrong}),
            f"{word}importance_scores of the shape of weight, (2, 3), got (5,)",
            ValueError,
        ),
        (
            lambda: both(3, method),
            f"{word}parameters to be an iterable of (module, name), got int",
            TypeError,
        ),
        (lambda: both(pairs, method, [1]), f"{word}importance_scores to be a dict, got list", TypeError),
        (
            lambda: both(pairs, prune.LnStructured, n=2),
            f'{word}a pruning_method of PRUNING_TYPE "unstructured", got structured',
            TypeError,
        ),
        (
            lambda: both(pairs, method, amount=42),
            "amount=42 should be smaller than the number of parameters to prune=41",
            ValueError,
        ),
    ]:
        refused(layer, f, sentence, kind)
    with pytest.raises(RuntimeError):
        ours.global_unstructured([*pairs, (nn.Linear(2, 2, device="meta"), "weight")], method, amount=1)
    assert not ours.is_pruned(layer) and not ours.is_pruned(other)
