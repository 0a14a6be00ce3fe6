"""Checkpoints of torch.nn.utils.prune are loaded by from_torch into layers that were pruned here."""

import copy
import re
from collections import OrderedDict

import pytest
import torch
from test_prune_module import applied
from torch import nn
from torch.nn.utils import parametrize, prune

from fastparam import parametrizations as ours
from fastparam.parametrizations import from_torch


def net():
    return nn.Sequential(nn.Linear(7, 5), nn.Sequential(nn.Conv2d(4, 6, 3), nn.BatchNorm2d(6)), nn.LSTM(5, 2))


def cut(library, model, amount):
    library.l1_unstructured(model[0], "weight", amount)
    library.random_unstructured(model[0], "bias", 1)
    library.ln_structured(model[1][0], "weight", 1, 2, 0)
    library.l1_unstructured(model[2], "weight_ih_l0", amount)
    return model


def same(mine, theirs):
    for layer, other, name in [
        (mine[0], theirs[0], "weight"),
        (mine[0], theirs[0], "bias"),
        (mine[1][0], theirs[1][0], "weight"),
        (mine[2], theirs[2], "weight_ih_l0"),
    ]:
        assert torch.equal(applied(layer, name).mask, getattr(other, f"{name}_mask") != 0)
        assert torch.equal(layer.parametrizations[name].original, getattr(other, f"{name}_orig"))
    v, image = torch.randn(3, 7), torch.randn(2, 4, 5, 5)
    assert torch.equal(mine[0](v), theirs[0](v)) and torch.equal(mine[1](image), theirs[1](image))
    assert torch.equal(mine[2](v[:, :5])[0], theirs[2](v[:, :5])[0])


@pytest.mark.parametrize("how", ["copy", "assign", "meta", "deepcopy", "inside another"])
def test_a_whole_model(how):
    theirs = cut(prune, net(), 0.7).eval()
    theirs[1](torch.randn(2, 4, 5, 5))
    if how == "meta":
        with torch.device("meta"):
            mine = cut(ours, net(), 0.2)
        mine.to_empty(device="cpu")
    else:
        mine = cut(ours, net(), 0.2)
    mine = (copy.deepcopy(mine) if how == "deepcopy" else mine).eval()
    outer = (
        (nn.ModuleDict({"a_mask": mine}), nn.ModuleDict({"a_mask": theirs}))
        if how == "inside another"
        else (mine, theirs)
    )
    state = outer[1].state_dict()
    outer[0].load_state_dict(from_torch(state), strict=True, assign=how == "assign")
    same(mine, theirs)
    assert list(state) == list(outer[1].state_dict()), "the checkpoint is the caller's"
    again = cut(ours, net(), 0.1).eval()
    again.load_state_dict(mine.state_dict(), strict=True)
    same(again, theirs)


def test_other_entries_stay():
    theirs = cut(prune, net(), 0.7).state_dict()
    mine = from_torch(theirs)
    assert mine._metadata is theirs._metadata, "the versions of the modules"
    assert len(mine) == len(theirs) and mine["1.1.running_mean"] is theirs["1.1.running_mean"]
    assert mine["0.parametrizations.weight.original"] is theirs["0.weight_orig"]
    plain = {"w_orig": torch.ones(2), "u_mask": 3, "mask": None, "_orig": [], "module.weight": torch.zeros(1)}
    assert from_torch(plain) == plain and type(from_torch(plain)) is OrderedDict
    assert from_torch(mine).keys() == mine.keys()


def test_into_a_transferred_layer():
    theirs = prune.random_unstructured(nn.Linear(7, 5), "weight", 9)
    layer = nn.Linear(7, 5)
    parametrize.transfer_parametrizations_and_params(
        ours.l1_unstructured(nn.Linear(7, 5), "weight", 3), layer
    )
    layer.load_state_dict(from_torch(theirs.state_dict()))
    assert torch.equal(layer.weight, theirs.weight) and torch.equal(layer.bias, theirs.bias)
    assert ours.l1_unstructured(layer, "weight", 5).weight_mask.sum() == 35 - 9 - 5


def test_soft_masks_are_refused():
    theirs = prune.custom_from_mask(nn.Linear(4, 4), "weight", torch.linspace(0, 1, 16).view(4, 4))
    sentence = "from_torch: expected 0.weight_mask to hold zeros and ones, got 0.06667"
    with pytest.raises(ValueError, match=f"^{re.escape(sentence)}$"):
        from_torch(nn.Sequential(theirs).state_dict())


def test_checkpoints_that_do_not_fit():
    """torch's own errors, for a checkpoint that was not converted, was not pruned, or has another shape."""
    mine, state = cut(ours, net(), 0.2), cut(prune, net(), 0.2).state_dict()
    for wrong, sentence in [(state, "Missing key"), (net().state_dict(), "Missing key")]:
        with pytest.raises(RuntimeError, match=sentence):
            mine.load_state_dict(wrong)
    theirs = prune.l1_unstructured(nn.Linear(5, 7), "weight", 0.2)
    with pytest.raises(RuntimeError, match=r"size mismatch for parametrizations\.weight\.0\.mask"):
        ours.l1_unstructured(nn.Linear(7, 5), "weight", 2).load_state_dict(from_torch(theirs.state_dict()))


@pytest.mark.parametrize("thing", [None, [1], torch.ones(2), OrderedDict], ids=repr)
def test_no_state_dict(thing):
    given = "the class OrderedDict" if thing is OrderedDict else type(thing).__name__
    with pytest.raises(TypeError, match=f"^from_torch: expected state_dict to be a mapping, got {given}$"):
        from_torch(thing)


def test_a_mask_that_is_no_tensor():
    for mask, kind, sentence in [
        (torch.eye(3).to_sparse(), ValueError, "a strided tensor, got a sparse one"),
        ("ones", TypeError, "a torch.Tensor, got str"),
    ]:
        with pytest.raises(kind, match=f"^from_torch: expected w_mask to be {sentence}$"):
            from_torch({"w_orig": torch.eye(3), "w_mask": mask})
