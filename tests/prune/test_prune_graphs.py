"""Everything that holds a mask when it is replaced: graphs, programs, state dicts, modes,
ensembles, copies.
"""

import copy
import io

import pytest
import torch
from table import F64
from test_prune_module import applied, every_maker, prune_one
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn.utils import prune

from fastparam import parametrizations as ours


def pruned(amount=0.25, layer=None):
    return ours.l1_unstructured(layer or nn.Linear(6, 5), "weight", amount)


CHANGES = {  # those that need a rule come before those that give a mask
    "l1": lambda layer: pruned(0.5, layer),
    "update_": lambda layer: applied(layer).update_(torch.randn(5, 6)),
    "amount": lambda layer: applied(layer).update_(layer.weight_orig, amount=0.5),
    "random": lambda layer: ours.random_unstructured(layer, "weight", 0.5),
    "columns": lambda layer: ours.ln_structured(layer, "weight", 2, 2, 1),
    "custom": lambda layer: ours.custom_from_mask(
        layer, "weight", (torch.arange(30).view(5, 6) % 3 > 0).half()
    ),
    "global": lambda layer: ours.global_unstructured([(layer, "weight")], prune.L1Unstructured, amount=0.3),
    "assigned": lambda layer: setattr(applied(layer), "mask", torch.zeros(5, 6, dtype=torch.bool)),
}
every_change = pytest.mark.parametrize("change", CHANGES)


# ---- whoever holds the mask before keeps it --------------------------------------------------------------


@every_change
def test_earlier_graphs_keep_their_mask(change):
    layer = pruned()
    before, raw = applied(layer).mask.clone(), layer.weight_orig
    loss = layer.weight.sum()
    CHANGES[change](layer)
    for _ in range(2):
        assert torch.equal(torch.autograd.grad(loss, raw, retain_graph=True)[0], before.float())
    assert torch.equal(torch.autograd.grad(layer.weight.sum(), raw)[0], applied(layer).mask.float())
    assert not torch.equal(applied(layer).mask, before)


@every_change
def test_an_earlier_state_dict_takes_the_model_back(change):
    layer = pruned()
    state, weight = layer.state_dict(), layer.weight.detach().clone()
    CHANGES[change](layer)
    assert not torch.equal(layer.weight, weight)
    layer.load_state_dict(state)
    assert torch.equal(layer.weight, weight)


@every_change
@pytest.mark.usefixtures("dynamo")
def test_exported_programs_keep_their_mask(change):
    layer, x = pruned(), torch.randn(3, 6)
    program, y, file = torch.export.export(layer, (x,)), layer(x), io.BytesIO()
    CHANGES[change](layer)
    torch.export.save(program, file)
    file.seek(0)
    assert torch.equal(program.module()(x), y) and torch.equal(torch.export.load(file).module()(x), y)
    torch.testing.assert_close(torch.export.export(layer, (x,)).module()(x), layer(x))


def test_an_edit_in_place_is_an_error_in_backward():
    layer = pruned()
    loss = layer.weight.sum()
    layer.weight_mask[0] = False
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


# ---- compile and trace -----------------------------------------------------------------------------------


@pytest.mark.slow
@every_maker
@pytest.mark.usefixtures("dynamo")
def test_compile_and_export(kind):
    layer, x = prune_one(kind).double(), torch.randn(3, 6, dtype=F64)
    expected = torch.autograd.grad(layer(x).square().sum(), [*layer.parameters()])
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(
        torch.autograd.grad(compiled(x).square().sum(), [*layer.parameters()]), expected
    )
    program = torch.export.export(layer, (x,))
    assert any("masked_prune" in str(node.target) for node in program.graph.nodes)
    torch.testing.assert_close(program.module()(x), layer(x))


@pytest.mark.usefixtures("dynamo")
def test_a_compiled_layer_follows_its_mask_without_compiling_again():
    layer, x = pruned(), torch.randn(3, 6)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    compiled(x)
    with torch._dynamo.config.patch(error_on_recompile=True):
        for change in CHANGES:
            CHANGES[change](layer)
            torch.testing.assert_close(compiled(x), layer(x))
        layer.weight_mask[0] = True
        torch.testing.assert_close(compiled(x), layer(x))


@pytest.mark.usefixtures("dynamo")
def test_a_mask_of_another_dtype_is_traced():
    layer, x = pruned(), torch.randn(3, 6)
    applied(layer).mask = applied(layer).mask.float()
    y = layer(x)
    for f in (
        torch.compile(layer, fullgraph=True, backend="aot_eager"),
        torch.export.export(layer, (x,)).module(),
        make_fx(layer)(x),
        torch.jit.trace(layer, (x,)),
    ):
        torch.testing.assert_close(f(x), y)


def test_fake_tensors():
    """Masks are created and checked without data."""
    with FakeTensorMode():
        layer = pruned()
        for change in CHANGES:
            CHANGES[change](layer)
        ours.custom_from_mask(layer, "weight", torch.full((5, 6), 0.5))
        assert layer(torch.randn(3, 6)).shape == (3, 5) and repr(applied(layer)) == "Pruning((5, 6))"


# ---- ensembles -------------------------------------------------------------------------------------------


def test_ensembles():
    nets, x = [nn.Sequential(pruned(amount), nn.Tanh()) for amount in (0.1, 0.5, 0.9)], torch.randn(3, 6)
    state = torch.func.stack_module_state(nets)
    y = torch.vmap(lambda *state: torch.func.functional_call(nets[0], state, (x,)))(*state)
    torch.testing.assert_close(y, torch.stack([net(x) for net in nets]))


@every_maker
def test_functional_call(kind):
    layer, x = prune_one(kind), torch.randn(3, 6)
    other = {name: ~m for name, m in layer.named_buffers()}
    y = torch.func.functional_call(layer, other, (x,))
    applied(layer).mask = ~applied(layer).mask
    assert torch.equal(y, layer(x))


# ---- inference mode --------------------------------------------------------------------------------------


@pytest.mark.parametrize("verb_inside", [False, True], ids=["built", "built and pruned"])
def test_built_in_inference_mode_and_pruned_outside(verb_inside):
    with torch.inference_mode():
        layer = pruned() if verb_inside else nn.Linear(6, 5)
    for _ in range(2):
        pruned(5, layer)
    applied(layer).update_(torch.randn(5, 6))
    weight = layer.weight.clone()
    assert (weight == 0).sum() >= 10 and layer(torch.randn(3, 6)).shape == (3, 5)
    assert ours.remove(layer, "weight") is layer and torch.equal(layer.weight, weight)


def test_pruned_in_inference_mode_and_trained_outside():
    layer, removed = nn.Linear(6, 5), nn.Linear(6, 5)
    with torch.inference_mode():
        for change in ("l1", "update_", "amount", "random", "columns", "custom"):
            CHANGES[change](layer)
        ours.remove(pruned(layer=removed), "weight")
    layer(torch.randn(3, 6)).sum().backward()
    assert (layer.weight_orig.grad[~applied(layer).mask] == 0).all()
    pruned(1, layer)
    removed(torch.randn(3, 6)).sum().backward()
    assert not any(t.is_inference() for t in (*layer.state_dict().values(), *removed.state_dict().values()))


# ---- deep copies, which share the class that torch makes -------------------------------------------------


def test_a_deep_copy_lives_alone():
    layer = pruned()
    for verb in (
        lambda twin: ours.remove(twin, "weight"),
        lambda twin: ours.random_unstructured(twin, "bias", 2),
        lambda twin: pruned(0.5, twin),
    ):
        weight, bias, twin = layer.weight.detach().clone(), layer.bias, copy.deepcopy(layer)
        verb(twin)
        assert torch.equal(layer.weight, weight) and layer.bias is bias and layer.weight_mask.shape == (5, 6)
        assert not hasattr(layer, "bias_mask") and not torch.equal(twin(torch.ones(6)), layer(torch.zeros(6)))
    assert type(ours.remove(layer, "weight")) is nn.Linear
