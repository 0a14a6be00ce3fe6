"""The verbs compared with torch.nn.utils.prune: the same masks for the same inputs and seed, repeatedly."""

import copy

import numpy
import pytest
import torch
from table import bits
from test_prune_module import applied
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
scored = lambda scores: {"importance_scores": scores}
# The verb, and its arguments as a function of the layer.
CALLS = {
    "random": ("random_unstructured", lambda layer: {"amount": 0.3}),
    "random count": ("random_unstructured", lambda layer: {"amount": 5}),
    "random none": ("random_unstructured", lambda layer: {"amount": 0}),
    "l1": ("l1_unstructured", lambda layer: {"amount": 0.4}),
    "l1 count": ("l1_unstructured", lambda layer: {"amount": 3}),
    "l1 scores": ("l1_unstructured", lambda layer: {"amount": 0.4, **scored(SCORES(layer))}),
    "l1 ints": ("l1_unstructured", lambda layer: {"amount": 0.4, **scored((2**20 * SCORES(layer)).long())}),
    "random rows": ("random_structured", lambda layer: {"amount": 1, "dim": 0}),
    "random columns": ("random_structured", lambda layer: {"amount": 0.25, "dim": 1}),
    "ln rows": ("ln_structured", lambda layer: {"amount": 1, "n": 2, "dim": 0}),
    "ln last": ("ln_structured", lambda layer: {"amount": 0.3, "n": 1, "dim": -1}),
    "ln inf": ("ln_structured", lambda layer: {"amount": 1, "n": float("inf"), "dim": 1}),
    "ln scores": ("ln_structured", lambda layer: {"amount": 1, "n": 2, "dim": 1, **scored(SCORES(layer))}),
    "custom": ("custom_from_mask", lambda layer: {"mask": SCORES(layer) > -1}),
    "custom numbers": ("custom_from_mask", lambda layer: {"mask": (SCORES(layer) > -0.5).float()}),
}
every_layer = pytest.mark.parametrize("layer", LAYERS)


def both(library, call, layer, seed=11):
    torch.manual_seed(seed)
    verb, arguments = CALLS[call]
    return getattr(library, verb)(layer, "weight", **arguments(layer))


def same(mine, theirs):
    shape = (1, 4, 5, 5) if isinstance(theirs, nn.Conv2d) else (1, theirs.in_features)
    theirs(torch.zeros(shape, dtype=theirs.weight.dtype))  # computes its weight
    assert torch.equal(mine.weight, theirs.weight)
    assert torch.equal(mine.weight_mask, theirs.weight_mask != 0)
    assert torch.equal(mine.weight_orig, theirs.weight_orig)


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
    assert ours.is_pruned(mine) and isinstance(applied(mine), Pruning)
    assert isinstance(mine.weight_orig, nn.Parameter) and mine.weight_mask is applied(mine).mask


@every_layer
@pytest.mark.parametrize("second", CALLS)
@pytest.mark.parametrize("first", ["l1", "random columns", "ln rows", "custom"])
def test_composed_twice_and_thrice(layer, first, second):
    mine = LAYERS[layer]()
    theirs = copy.deepcopy(mine)
    for seed, call in enumerate((first, second, "l1 count")):
        for library, module in ((ours, mine), (prune, theirs)):
            both(library, call, module, seed=seed)
        same(mine, theirs)
        assert len(mine.parametrizations.weight) == 1


@pytest.mark.parametrize("method", [prune.L1Unstructured, prune.RandomUnstructured])
@pytest.mark.parametrize("amount", [9, 0.35, 0])
@pytest.mark.parametrize("with_scores", [False, True])
def test_global(method, amount, with_scores):
    mine = nn.Sequential(nn.Linear(10, 4), nn.Linear(4, 3), nn.Conv2d(2, 3, 3))
    theirs = copy.deepcopy(mine)
    for library, net in ((ours, mine), (prune, theirs)):
        library.random_unstructured(net[1], "weight", 0)
        library.l1_unstructured(net[0], "weight", 0.2)
        pairs = [(net[0], "weight"), (net[1], "weight"), (net[1], "bias"), (net[2], "weight")]
        scores = {(net[2], "weight"): SCORES(net[2])} if with_scores else None
        for seed in (1, 2):
            torch.manual_seed(seed)
            assert library.global_unstructured(pairs, method, importance_scores=scores, amount=amount) is None
    for i, name in ((0, "weight"), (1, "weight"), (1, "bias"), (2, "weight")):
        assert torch.equal(applied(mine[i], name).mask, getattr(theirs[i], f"{name}_mask") != 0)
    iterator = ((m, "weight") for m in mine)
    ours.global_unstructured(iterator, prune.L1Unstructured, amount=1)
    assert ours.global_unstructured([], prune.L1Unstructured, amount=0) is None


def test_global_with_a_tensor_twice():
    layer = nn.Linear(7, 5)
    ours.global_unstructured([(layer, "weight")] * 2, prune.RandomUnstructured, amount=20)
    assert (layer.weight == 0).sum() >= 10, "dropped where either drops it"


def test_numbers_of_numpy():
    """Including small ones, which overflow when torch compares them with sizes."""
    mine = nn.Linear(300, 200)
    twin = copy.deepcopy(mine)
    int8, uint8, half, single = numpy.int8, numpy.uint8, numpy.float16, numpy.float32
    for verb, plain, others in [
        ("l1_unstructured", (0.5,), (half(0.5),)),
        ("l1_unstructured", (3,), (int8(3),)),
        ("ln_structured", (3, 2, 0), (int8(3), single(2), numpy.int64(0))),
        ("ln_structured", (0.25, 1, 1), (single(0.25), uint8(1), int8(1))),
    ]:
        getattr(ours, verb)(mine, "weight", *plain), getattr(ours, verb)(twin, "weight", *others)
        assert torch.equal(mine.weight_mask, twin.weight_mask)
    for net, amount in ((mine, 5), (twin, uint8(5))):
        ours.global_unstructured([(net, "weight")], prune.L1Unstructured, amount=amount)
    assert torch.equal(mine.weight_mask, twin.weight_mask)
    X = mine.weight_orig
    pruning = Pruning.structured(X, int8(2), half(2), numpy.int64(0)).update_(X, half(0.5))
    assert torch.equal(pruning.mask, Pruning.structured(X, 0.5, 2, 0).mask)


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
    for layer in (conv, twin):
        ours.l1_unstructured(layer, "weight", 0.4)
    assert torch.equal(conv.weight, twin.weight)


def test_training_is_torchs():
    mine = nn.Linear(7, 5)
    theirs, v = copy.deepcopy(mine), torch.randn(9, 7)
    for library, layer in ((ours, mine), (prune, theirs)):
        library.l1_unstructured(layer, "weight", 0.4)
        optimiser = torch.optim.SGD(layer.parameters(), lr=0.1, momentum=0.9)
        for step in range(6):
            if step == 3:
                # torch compares the weight of the last forward pass, which is older than the last step
                layer(v)
                library.l1_unstructured(layer, "weight", 0.3)
            optimiser.zero_grad()
            layer(v).square().mean().backward()
            optimiser.step()
    same(mine, theirs)


# ---- remove, is_pruned, other parametrizations -----------------------------------------------------------


def test_remove():
    layer = ours.l1_unstructured(nn.Linear(7, 5), "weight", 0.5)
    ours.random_unstructured(layer, "bias", 2)
    weight, raw = layer.weight.detach().clone(), layer.weight_orig
    assert ours.remove(layer, "weight") is layer and layer.weight is raw
    assert torch.equal(bits(layer.weight), bits(weight))
    assert ours.is_pruned(layer) and ours.is_pruned(nn.Sequential(layer))
    assert not hasattr(layer, "weight_mask") and not hasattr(layer, "weight_orig")
    assert layer.bias_mask.sum() == 3
    ours.remove(layer, "bias")
    assert type(layer) is nn.Linear and not ours.is_pruned(layer)
    assert set(layer.state_dict()) == {"weight", "bias"} and layer.weight.requires_grad


def test_beside_other_parametrizations():
    layer = parametrize.register_parametrization(nn.Linear(6, 6), "weight", fastparam.Symmetric())
    for zeros in (18, 27):
        ours.l1_unstructured(layer, "weight", 0.5)
        assert (layer.weight == 0).sum() == zeros
        assert [type(m) for m in layer.parametrizations.weight] == [fastparam.Symmetric, Pruning]
    raw = layer.parametrizations.weight.original
    assert torch.equal(layer.weight_orig, fastparam.functional.symmetric(raw))
    row = parametrize.register_parametrization(nn.Linear(6, 4), "weight", Pruning(torch.arange(6) % 2 == 0))
    assert ours.l1_unstructured(row, "weight", 3).weight_mask.sum() == 9, "a row mask becomes a whole one"
    row.load_state_dict(copy.deepcopy(row).state_dict())


def test_names_of_torch():
    """The names can be read where a verb has pruned, and they hide no attribute of the module."""
    norm = nn.utils.parametrizations.weight_norm(nn.Linear(6, 5))  # of two tensors
    weight = norm.weight.detach().clone()
    ours.l1_unstructured(norm, "weight", 0.5)
    assert torch.equal(norm.weight_orig, weight) and torch.equal(norm.weight, weight * norm.weight_mask)

    class Masked(nn.Linear):
        def __init__(self):
            super().__init__(6, 5)
            self.register_buffer("weight_mask", torch.zeros(2))

    layer = ours.l1_unstructured(Masked(), "weight", 0.5)
    assert torch.equal(layer.weight_mask, torch.zeros(2)) and layer.weight_orig.shape == (5, 6)
    layer.weight_mask = torch.ones(2)
    assert torch.equal(layer.state_dict()["weight_mask"], torch.ones(2)) and (layer.weight == 0).sum() == 15


# ---- update_ after a verb --------------------------------------------------------------------------------


@pytest.mark.parametrize("call", ["l1", "random", "random rows", "random columns", "ln rows"])
def test_update_after_a_verb(call):
    layer = both(ours, call, nn.Linear(16, 8))
    ours.l1_unstructured(layer, "weight", 3)
    dropped = (~layer.weight_mask).sum()
    applied(layer).update_(torch.randn(8, 16))
    assert (~layer.weight_mask).sum() == dropped


def test_gradual_pruning():
    layer = ours.l1_unstructured(nn.Linear(16, 8), "weight", 0.1)
    for amount in (0.25, 0.5, 0.8):
        applied(layer).update_(layer.weight_orig, amount=amount)
        assert torch.equal(layer.weight_mask, Pruning.magnitude(layer.weight_orig, amount).mask)
