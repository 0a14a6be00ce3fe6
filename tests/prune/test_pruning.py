"""Pruning as a module: masks that move, copy, save and load with the model; constructors; update_; compile and export."""

import copy
import io
import pickle

import pytest
import torch
from table import COMPLEX, F64, REAL, bits, mask
from torch import nn
from torch.nn.utils import parametrize, prune

from fastparam import Pruning, PruningParametrization

X56 = torch.randn(5, 6, generator=torch.Generator().manual_seed(3))
MAKERS = {
    "random": lambda X: Pruning.random(X, 0.4),
    "tutorial": lambda X: PruningParametrization(X, p_drop=0.4),
    "magnitude": lambda X: Pruning.magnitude(X, 0.4),
    "structured": lambda X: Pruning.structured(X, 2, 2, 0),
    "n_m": lambda X: Pruning.n_m(X, 1, 2),
    "from_mask": lambda X: Pruning.from_mask(mask(X.shape, X.device)),
    "row": lambda X: Pruning(mask((X.shape[-1],), X.device)),
    "column": lambda X: Pruning(mask((X.shape[0], *[1] * (X.dim() - 1)), X.device)),
}
every_maker = pytest.mark.parametrize("kind", MAKERS)


def prune_one(kind="magnitude", layer=None, device=None):
    layer = layer or nn.Linear(6, 5, device=device)
    return parametrize.register_parametrization(layer, "weight", MAKERS[kind](layer.weight))


def applied(layer) -> Pruning:
    return layer.parametrizations.weight[-1]


# ---- masks ----


def test_random_is_the_tutorials():
    X = torch.randn(300, 400)
    torch.manual_seed(5)
    ours = Pruning.random(X, p_drop=0.3)
    torch.manual_seed(5)
    assert torch.equal(ours.mask, torch.rand_like(X) > 0.3) and abs(ours.sparsity - 0.3) < 0.01
    torch.manual_seed(5)
    assert torch.equal(PruningParametrization(X, 0.3).mask, ours.mask) and isinstance(PruningParametrization(X), Pruning)
    assert abs(Pruning.random(X).sparsity - 0.2) < 0.01 and abs(PruningParametrization(X).sparsity - 0.2) < 0.01
    generator = torch.Generator().manual_seed(9)
    first = Pruning.random(X, generator=generator).mask
    assert torch.equal(first, Pruning.random(X, generator=generator.manual_seed(9)).mask) and not torch.equal(first, ours.mask)
    assert Pruning.random(X, 0).mask.all() and not Pruning.random(X, 1.0).mask.any()


@pytest.mark.parametrize("dtype", REAL + COMPLEX, ids=str)
def test_masks_of_every_dtype(dtype):
    X = torch.randn(6, 8, dtype=dtype)
    size = X.abs().double() if not X.is_complex() else X.abs()
    pruning = Pruning.magnitude(X, 20)
    assert pruning.mask.sum() == 28 and size[pruning.mask].min() >= size[~pruning.mask].max()
    assert Pruning.random(X, 0.5).mask.shape == (6, 8) and Pruning.structured(X, 2, 2, 1).mask.sum() == 36
    two = Pruning.n_m(X).mask.view(6, 2, 4)
    assert (two.sum(-1) == 2).all()
    for group, kept in zip(size.view(-1, 4), two.view(-1, 4), strict=True):
        assert group[kept].min() >= group[~kept].max()
    assert torch.equal(bits(pruning(X)), bits(torch.where(pruning.mask, X, torch.zeros((), dtype=dtype))))


@pytest.mark.parametrize("amount", [0, 1, 7, 30, 0.0, 0.25, 0.5, 1.0])
def test_magnitude_and_structured_are_torchs(amount):
    expected = prune.L1Unstructured(amount).compute_mask(X56, torch.ones_like(X56))
    assert torch.equal(Pruning.magnitude(X56, amount).mask, expected != 0)
    for n in (1, 2, float("inf"), "fro"):
        for dim in (0, 1, -1):
            if isinstance(amount, float) or amount <= X56.shape[dim]:
                expected = prune.LnStructured(amount, n, dim).compute_mask(X56, torch.ones_like(X56))
                assert torch.equal(Pruning.structured(X56, amount, n, dim).mask, expected != 0)


def test_any_strides():
    assert torch.equal(Pruning.magnitude(X56.mT, 0.3).mask, Pruning.magnitude(X56, 0.3).mask.mT)
    X = torch.randn(4, 3, 2, 2).to(memory_format=torch.channels_last)
    assert torch.equal(Pruning.magnitude(X, 0.3).mask, Pruning.magnitude(X.contiguous(), 0.3).mask)


def test_within_composes_as_the_container_does():
    first = Pruning.magnitude(X56, 0.3)
    for second, again in [
        (Pruning.magnitude(first(X56), 0.5, within=first), lambda layer: prune.l1_unstructured(layer, "weight", 0.5)),
        (Pruning.structured(first(X56), 1, 2, 0, within=first), lambda layer: prune.ln_structured(layer, "weight", 1, 2, 0)),
    ]:
        layer = nn.Linear(6, 5)
        layer.weight = nn.Parameter(X56.clone())
        again(prune.l1_unstructured(layer, "weight", 0.3))
        assert torch.equal(second.mask, layer.weight_mask != 0) and not (second.mask & ~first.mask).any()
    both = Pruning.n_m(X56, 1, 2, within=first)
    assert not (both.mask & ~first.mask).any() and both.mask.view(5, 3, 2).sum(-1).max() == 1
    assert torch.equal(both.mask.view(5, 3, 2).any(-1), first.mask.view(5, 3, 2).any(-1)), "dropped before counts as dropped"
    assert not (Pruning.random(X56, 0.5, within=first).mask & ~first.mask).any()


@pytest.mark.parametrize("shape", [(), (0,), (1,), (13,), (2, 3, 4)], ids=str)
def test_awkward_shapes(shape):
    X = torch.randn(shape)
    for pruning in (Pruning.random(X), Pruning.magnitude(X, 0.5), Pruning.from_mask(torch.ones(shape))):
        assert pruning.mask.shape == X.shape and pruning(X).shape == X.shape and 0 <= pruning.sparsity <= 1
        assert f"Pruning({tuple(shape)}, sparsity=" in repr(pruning)


# ---- the buffer ----


@every_maker
def test_registration_assignment_removal(kind, device):
    layer = prune_one(kind, device=device)
    pruning, raw = applied(layer), layer.parametrizations.weight.original
    assert torch.equal(layer.weight, torch.where(pruning.mask, raw, 0)) and pruning.packed.dtype == torch.uint8
    assert pruning.packed.numel() == -(-pruning.mask.numel() // 8) and [*dict(layer.named_buffers())] == [
        "parametrizations.weight.0.packed"
    ]
    W = torch.full((5, 6), -1.0, device=device)
    W[0, 0] = torch.nan
    pruning.replace_(torch.ones_like(W, dtype=torch.bool).index_fill(0, torch.tensor([0], device=device), False))
    layer.weight = W
    assert layer.parametrizations.weight.original is raw and torch.equal(layer.weight, torch.where(pruning.mask, W, 0))
    assert not torch.signbit(layer.weight[0]).any(), "pruned, as the tutorial says"
    assert pruning.right_inverse(W) is W
    value = layer.weight.detach().clone()
    parametrize.remove_parametrizations(layer, "weight")
    assert torch.equal(layer.weight, value) and layer.weight is raw


@every_maker
def test_dtype_and_device_changes(kind):
    layer = prune_one(kind)
    kept = applied(layer).mask
    for change in (nn.Module.half, nn.Module.double, nn.Module.bfloat16, nn.Module.float, lambda m: m.to(torch.complex64)):
        assert applied(change(layer)).packed.dtype == torch.uint8 and torch.equal(applied(layer).mask, kept)
        assert torch.equal(layer.weight != 0, kept.expand(5, 6))
    if torch.cuda.is_available():
        assert layer.cuda().weight.is_cuda and applied(layer).mask.is_cuda and torch.equal(applied(layer).mask.cpu(), kept)
    assert applied(copy.deepcopy(layer).to("meta")).mask.is_meta and repr(applied(copy.deepcopy(layer).to("meta"))).endswith(")")


@every_maker
def test_copies(kind):
    layer = prune_one(kind)
    pruning, twin = applied(layer), copy.deepcopy(layer)
    assert torch.equal(twin.weight, layer.weight) and applied(twin).packed.data_ptr() != pruning.packed.data_ptr()
    for again in (pickle.loads(pickle.dumps(pruning)), copy.copy(pruning)):
        assert type(again) is type(pruning) and torch.equal(again(X56), pruning(X56)) and repr(again) == repr(pruning)
    if pruning.rules[0] is not None:
        applied(twin).update_(X56)
        assert torch.equal(applied(twin).mask, pickle.loads(pickle.dumps(pruning)).update_(X56).mask)


def model(device=None):
    """Some layers pruned in every way, with masks of the seed in force."""
    net = nn.Sequential(
        nn.Conv2d(3, 4, 3, device=device), nn.Flatten(), nn.Linear(64, 33, device=device), nn.ReLU(), nn.Linear(33, 8, device=device)
    )
    parametrize.register_parametrization(net[0], "weight", Pruning.structured(net[0].weight, 1, 2, 0))
    parametrize.register_parametrization(net[2], "weight", Pruning.random(net[2].weight, 0.5))
    parametrize.register_parametrization(net[2], "bias", PruningParametrization(net[2].bias))
    return parametrize.register_parametrization(net[4], "weight", Pruning.magnitude(net[4].weight, 0.3)) and net


@pytest.mark.parametrize("assign", [False, True], ids=["copy", "assign"])
@pytest.mark.parametrize("context", [False, True], ids=["argument", "context"])
def test_trained_saved_and_loaded_on_a_meta_device_copy(assign, context):
    net, x = model(), torch.randn(7, 3, 6, 6)
    optimiser = torch.optim.AdamW(net.parameters(), lr=0.05, weight_decay=0.1)
    before = [applied(net[i]).mask for i in (0, 2, 4)]
    for _ in range(5):
        optimiser.zero_grad()
        net(x).square().mean().backward()
        assert (net[4].parametrizations.weight.original.grad[~before[2]] == 0).all()
        optimiser.step()
    assert all(torch.equal(net[i].weight != 0, m) for i, m in zip((0, 2, 4), before, strict=True))
    file = io.BytesIO()
    torch.save(net.state_dict(), file)
    file.seek(0)
    if context:
        with torch.device("meta"):
            twin = model()
    else:
        twin = model("meta")
    assert twin(x.to("meta")).shape == (7, 8) and repr(twin)
    twin = twin if assign else twin.to_empty(device="cpu")
    twin.load_state_dict(torch.load(file, weights_only=True), assign=assign)
    assert torch.equal(bits(twin(x)), bits(net(x)))
    assert all(torch.equal(applied(twin[i]).mask, m) for i, m in zip((0, 2, 4), before, strict=True))


# ---- update_ ----


def test_update():
    X = torch.randn(8, 12)
    for pruning, fresh in [
        (Pruning.magnitude(X, 0.4), lambda X: Pruning.magnitude(X, 0.4)),
        (Pruning.magnitude(X, 7), lambda X: Pruning.magnitude(X, 7)),
        (Pruning.structured(X, 3, 1, 1), lambda X: Pruning.structured(X, 3, 1, 1)),
        (Pruning.n_m(X), Pruning.n_m),
        (Pruning.random(X, 0.25), lambda X: Pruning.magnitude(X, 0.25)),
        (PruningParametrization(X, 0.25), lambda X: Pruning.magnitude(X, 0.25)),
        (Pruning.n_m(X, within=Pruning.magnitude(X, 9)), lambda X: Pruning.n_m(X, within=Pruning.magnitude(X, 9))),
    ]:
        pointer, buffer = pruning.packed.data_ptr(), pruning.packed
        for _ in range(3):
            Y = torch.randn(8, 12, requires_grad=True)
            assert pruning.update_(Y) is pruning and torch.equal(pruning.mask, fresh(Y).mask)
        assert pruning.packed is buffer and buffer.data_ptr() == pointer and not buffer.requires_grad


def test_update_between_forward_and_backward_is_detected():
    layer = prune_one("magnitude")
    loss = layer(torch.randn(2, 6)).sum()
    applied(layer).update_(torch.randn(5, 6))
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


# ---- compile and export ----


@every_maker
@pytest.mark.usefixtures("dynamo")
def test_compile_and_export(kind):
    layer, x = prune_one(kind).double(), torch.randn(3, 6, dtype=F64)
    expected = torch.autograd.grad(layer(x).square().sum(), [*layer.parameters()])
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(torch.autograd.grad(compiled(x).square().sum(), [*layer.parameters()]), expected)
    program = torch.export.export(layer, (x,))
    assert any("masked_prune" in str(node.target) for node in program.graph.nodes)
    torch.testing.assert_close(program.module()(x), layer(x))
    if applied(layer).rules[0] is not None:
        applied(layer).update_(torch.randn(5, 6))
        torch.testing.assert_close(compiled(x), layer(x))
    call = lambda buffers: torch.func.functional_call(layer, buffers, (x,))
    stacked = {name: torch.stack([b, b ^ 1]) for name, b in layer.named_buffers()}
    if applied(layer).shape == (5, 6):
        torch.testing.assert_close(torch.vmap(call)(stacked)[0], layer(x))
