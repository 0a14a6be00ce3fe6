"""The mask is a plain buffer: code that casts, loads, averages or edits buffers works without
special cases.
"""

import copy
import io
import pickle

import pytest
import torch
from table import bits
from test_module_errors import Snapshot
from test_prune_module import MAKERS, X56, applied, every_maker, prune_one
from torch import nn
from torch.ao.pruning import WeightNormSparsifier
from torch.ao.pruning.sparsifier.nearly_diagonal_sparsifier import NearlyDiagonalSparsifier
from torch.nn.utils import parametrize, prune
from torch.optim.swa_utils import AveragedModel, get_ema_avg_fn, get_ema_multi_avg_fn
from tutorial import EagerPruning

from fastparam import Pruning, PruningParametrization
from fastparam import parametrizations as ours

MASK = "parametrizations.weight.0.mask"


def pruned(amount=0.5, layer=None):
    return ours.l1_unstructured(layer or nn.Linear(6, 5), "weight", amount)


# ---- the buffer ------------------------------------------------------------------------------------------


@every_maker
def test_one_bool_buffer_of_its_own_shape(kind):
    layer = prune_one(kind)
    kept = layer.state_dict()[MASK]
    assert [*dict(layer.named_buffers())] == [MASK] and kept.dtype == torch.bool
    assert kept.shape == MAKERS[kind](X56).mask.shape and kept.data_ptr() == applied(layer).mask.data_ptr()
    assert set(layer.state_dict()) == {"bias", "parametrizations.weight.original", MASK}


def test_edited_in_place():
    layer = pruned(0)
    applied(layer).mask[0] = False
    layer.weight_mask[:, 1] = 0
    layer.weight_mask &= torch.ones(5, 6, dtype=torch.bool).triu()
    expected = torch.ones(5, 6).triu().index_fill(0, torch.tensor([0]), 0).index_fill(1, torch.tensor([1]), 0)
    assert torch.equal(layer.weight != 0, expected != 0) and torch.equal(
        layer.state_dict()[MASK], expected != 0
    )


@pytest.mark.parametrize(
    "dtype",
    [
        torch.bool,
        torch.uint8,
        torch.uint16,
        torch.int64,
        torch.half,
        torch.float8_e5m2,
        torch.double,
        torch.cfloat,
    ],
    ids=str,
)
def test_assigned_in_any_dtype(dtype):
    layer, kept = pruned(0), X56 > 0
    for assign in (lambda m: setattr(applied(layer), "mask", m), lambda m: setattr(layer, "weight_mask", m)):
        assign(kept.to(dtype))
        assert torch.equal(layer.weight != 0, kept) and applied(layer).mask.dtype == dtype
        assert torch.equal(applied(layer).kept, kept) and applied(layer).sparsity == (~kept).float().mean()
        layer.weight.sum().backward()
        layer.weight = torch.ones(5, 6)
        assert torch.equal(layer.weight, kept.float())


# ---- casts and loads -------------------------------------------------------------------------------------


@every_maker
def test_dtype_and_device_changes(kind):
    layer = prune_one(kind)
    kept = applied(layer).mask
    for change in (nn.Module.half, nn.Module.double, nn.Module.bfloat16, lambda m: m.to(torch.complex64)):
        assert torch.equal(applied(change(layer)).mask, kept) and applied(layer).mask.dtype == torch.bool
        assert torch.equal(layer.weight != 0, kept.expand(5, 6))
    if torch.cuda.is_available():
        layer.cuda()
        assert (
            layer.weight.is_cuda
            and applied(layer).mask.is_cuda
            and torch.equal(applied(layer).mask.cpu(), kept)
        )
    meta = copy.deepcopy(layer).to("meta")
    assert applied(meta).mask.is_meta and repr(applied(meta)).endswith(")")


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("swap", [False, True], ids=["set", "swap"])
def test_module_type_casts_every_buffer(dtype, swap):
    layer = pruned()
    kept, expected = applied(layer).mask, layer.weight.detach().to(dtype)
    torch.__future__.set_swap_module_params_on_conversion(swap)
    try:
        layer.type(dtype)
        assert (
            torch.equal(layer.weight, expected)
            and applied(layer).mask.dtype == layer.weight_mask.dtype == dtype
        )
        assert repr(applied(layer)) == "Pruning((5, 6), sparsity=0.5)"
        pruned(3, layer)
        assert applied(layer).mask.dtype == torch.bool and torch.equal(
            applied(layer).mask & kept, applied(layer).mask
        )
        layer.type(dtype)
        assert applied(layer).update_(layer.weight_orig).mask.dtype == torch.bool
    finally:
        torch.__future__.set_swap_module_params_on_conversion(False)


@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.half, torch.double], ids=str)
@pytest.mark.parametrize("assign", [False, True], ids=["copy", "assign"])
def test_loaded_from_any_dtype(dtype, assign):
    layer, source = pruned(), pruned(0.3)
    state = {key: value.to(dtype) if key == MASK else value for key, value in source.state_dict().items()}
    layer.load_state_dict(state, assign=assign)
    assert torch.equal(layer.weight, source.weight) and applied(layer).mask.dtype == (
        dtype if assign else torch.bool
    )


def test_a_row_mask_does_not_load_as_a_column_mask():
    row, column = torch.arange(8) % 3 > 0, torch.arange(8)[:, None] % 3 > 0
    source, target = (
        parametrize.register_parametrization(nn.Linear(8, 8), "weight", Pruning(m)) for m in (row, column)
    )
    before = Snapshot(target)
    with pytest.raises(RuntimeError, match=rf"size mismatch for {MASK}"):
        target.load_state_dict({MASK: source.state_dict()[MASK]}, strict=False)
    before.check()


def test_checkpoints_without_a_mask_are_torchs_missing_key():
    layer = pruned()
    with pytest.raises(RuntimeError, match=f'Missing key.*"{MASK}"'):
        layer.load_state_dict({key: value for key, value in layer.state_dict().items() if key != MASK})


# ---- copies, the meta device -----------------------------------------------------------------------------


@every_maker
def test_copies(kind):
    layer = prune_one(kind)
    pruning, twin = applied(layer), copy.deepcopy(layer)
    assert torch.equal(twin.weight, layer.weight) and applied(twin).mask.data_ptr() != pruning.mask.data_ptr()
    for again in (pickle.loads(pickle.dumps(pruning)), copy.copy(pruning)):
        assert (
            type(again) is type(pruning)
            and torch.equal(again(X56), pruning(X56))
            and repr(again) == repr(pruning)
        )
    if pruning.rules[0] is not None:
        applied(twin).update_(X56)
        assert torch.equal(applied(twin).mask, pickle.loads(pickle.dumps(pruning)).update_(X56).mask)


def model(device=None):
    """Layers pruned in every way, with masks of the current seed."""
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(64, 33), nn.ReLU(), nn.Linear(33, 8)).to(
        device
    )
    parametrize.register_parametrization(net[0], "weight", Pruning.structured(net[0].weight, 1, 2, 0))
    parametrize.register_parametrization(net[2], "weight", Pruning.random(net[2].weight, 0.5))
    parametrize.register_parametrization(net[2], "bias", PruningParametrization(net[2].bias))
    parametrize.register_parametrization(net[4], "weight", Pruning.magnitude(net[4].weight, 0.3))
    return net


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


# ---- averages --------------------------------------------------------------------------------------------


def test_averaging_masks_raises():
    net = pruned(0.2)
    average = AveragedModel(net, use_buffers=True)
    average.update_parameters(net)
    pruned(0.5, net)
    with pytest.raises(
        RuntimeError, match=r"^Subtraction, the `-` operator, with two bool tensors is not supported"
    ):
        average.update_parameters(net)
    plain = AveragedModel(net)
    plain.update_parameters(net), plain.update_parameters(net)
    assert torch.equal(plain.module.weight, net.weight)


@pytest.mark.parametrize(
    "ema", [{"multi_avg_fn": get_ema_multi_avg_fn(0.9)}, {"avg_fn": get_ema_avg_fn(0.9)}]
)
def test_a_moving_average_keeps_the_union(ema):
    net = pruned(0.2)
    average, union = AveragedModel(net, use_buffers=True, **ema), torch.zeros(5, 6, dtype=torch.bool)
    for change in (lambda: None, lambda: pruned(0.5, net), lambda: applied(net).update_(torch.randn(5, 6))):
        change()
        average.update_parameters(net)
        union |= applied(net).mask
        assert applied(average.module).mask.dtype == torch.bool and torch.equal(
            applied(average.module).mask, union
        )


@pytest.mark.parametrize("same", [True, False], ids=["one mask", "two masks"])
def test_a_mean_of_checkpoints_keeps_the_union(same):
    first = pruned()
    second = copy.deepcopy(first) if same else pruned()
    states = [net.state_dict() for net in (first, second)]
    mean = {key: sum(state[key] for state in states) / 2 for key in states[0]}
    net = pruned()
    net.load_state_dict(mean)
    assert torch.equal(applied(net).mask, applied(first).mask | applied(second).mask)


# ---- the sparsifiers of torch.ao.pruning edit the mask that they find ------------------------------------


SPARSIFIERS = {
    "tensor": lambda: WeightNormSparsifier(0.5, (1, 1), 1),
    "block": lambda: WeightNormSparsifier(0.5, (1, 4), 2),
    "everything": lambda: WeightNormSparsifier(1.0, (1, 4), 4),
    "diagonal": lambda: NearlyDiagonalSparsifier(5),
}


@pytest.mark.parametrize("kind", SPARSIFIERS)
def test_sparsifiers(kind):
    mine = nn.Sequential(nn.Linear(16, 16))
    tutorial = copy.deepcopy(mine)
    ours.random_unstructured(mine[0], "weight", 0.1)
    parametrize.register_parametrization(tutorial[0], "weight", EagerPruning(mine[0].weight_mask))
    for net in (mine, tutorial):
        sparsifier = SPARSIFIERS[kind]()
        sparsifier.prepare(net, [{"tensor_fqn": "0.weight"}])
        sparsifier.step()
        net(torch.ones(2, 16)).sum().backward()
        sparsifier.squash_mask()
    assert torch.equal(mine[0].weight, tutorial[0].weight) and (mine[0].weight == 0).sum() >= 64
    assert type(mine[0]) is nn.Linear and not hasattr(mine[0], "weight_mask")


def test_torchs_own_pruning_after_ours():
    layer = ours.remove(pruned(), "weight")
    prune.l1_unstructured(layer, "weight", 20)
    assert (layer.weight == 0).sum() == 20
