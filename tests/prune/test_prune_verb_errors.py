"""The verbs raise errors of one sentence, with the words of torch.nn.utils.prune for amounts, and change
nothing.
"""

import pytest
import torch
from test_prune_errors import pruned, refused
from torch import nn
from torch.nn.utils import parametrize, prune

from fastparam import Symmetric
from fastparam import parametrizations as ours

VERBS = {
    "random_unstructured": {},
    "l1_unstructured": {},
    "random_structured": {"dim": 0},
    "ln_structured": {"n": 2, "dim": 0},
}
every_verb = pytest.mark.parametrize("verb", VERBS)
first_and_again = pytest.mark.parametrize("again", [False, True], ids=["first", "again"])


def call(verb, layer, amount=1, name="weight"):
    return getattr(ours, verb)(layer, name, amount=amount, **VERBS[verb])


@first_and_again
@every_verb
def test_amounts_as_torch_refuses_them(verb, again):
    layer, theirs = pruned() if again else nn.Linear(7, 5), nn.Linear(7, 5)
    for amount in (-1, 1.5, -0.1, "1", None, 1000):
        with pytest.raises((ValueError, TypeError)) as said:
            getattr(prune, verb)(theirs, "weight", amount=amount, **VERBS[verb])
        sentence = str(said.value).replace("=35", "=30") if again else str(said.value)
        refused(sentence, lambda: call(verb, layer, amount), type(said.value), layer)  # noqa: B023


@every_verb
def test_modules_names_and_tensors(verb):
    layer, module = pruned(), f"{verb}: expected module to be a torch.nn.Module, got "
    for thing, given in ((torch.ones(2), "Tensor"), (nn.Linear, "the class Linear"), (None, "NoneType")):
        refused(module + given, lambda: call(verb, thing), TypeError)  # noqa: B023
    for name in ("nothing", "in_features", "weight_mask", "", None, 3):
        sentence = f"{verb}: expected the name of a parameter or a buffer of ParametrizedLinear, got '{name}'"
        refused(sentence, lambda: call(verb, layer, name=name), layer=layer)  # noqa: B023
    layer.register_buffer("count", torch.ones(5, 6, dtype=torch.int64))
    sentence = f"{verb}: expected count of dtype float32, float64, bfloat16, float16 or complex, got int64"
    refused(sentence, lambda: call(verb, layer, name="count"), layer=layer)
    layer.register_buffer("odd", torch.eye(3).to_sparse())
    refused(
        f"{verb}: expected odd to be a strided tensor, got a sparse one",
        lambda: call(verb, layer, name="odd"),
    )


@every_verb
def test_a_tensor_that_torch_has_pruned(verb):
    theirs = prune.l1_unstructured(nn.Linear(7, 5), "weight", 3)
    sentence = f"{verb}: expected 'weight' not to be pruned by torch.nn.utils.prune; call its remove() first"
    refused(sentence, lambda: call(verb, theirs), layer=theirs)


@first_and_again
def test_sentences(again):
    layer = pruned() if again else nn.Linear(7, 5)
    l1 = lambda scores: ours.l1_unstructured(layer, "weight", 1, scores)
    custom = lambda mask: ours.custom_from_mask(layer, "weight", mask)
    quantized = torch.quantize_per_tensor(torch.ones(5, 7), 0.1, 0, torch.quint8)
    for f, word in (
        (l1, "l1_unstructured: expected importance_scores"),
        (custom, "custom_from_mask: expected mask"),
    ):
        for wrong, sentence in [
            (torch.ones(7), "to have the shape of weight, (5, 7), got (7,)"),
            (torch.ones(5, 7, device="meta"), "on cpu, got meta"),
            (quantized, "to hold bools or numbers, got torch.quint8"),
        ]:
            refused(f"{word} {sentence}", lambda: f(wrong), layer=layer)  # noqa: B023
    dim = "Invalid index 2 for tensor of size torch.Size([5, 7])"
    refused(dim, lambda: ours.ln_structured(layer, "weight", 1, 2, 2), IndexError, layer)
    for verb, f in [
        ("ln_structured", lambda: ours.ln_structured(layer, "weight", 1, 2, 0.5)),
        ("random_structured", lambda: ours.random_structured(layer, "weight", 1, 0.5)),
    ]:
        refused(f"{verb}: expected dim to be an int, got float", f, TypeError, layer)


def test_soft_masks():
    """In torch, values between 0 and 1 damp entries. Here they are refused instead of being rounded."""

    class Soft(prune.BasePruningMethod):
        PRUNING_TYPE = "unstructured"

        def compute_mask(self, t, default_mask):
            return default_mask * 0.25

    for layer in (nn.Linear(7, 5), pruned()):
        damped, pairs = torch.full((5, 7), 0.5), [(layer, "weight")]
        sentence = "custom_from_mask: expected mask to hold zeros and ones, got 0.5"
        refused(sentence, lambda: ours.custom_from_mask(layer, "weight", damped), layer=layer)  # noqa: B023
        sentence = "Soft: expected its mask to hold zeros and ones, got 0.25"
        refused(sentence, lambda: ours.global_unstructured(pairs, Soft), layer=layer)  # noqa: B023


def test_remove_and_is_pruned():
    layer = pruned()
    for name in ("bias", "nothing", None):
        sentence = (
            f"remove: expected the last parametrization of '{name}' of ParametrizedLinear to be a pruning"
        )
        refused(sentence, lambda: ours.remove(layer, name), layer=layer)  # noqa: B023
    for thing, given in ((torch.ones(2), "Tensor"), (nn.Linear, "the class Linear")):
        sentence = f"expected module to be a torch.nn.Module, got {given}"
        refused(f"remove: {sentence}", lambda: ours.remove(thing, "weight"), TypeError)  # noqa: B023
        refused(f"is_pruned: {sentence}", lambda: ours.is_pruned(thing), TypeError)  # noqa: B023
    both = parametrize.register_parametrization(nn.Linear(6, 6), "weight", Symmetric())
    ours.l1_unstructured(both, "weight", 3)
    sentence = "remove: expected 'weight' to have no parametrization but its pruning, got Symmetric, Pruning"
    refused(sentence, lambda: ours.remove(both, "weight"), layer=both)


def test_global_is_all_or_nothing():
    layer, other, method = nn.Linear(7, 5), nn.Linear(3, 2), prune.L1Unstructured
    other.register_buffer("count", torch.ones(3, dtype=torch.int64))
    pairs, word = [(layer, "weight"), (other, "weight")], "global_unstructured: expected "
    both = lambda *arguments, **k: ours.global_unstructured(*arguments, **{"amount": 1, **k})
    for f, sentence in [
        (
            lambda: both([*pairs, (other, "none")], method),
            f"{word}the name of a parameter or a buffer of Linear, got 'none'",
        ),
        (
            lambda: both([*pairs, (other, "count")], method),
            f"{word}count of dtype float32, float64, bfloat16, float16 or complex, got int64",
        ),
        (
            lambda: both(pairs, method, {pairs[1]: torch.ones(5)}),
            f"{word}importance_scores to have the shape of weight, (2, 3), got (5,)",
        ),
        (
            lambda: both(pairs, method, amount=42),
            "amount=42 should be smaller than the number of parameters to prune=41",
        ),
    ]:
        refused(sentence, f, layer=layer)
    for f, sentence in [
        (lambda: both(3, method), "parameters to be an iterable of (module, name), got int"),
        (lambda: both(torch.eye(2), method), "parameters to be an iterable of (module, name), got Tensor"),
        (lambda: both([*pairs, layer], method), "parameters to hold pairs (module, name), got Linear"),
        (
            lambda: both([(nn.Linear, "weight")], method),
            "module to be a torch.nn.Module, got the class Linear",
        ),
        (lambda: both(pairs, method, [1]), "importance_scores to be a dict, got list"),
        (lambda: both(pairs, None), "pruning_method to be a BasePruningMethod, got NoneType"),
        (lambda: both(pairs, torch.Tensor), "pruning_method to be a BasePruningMethod, got the class Tensor"),
        (
            lambda: both(pairs, prune.LnStructured, n=2),
            'a pruning_method of PRUNING_TYPE "unstructured", got structured',
        ),
    ]:
        refused(word + sentence, f, TypeError, layer)
    with pytest.raises(RuntimeError):
        ours.global_unstructured([*pairs, (nn.Linear(2, 2, device="meta"), "weight")], method, amount=1)
    assert not ours.is_pruned(layer) and not ours.is_pruned(other)
