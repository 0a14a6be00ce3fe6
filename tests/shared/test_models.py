"""Parametrized layers in the life of a model: checkpoints, copies, devices, sharing, compilers, functional
calls.
"""

import copy
import io

import pytest
import torch
from table import F64, EagerSkew, EagerSymmetric, every_module
from test_modules import data, made, same_state, structured
from torch import nn
from torch.nn.utils import parametrize

import fastparam


def model(symmetric, skew):
    layers = nn.Sequential(
        nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4), nn.Unflatten(1, (1, 2, 2)), nn.Conv2d(1, 2, 3, padding=1)
    )
    parametrize.register_parametrization(layers[0], "weight", symmetric())
    parametrize.register_parametrization(layers[2], "weight", skew())
    parametrize.register_parametrization(layers[4], "weight", skew())
    return layers


def both_models():
    torch.manual_seed(1)
    ours = model(fastparam.Symmetric, fastparam.Skew)
    torch.manual_seed(2)
    return ours, model(EagerSymmetric, EagerSkew)


def test_checkpoints_move_both_ways():
    v = torch.randn(3, 4)
    for source, target in (both_models(), both_models()[::-1]):
        assert not torch.equal(source(v), target(v))
        assert list(source.state_dict()) == list(target.state_dict())
        file = io.BytesIO()
        torch.save(source.state_dict(), file)
        file.seek(0)
        result = target.load_state_dict(torch.load(file, weights_only=True), strict=True)
        assert not result.missing_keys and not result.unexpected_keys
        assert torch.equal(source(v), target(v)) and same_state(source, target)


def test_load_state_dict_by_assignment():
    ours, eager = both_models()
    ours.load_state_dict(eager.state_dict(), strict=True, assign=True)
    v = torch.randn(3, 4)
    assert torch.equal(ours(v), eager(v))


@every_module
def test_a_raw_tensor_that_is_not_canonical_is_kept(kind):
    """A checkpoint can contain any values in the half that is not read. They are restored unchanged."""
    ours, eager = made(kind)
    state = {key: torch.randn_like(value) for key, value in eager.state_dict().items()}
    ours.load_state_dict(state), eager.load_state_dict(state)
    assert torch.equal(ours.weight, eager.weight)
    assert all(torch.equal(ours.state_dict()[key], value) for key, value in state.items())


@every_module
def test_deepcopy_and_pickle(kind):
    ours, _ = made(kind)
    twin = copy.deepcopy(ours)
    assert same_state(ours, twin) and torch.equal(ours.weight, twin.weight)
    twin.weight = torch.zeros(4, 4)
    assert not torch.equal(ours.weight, twin.weight)
    module = kind.ours()
    file = io.BytesIO()
    torch.save(module, file)
    file.seek(0)
    again = torch.load(file, weights_only=False)
    assert type(again) is type(module) and again.lower == module.lower
    with pytest.raises(
        RuntimeError, match="Serialization of parametrized modules is only supported through state_dict"
    ):
        torch.save(ours, io.BytesIO())


@every_module
def test_dtypes_and_devices(kind):
    for dtype in (F64, torch.bfloat16, torch.float16, torch.complex64):
        ours, eager = made(kind)
        ours.to(dtype), eager.to(dtype)
        assert (
            ours.weight.dtype == dtype
            and torch.equal(ours.weight, eager.weight)
            and structured(kind, ours.weight)
        )
    meta = ours.to("meta")
    assert meta.weight.device.type == "meta" and meta.weight.shape == (4, 4)
    empty = meta.to_empty(device="cpu")
    empty.load_state_dict(eager.state_dict())
    assert torch.equal(empty.weight, eager.weight)


@every_module
def test_built_on_meta(kind):
    """A model too large to build twice is parametrized on meta, allocated, and then filled."""
    with torch.device("meta"):
        layer = nn.Linear(4, 4)
        parametrize.register_parametrization(layer, "weight", kind.ours())
        layer.weight = torch.empty(4, 4)
    assert layer.weight.is_meta and layer(torch.empty(2, 4, device="meta")).shape == (2, 4)
    layer.to_empty(device="cpu")
    source, eager = made(kind)
    layer.load_state_dict(source.state_dict())
    v = data("linear")
    assert torch.equal(layer(v), eager(v))


@every_module
def test_uninitialised_weights_can_be_parametrized(kind):
    layer = nn.Linear(4, 4)
    nn.init.constant_(layer.weight, float("nan"))
    parametrize.register_parametrization(layer, "weight", kind.ours())
    layer.weight = torch.zeros(4, 4)
    assert torch.equal(layer.weight, torch.zeros(4, 4))


@every_module
def test_shared_raw_tensor(kind):
    def tie(pair):
        first, second = pair
        second.parametrizations.weight.original = first.parametrizations.weight.original
        second.bias = first.bias
        return nn.Sequential(first, second)

    a, x = made(kind)
    b, y = made(kind)
    ours, eager = tie((a, b)), tie((x, y))
    assert len(list(ours.parameters())) == 2
    v = data("linear")
    assert torch.equal(ours(v), eager(v))
    ours(v).square().sum().backward()
    eager(v).square().sum().backward()
    for p, q in zip(ours.parameters(), eager.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad)
    a.weight = torch.zeros(4, 4)
    assert torch.equal(b.weight, torch.zeros(4, 4))


@every_module
def test_one_layer_used_twice(kind):
    ours, eager = made(kind)
    v = data("linear")
    for context in (parametrize.cached, torch.enable_grad):
        for layer in (ours, eager):
            layer.zero_grad()
            with context():
                layer(layer(v).tanh()).square().sum().backward()
        torch.testing.assert_close([p.grad for p in ours.parameters()], [p.grad for p in eager.parameters()])


def test_module_shared_by_two_layers():
    """The module has no state, so one instance serves any number of layers."""
    module, layers = fastparam.Skew(), nn.ModuleList([nn.Linear(4, 4), nn.Linear(9, 9)])
    for layer in layers:
        parametrize.register_parametrization(layer, "weight", module)
    assert all(torch.equal(layer.weight, -layer.weight.mT) for layer in layers)


@every_module
def test_apply_initialisation(kind):
    ours, eager = made(kind)

    def init(module):
        if isinstance(module, nn.Linear):
            torch.manual_seed(3)
            with torch.no_grad():
                module.weight = nn.init.normal_(torch.empty(4, 4))
            nn.init.zeros_(module.bias)

    ours.apply(init), eager.apply(init)
    assert same_state(ours, eager) and torch.equal(ours.weight, eager.weight)


# ---- transforms and compilers ----------------------------------------------------------------------------


@every_module
def test_functional_call(kind):
    ours, eager = made(kind, dtype=F64)
    v = data("linear", F64)
    state = {name: torch.randn_like(p) for name, p in ours.named_parameters()}
    call = lambda layer, state, v: torch.func.functional_call(layer, state, (v,))
    assert torch.equal(call(ours, state, v), call(eager, state, v))
    gradient = lambda layer: torch.func.grad(lambda state: call(layer, state, v).square().sum())(state)
    torch.testing.assert_close(gradient(ours), gradient(eager))
    stacked = {name: torch.stack([p, 2 * p, 3 * p]) for name, p in state.items()}
    ensemble = lambda layer: torch.vmap(lambda state: call(layer, state, v))(stacked)
    torch.testing.assert_close(ensemble(ours), ensemble(eager))


@every_module
@pytest.mark.usefixtures("dynamo")
def test_compile(kind):
    ours, eager = made(kind)
    v = data("linear")
    compiled = torch.compile(ours, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(v), eager(v))
    compiled(v).square().sum().backward()
    eager(v).square().sum().backward()
    torch.testing.assert_close([p.grad for p in ours.parameters()], [p.grad for p in eager.parameters()])
    with torch.no_grad():
        ours.weight = torch.zeros(4, 4)
    torch.testing.assert_close(compiled(v), ours.bias.expand(5, 4))


@pytest.mark.slow
@pytest.mark.usefixtures("dynamo")
def test_training_step_compiled_by_inductor(monkeypatch):
    # with it, Inductor refuses ops whose decompositions are in torch's own table
    monkeypatch.setenv("CI", "1")
    ours, eager = both_models()
    eager.load_state_dict(ours.state_dict())
    v = torch.randn(3, 4)
    compiled = torch.compile(ours, fullgraph=True)
    for net, f in ((ours, compiled), (eager, eager)):
        optimise = torch.optim.SGD(net.parameters(), lr=0.1)
        for _ in range(2):
            optimise.zero_grad()
            f(v).square().mean().backward()
            optimise.step()
    torch.testing.assert_close(ours.state_dict(), eager.state_dict())


@every_module
@pytest.mark.usefixtures("dynamo")
@pytest.mark.parametrize("strict", [False, True], ids=["non-strict", "strict"])
def test_export(kind, strict):
    ours, eager = made(kind)
    v = data("linear")
    program = torch.export.export(ours.eval(), (v,), strict=strict)
    assert any(f"fastparam.{kind.word}" in str(node.target) for node in program.graph.nodes)
    torch.testing.assert_close(program.module()(v), eager(v))


@every_module
def test_checkpoint_and_saved_tensors(kind):
    from torch.utils.checkpoint import checkpoint

    ours, eager = made(kind)
    v = data("linear")
    checkpoint(ours, v, use_reentrant=False).square().sum().backward()
    with torch.autograd.graph.save_on_cpu():
        eager(v).square().sum().backward()
    torch.testing.assert_close([p.grad for p in ours.parameters()], [p.grad for p in eager.parameters()])
