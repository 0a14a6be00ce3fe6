"""Every module in the life of a model: training, copies, sharing, removal, dtypes, transforms and
compilers.
"""

import copy
import io
import warnings

import pytest
import torch
from modules import every_assignable, every_form
from torch import nn
from torch.nn.utils import parametrize
from torch.utils.checkpoint import checkpoint


def gradients(layer, v):
    layer.zero_grad()
    layer(v).square().sum().backward()
    return [p.grad.clone() for p in layer.parameters()]


@every_form
@pytest.mark.parametrize("optimiser", [torch.optim.SGD, torch.optim.AdamW], ids=["SGD", "AdamW"])
def test_training(form, optimiser):
    layer, v = form.assigned(), form.data()
    goal, losses = torch.randn(6, form.shape[0]), []
    optimise = optimiser(layer.parameters(), lr=0.05, weight_decay=0.1)
    for _ in range(15):
        optimise.zero_grad()
        loss = (layer(v) - goal).square().mean()
        loss.backward()
        optimise.step()
        losses.append(loss.item())
        assert form.holds(layer.weight)
    assert losses[-1] < losses[0]


@every_form
def test_a_copy_is_apart(form):
    layer = form.assigned()
    weight = layer.weight
    twin = copy.deepcopy(layer)
    assert torch.equal(twin.weight, weight)
    for p, q in zip(
        [*layer.parameters(), *layer.buffers()], [*twin.parameters(), *twin.buffers()], strict=True
    ):
        assert p.data_ptr() != q.data_ptr()
    assert all(t.grad_fn is None for t in layer.state_dict(keep_vars=True).values()), "no history is kept"
    weight.sum().backward()
    with pytest.raises(
        RuntimeError, match="Serialization of parametrized modules is only supported through state_dict"
    ):
        torch.save(layer, io.BytesIO())


@every_form
@pytest.mark.parametrize("leave", [True, False], ids=["leave", "restore"])
def test_removal(form, leave):
    layer = form.assigned()
    raw = layer.parametrizations.weight.original
    expected = layer.weight.detach().clone() if leave else raw.detach().clone()
    parametrize.remove_parametrizations(layer, "weight", leave_parametrized=leave)
    assert type(layer) is nn.Linear and layer.weight is raw and torch.equal(raw, expected)
    assert sorted(layer.state_dict()) == ["bias", "weight"]


@every_form
def test_tied_layers(form):
    """Two layers that share one list of parametrizations, and one layer that is used twice."""
    first, second = form.assigned(), form.layer()
    second.parametrizations.weight = first.parametrizations.weight
    second.bias = first.bias
    model, v = nn.ModuleList([first, second]), form.data()
    assert len(list(model.parameters())) == 2 and torch.equal(first(v), second(v))
    once = gradients(first, v)
    (first(v).square().sum() + second(v).square().sum()).backward()
    for p, g in zip(first.parameters(), once, strict=True):
        torch.testing.assert_close(p.grad, 3 * g)
    with parametrize.cached():
        assert first.weight is first.weight
        torch.testing.assert_close(gradients(first, v), once)


@every_form
def test_dtypes(form):
    for cast in (nn.Module.double, nn.Module.bfloat16, nn.Module.half, lambda m: m.type(torch.float64)):
        layer = form.assigned()
        before = layer.weight.detach()
        cast(layer)
        weight = layer.weight
        if "MatrixExponential" in form.name and weight.dtype in (torch.bfloat16, torch.float16):
            continue
        assert weight.dtype == layer.bias.dtype
        assert form.holds(weight.float() if weight.dtype == torch.float64 else weight), (
            "as the buffers were in float32"
        )
        torch.testing.assert_close(
            weight.float(), before, rtol=0, atol=20 * torch.finfo(weight.dtype).eps + 1e-6
        )


@every_form
def test_buffers_of_another_dtype(form):
    """Mixed precision casts parameters but not buffers (FSDP2, DeepSpeed)."""
    if "MatrixExponential" in form.name:
        pytest.skip("torch.matrix_exp has no bfloat16")
    layer = form.assigned()
    before = layer.weight.detach()
    for p in layer.parameters():
        p.data = p.data.bfloat16()
    assert layer.weight.dtype == torch.bfloat16
    torch.testing.assert_close(layer.weight.float(), before, rtol=0, atol=0.1)
    gradients(layer, form.data().bfloat16())


@every_form
def test_autocast_and_grad_modes(form):
    layer, v = form.assigned(), form.data()
    weight = layer.weight.detach()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(layer.weight, weight) and layer(v).dtype == torch.bfloat16
    with torch.inference_mode():
        assert torch.equal(layer.weight, weight)
        made_inside = form.layer()
        assert form.holds(made_inside.weight)
    layer.requires_grad_(False)
    assert not layer.weight.requires_grad and torch.equal(layer.weight, weight)


@every_form
def test_checkpointing_and_saved_tensors(form):
    layer, v = form.assigned(), form.data()
    expected = gradients(layer, v)
    layer.zero_grad()
    checkpoint(layer, v, use_reentrant=False).square().sum().backward()
    torch.testing.assert_close([p.grad for p in layer.parameters()], expected)
    with torch.autograd.graph.save_on_cpu():
        torch.testing.assert_close(gradients(layer, v), expected)


@every_form
def test_functional_gradients(form):
    layer, v = form.assigned(), form.data()
    state = {key: p.detach() for key, p in layer.named_parameters()}
    loss = lambda state: torch.func.functional_call(layer, state, (v,)).square().sum()
    expected = gradients(layer, v)
    torch.testing.assert_close(list(torch.func.grad(loss)(state).values()), expected)
    stacked = {key: torch.stack([p, p]) for key, p in state.items()}
    for g, e in zip(torch.vmap(torch.func.grad(loss))(stacked).values(), expected, strict=True):
        torch.testing.assert_close(g, torch.stack([e, e]))


@pytest.mark.slow
@every_form
@pytest.mark.usefixtures("dynamo")
def test_compile(form):
    layer, v = form.assigned(), form.data()
    expected = gradients(layer, v)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(v), layer(v))
    torch.testing.assert_close(gradients(compiled, v), expected)


@every_form
@pytest.mark.usefixtures("dynamo")
def test_export(form):
    layer, v = form.assigned().eval(), form.data()
    expected = layer(v)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.export.export(layer, (v,))
    torch.testing.assert_close(program.module()(v), expected)
    other = form.assigned()
    again = program.module()
    again.load_state_dict(other.state_dict())
    torch.testing.assert_close(again(v), other(v))


@every_assignable
def test_a_graph_outlives_an_assignment(form):
    """The backward pass uses the same tensors as the forward pass."""
    layer, v = form.layer(), form.data()
    W = form.image()
    layer.weight = W
    expected = gradients(layer, v)
    layer.zero_grad()
    raw = layer.parametrizations.weight.original.detach().clone()
    functional = torch.func.functional_call(
        layer, {"parametrizations.weight.original": raw.requires_grad_()}, (v,)
    )
    layer.weight = form.image()
    functional.square().sum().backward()
    torch.testing.assert_close(raw.grad, expected[1] if expected[1].shape == raw.shape else expected[0])


@every_form
def test_repr(form):
    layer = form.layer()
    for module in layer.parametrizations.weight:
        assert repr(module).startswith(module._get_name() + "(")
    assert str(layer.parametrizations.weight[0]) in repr(layer)
