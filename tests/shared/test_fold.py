"""fold gives plain tensors of the same values, for every form of the table of modules and for models that tie
them.
"""

import copy
import subprocess
import sys
import warnings

import pytest
import torch
from modules import every_form
from torch import nn
from torch.nn.utils import parametrize

import fastparam


@every_form
def test_every_form(form):
    layer = form.assigned()
    weight, X = layer.weight.detach().clone(), form.data()
    expected = layer(X)
    assert fastparam.fold(layer) is layer
    assert type(layer) is nn.Linear and sorted(layer.state_dict()) == ["bias", "weight"]
    assert type(layer.weight) is nn.Parameter and layer.weight.requires_grad
    assert torch.equal(layer.weight, weight) and torch.equal(layer(X), expected)


def symmetric(layer, name="weight"):
    return fastparam.parametrizations.symmetric(layer, name)


def test_raw_tensors_and_modules_that_are_tied():
    """Two maps of one raw tensor are two values. One layer, or one map, that occurs twice is one value."""
    first, last = symmetric(nn.Linear(4, 4)), symmetric(nn.Linear(4, 4))
    second = fastparam.parametrizations.skew(nn.Linear(4, 4))
    second.parametrizations.weight.original = first.parametrizations.weight.original
    last.parametrizations.weight = first.parametrizations.weight
    model = nn.Sequential(first, second, last, first)
    values = [layer.weight.detach().clone() for layer in model]
    raw = first.parametrizations.weight.original
    before = raw.detach().clone()
    fastparam.fold(model)
    assert all(torch.equal(layer.weight, value) for layer, value in zip(model, values, strict=True))
    assert last.weight is first.weight and torch.equal(raw, before)


def test_buffers_frozen_weights_and_recurrent_layers():
    model = nn.ModuleDict({"lstm": nn.LSTM(3, 3), "frozen": nn.Linear(3, 3).requires_grad_(False)})
    model.register_buffer("state", torch.randn(3, 3))
    symmetric(model, "state")
    symmetric(model["frozen"])
    fastparam.parametrizations.orthogonal(model["lstm"], "weight_hh_l0", "cayley")
    state, X = model.state.clone(), torch.randn(5, 3)
    expected = model["lstm"](X)[0]
    fastparam.fold(model)
    assert torch.equal(model.state, state) and "state" in dict(model.named_buffers())
    assert not model["frozen"].weight.requires_grad
    assert torch.equal(model["lstm"](X)[0], expected)
    assert not any("parametrizations" in key for key in model.state_dict())


def test_what_is_not_of_this_package_is_left_and_named():
    class Foreign(nn.Module):
        def forward(self, X):
            return 2 * X

    model = nn.Sequential(symmetric(nn.Linear(3, 3)), nn.Linear(3, 3), symmetric(nn.Linear(3, 3)))
    parametrize.register_parametrization(model[0], "weight", Foreign())
    nn.utils.parametrizations.orthogonal(model[1])
    with pytest.warns(UserWarning) as shown:
        fastparam.fold(model)
    assert str(shown[0].message) == (
        "fold: '0.weight' is left as it is, because its parametrization "
        f"({__name__}.{Foreign.__qualname__}) is not from fastparam; "
        "'1.weight' is left as it is, because its parametrization "
        "(torch.nn.utils.parametrizations._Orthogonal) is not from fastparam"
    )
    assert shown[0].filename == __file__
    assert [parametrize.is_parametrized(layer) for layer in model] == [True, True, False]
    layer = symmetric(nn.Linear(3, 3))
    parametrize.register_parametrization(layer, "bias", Foreign())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fastparam.fold(nn.Linear(3, 3))
        with pytest.raises(UserWarning, match=r"^fold: 'bias' is left as it is, "):
            fastparam.fold(layer)
    assert parametrize.is_parametrized(layer, "weight"), "a warning that is an error comes before any change"


def test_deep_copies_and_wrappers():
    """Copies share the class that torch creates for a parametrized module. A wrapper is folded like its
    content.
    """
    first = symmetric(nn.Linear(4, 4))
    copies, X = [copy.deepcopy(first) for _ in range(3)], torch.randn(2, 4)
    expected = first(X)
    model = nn.Sequential(copies[0], torch.compile(copies[1], backend="eager"))
    fastparam.fold(model)
    assert torch.equal(copies[0](X), expected) and torch.equal(model[1](X), expected)
    assert not any("parametrizations" in key for key in model.state_dict())
    assert torch.equal(first(X), expected) and torch.equal(copies[2](X), expected)
    assert parametrize.is_parametrized(first) and parametrize.is_parametrized(copies[2])


def test_a_cached_value_is_not_the_folded_one():
    layer = symmetric(nn.Linear(3, 3))
    with parametrize.cached():
        before = layer.weight
        fastparam.fold(layer)
        assert layer.weight.data_ptr() != before.data_ptr() and torch.equal(layer.weight, before)


def test_a_value_that_cannot_be_computed_changes_nothing():
    class Refuses(fastparam.Symmetric):
        def forward(self, X):
            if X.requires_grad:
                raise RuntimeError("not now")
            return X

    Refuses.__module__ = fastparam.Symmetric.__module__
    model = nn.Sequential(symmetric(nn.Linear(3, 3)), nn.Linear(3, 3).requires_grad_(False))
    parametrize.register_parametrization(model[1], "weight", Refuses())
    model[1].requires_grad_()
    keys = list(model.state_dict())
    with pytest.raises(RuntimeError, match="not now"):
        fastparam.fold(model)
    assert list(model.state_dict()) == keys and parametrize.is_parametrized(model[0])
    for wrong in (None, torch.eye(3), nn.Linear):
        with pytest.raises(TypeError, match=r"^fold: expected model to be a torch\.nn\.Module, got "):
            fastparam.fold(wrong)


@pytest.mark.slow
def test_folded_and_decomposed_models_run_where_the_package_is_not(tmp_path):
    model = nn.Sequential(symmetric(nn.Linear(4, 4)), nn.Linear(4, 6), nn.Linear(6, 6))
    fastparam.parametrizations.orthogonal(model[1], orthogonal_map="cayley")
    fastparam.parametrizations.l1_unstructured(model[2], "weight", amount=0.5)
    X = torch.randn(2, 4)
    expected = model(X).detach()
    program = torch.export.export(model, (X,))
    table = torch.export.default_decompositions() | fastparam.decompositions()
    torch.export.save(program.run_decompositions(table), tmp_path / "decomposed.pt2")
    folded = fastparam.fold(copy.deepcopy(model))
    torch.save((folded, X, expected), tmp_path / "whole.pt")
    torch.export.save(torch.export.export(folded, (X,)), tmp_path / "exported.pt2")
    program = (
        "import sys, torch\n"
        "sys.modules['fastparam'] = None\n"
        "model, X, expected = torch.load('whole.pt', weights_only=False)\n"
        "assert torch.equal(model(X), expected)\n"
        "assert torch.equal(torch.export.load('exported.pt2').module()(X), expected)\n"
        "torch.testing.assert_close(torch.export.load('decomposed.pt2').module()(X), expected)\n"
    )
    subprocess.run([sys.executable, "-c", program], cwd=tmp_path, check=True)
    assert torch.equal(model(X), expected) and parametrize.is_parametrized(model[0])
