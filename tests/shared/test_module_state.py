"""The state of every module, in everything that knows a model by its state: its keys and shapes depend only
on the code.
"""

import copy
import io

import numpy
import pytest
import torch
import torch.distributed.checkpoint as dcp
from modules import FORMS, every_assignable, every_form
from torch import nn
from torch.distributed.checkpoint.state_dict import get_model_state_dict, set_model_state_dict
from torch.optim.swa_utils import AveragedModel

import fastparam


def shapes(layer):
    return {key: (t.shape, t.dtype) for key, t in layer.state_dict().items()}


def check_same(form, layer, source):
    assert torch.equal(layer.weight, source.weight)
    v = form.data()
    assert torch.equal(layer(v), source(v)) and form.holds(layer.weight)


@every_form
def test_keys_and_shapes_depend_on_the_code_alone(form):
    fresh = shapes(form.layer())
    assert list(fresh) == form.keys
    for _ in range(5):
        assert shapes(form.assigned()) == fresh
    reflected = (
        () if form.name.startswith("SkewCayley") and "plain" in form.name else (-torch.eye(*form.shape),)
    )
    for start in (torch.zeros(form.shape), torch.eye(*form.shape), torch.full(form.shape, 3.0), *reflected):
        layer = nn.Linear(form.shape[1], form.shape[0])
        layer.weight = nn.Parameter(start)
        form.register(layer)
        assert shapes(layer) == fresh


@every_form
def test_a_tensor_stands_behind_every_key(form):
    """get_model_state_dict, functional_call(strict) and exporters read the attribute that a key names."""
    layer = form.assigned()
    for key, value in layer.state_dict(keep_vars=True).items():
        *path, name = key.split(".")
        assert getattr(layer.get_submodule(".".join(path)), name) is value and value.is_contiguous()
    state = get_model_state_dict(layer)
    assert list(state) == form.keys
    target = form.layer()
    set_model_state_dict(target, state)
    check_same(form, target, layer)
    v = form.data()
    assert torch.equal(torch.func.functional_call(form.layer(), state, (v,), strict=True), layer(v))


@every_form
@pytest.mark.parametrize("how", ["copy", "assign", "file", "meta", "deepcopy", "swap", "dcp", "safetensors"])
def test_checkpoints(form, how, tmp_path):
    source = form.assigned()
    if how == "deepcopy":
        return check_same(form, copy.deepcopy(source), source)
    state = source.state_dict()
    if how == "file":
        file = io.BytesIO()
        torch.save(state, file)
        file.seek(0)
        state = torch.load(file, weights_only=True)
    if how == "safetensors":
        safetensors = pytest.importorskip("safetensors.torch")
        safetensors.save_file(state, tmp_path / "model.safetensors")
        state = safetensors.load_file(tmp_path / "model.safetensors")
    if how == "meta":
        with torch.device("meta"):
            target = form.layer()
        target.to_empty(device="cpu")
    else:
        target = form.layer()
    if how == "dcp":
        dcp.save(state, checkpoint_id=tmp_path / "dcp")
        into = target.state_dict()
        dcp.load(into, checkpoint_id=tmp_path / "dcp")
        state = into
    swap = torch.__future__.get_swap_module_params_on_conversion()
    torch.__future__.set_swap_module_params_on_conversion(how == "swap")
    try:
        result = target.load_state_dict(state, strict=True, assign=how == "assign")
    finally:
        torch.__future__.set_swap_module_params_on_conversion(swap)
    assert not result.missing_keys and not result.unexpected_keys
    check_same(form, target, source)


@every_form
def test_a_part_of_a_checkpoint_changes_no_more_than_it_names(form):
    layer = form.assigned()
    before, bias = layer.weight.detach().clone(), torch.randn_like(layer.bias)
    result = layer.load_state_dict({"bias": bias}, strict=False)
    assert torch.equal(layer.weight, before) and torch.equal(layer.bias, bias)
    assert result.missing_keys == form.keys[1:], "torch's own missing keys, for each of them"
    with pytest.raises(RuntimeError, match="Missing key"):
        layer.load_state_dict({"bias": bias})
    assert torch.equal(layer.weight, before)


@every_form
def test_a_load_that_fails_changes_no_buffer(form):
    layer = form.assigned()
    buffers = {key: t.clone() for key, t in layer.named_buffers()}
    other = {
        key: torch.zeros([size + 1 for size in t.shape], dtype=t.dtype)
        for key, t in layer.state_dict().items()
    }
    with pytest.raises(RuntimeError, match="size mismatch"):
        layer.load_state_dict(other)
    assert all(torch.equal(t, buffers[key]) for key, t in layer.named_buffers())
    assert form.holds(layer.weight) and layer(form.data()).isfinite().all()


@every_form
def test_deferred_initialisation(form):
    """The meta device, to_empty, and then reset_parameters of every module that has it. Signs are one, and
    torch's buffers are torch's.
    """
    with torch.device("meta"):
        layer = form.layer()
    layer.to_empty(device="cpu")
    for buffer in layer.buffers():
        buffer.fill_(float("nan") if buffer.is_floating_point() else 0)
    for part in layer.modules():
        if hasattr(part, "reset_parameters") and part is not layer:
            part.reset_parameters()
    with torch.no_grad():
        layer.parametrizations.weight.original.normal_(std=0.1)
    for key, buffer in layer.named_buffers():
        if key.endswith("signs"):
            assert torch.equal(buffer, torch.ones_like(buffer))
        if key.endswith("Id"):
            assert torch.equal(buffer, torch.eye(4))
    if not any(key.endswith(("base", "mask")) for key in form.buffers):
        assert form.holds(layer.weight)


@every_form
def test_averaged_models(form):
    """update_parameters copies buffers. Parameters are averaged, and every average satisfies the
    constraint.
    """
    source = form.assigned()
    average = AveragedModel(source)
    average.update_parameters(source), average.update_parameters(source)
    v = form.data()
    torch.testing.assert_close(average(v), source(v))
    if any(key.endswith("mask") for key in form.buffers):
        averaged = AveragedModel(source, use_buffers=True)
        averaged.update_parameters(source)
        with pytest.raises(RuntimeError, match=r"Subtraction, the `-` operator, with two bool tensors"):
            averaged.update_parameters(source)


@every_form
def test_ensembles(form):
    """Row i of the stacked state is model i."""
    models = [nn.Sequential(form.assigned(), nn.Tanh()) for _ in range(3)]
    state = torch.func.stack_module_state(models)
    call = lambda parameters, buffers, v: torch.func.functional_call(models[0], (parameters, buffers), (v,))
    v = form.data()
    Y = torch.vmap(call, in_dims=(0, 0, None))(*state, v)
    torch.testing.assert_close(Y, torch.stack([model(v) for model in models]))


@every_form
def test_target_networks(form):
    """A copy follows the model: parameters by a moving average, and buffers by copying."""
    source, target = form.assigned(), form.layer()
    with torch.no_grad():
        for ours, theirs in zip(target.parameters(), source.parameters(), strict=True):
            ours.lerp_(theirs, 1.0)
        for ours, theirs in zip(target.buffers(), source.buffers(), strict=True):
            ours.copy_(theirs)
    check_same(form, target, source)


@every_assignable
def test_refused_assignments_change_nothing(form):
    layer = form.assigned()
    before = {key: t.clone() for key, t in layer.state_dict().items()}
    wrong_dtype, nan = form.image().double(), torch.full(form.shape, float("nan"))
    refused = [wrong_dtype] + [nan] * (form.tolerance > 0)
    for W in refused:
        with pytest.raises(ValueError):
            layer.weight = W
        assert all(torch.equal(t, before[key]) for key, t in layer.state_dict().items())
    assert form.holds(layer.weight)


@every_assignable
def test_assignment(form):
    layer = form.layer()
    raw = layer.parametrizations.weight.original
    for _ in range(3):
        W = form.image()
        layer.weight = W
        assert (
            layer.weight - W
        ).abs().max() <= form.tolerance and layer.parametrizations.weight.original is raw
    with torch.no_grad():
        layer.weight = W
    assert (layer.weight - W).abs().max() <= form.tolerance


def test_public_names():
    names = [name for name in dir(fastparam) if not name.startswith("_")]
    assert names == sorted(set(fastparam.__all__) - {"__version__"})
    names = [name for name in dir(fastparam.parametrizations) if not name.startswith("_")]
    assert names == sorted([*fastparam.parametrizations.__all__, "prune"])  # the verbs of torch's own module


def test_numbers_of_numpy():
    module = fastparam.CayleyMap(numpy.int64(4), alpha=numpy.float32(0.5), signs=numpy.bool_(True))
    assert (module.n, module.alpha, module.with_signs) == (4, 0.5, True)
    assert fastparam.SkewCayley(numpy.float64(2), numpy.bool_(True), numpy.bool_(False)).lower is True
    assert fastparam.Skew(numpy.bool_(True)).lower is True


def test_the_table_has_every_module():
    modules = [
        name
        for name in fastparam.__all__
        if isinstance(getattr(fastparam, name), type) and issubclass(getattr(fastparam, name), nn.Module)
    ]
    assert all(any(form.name.split("-")[0] == name for form in FORMS) for name in modules)
