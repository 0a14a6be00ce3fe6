"""Pruning: how masks are chosen, the module on a layer, and update_."""

import pytest
import torch
from table import COMPLEX, REAL, bits, mask
from torch import nn
from torch.nn.utils import parametrize, prune

from fastparam import Pruning, PruningParametrization
from fastparam.functional import masked_prune, pack_mask
from fastparam.parametrizations import l1_unstructured

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


def applied(layer, name="weight") -> Pruning:
    return layer.parametrizations[name][-1]


# ---- masks -----------------------------------------------------------------------------------------------


def test_random_is_the_tutorials():
    X = torch.randn(300, 400)
    torch.manual_seed(5)
    ours = Pruning.random(X, p_drop=0.3)
    torch.manual_seed(5)
    assert torch.equal(ours.mask, torch.rand_like(X) > 0.3) and abs(ours.sparsity - 0.3) < 0.01
    torch.manual_seed(5)
    tutorial = PruningParametrization(X, 0.3)
    assert torch.equal(tutorial.mask, ours.mask) and isinstance(tutorial, Pruning)
    assert (
        abs(Pruning.random(X).sparsity - 0.2) < 0.01 and abs(PruningParametrization(X).sparsity - 0.2) < 0.01
    )
    generator = torch.Generator().manual_seed(9)
    first = Pruning.random(X, generator=generator).mask
    assert torch.equal(first, Pruning.random(X, generator=generator.manual_seed(9)).mask)
    assert not torch.equal(first, ours.mask)
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
    pruning = Pruning.magnitude(X, 0.3)
    assert torch.equal(pruning.mask, Pruning.magnitude(X.contiguous(), 0.3).mask)
    assert all(p.mask.is_contiguous() for p in (pruning, Pruning(X > 0), Pruning(mask((1, 3)).expand(4, 3))))


def test_within_composes_as_the_container_does():
    first = Pruning.magnitude(X56, 0.3)
    for second, again in [
        (
            Pruning.magnitude(first(X56), 0.5, within=first),
            lambda layer: prune.l1_unstructured(layer, "weight", 0.5),
        ),
        (
            Pruning.structured(first(X56), 1, 2, 0, within=first),
            lambda layer: prune.ln_structured(layer, "weight", 1, 2, 0),
        ),
    ]:
        layer = nn.Linear(6, 5)
        layer.weight = nn.Parameter(X56.clone())
        again(prune.l1_unstructured(layer, "weight", 0.3))
        assert torch.equal(second.mask, layer.weight_mask != 0) and not (second.mask & ~first.mask).any()
    both = Pruning.n_m(X56, 1, 2, within=first)
    assert not (both.mask & ~first.mask).any() and both.mask.view(5, 3, 2).sum(-1).max() == 1
    any_kept = first.mask.view(5, 3, 2).any(-1)
    assert torch.equal(both.mask.view(5, 3, 2).any(-1), any_kept), "dropped before counts as dropped"
    assert not (Pruning.random(X56, 0.5, within=first).mask & ~first.mask).any()


@pytest.mark.parametrize("shape", [(), (0,), (1,), (13,), (2, 3, 4)], ids=str)
def test_awkward_shapes(shape):
    X = torch.randn(shape)
    for pruning in (Pruning.random(X), Pruning.magnitude(X, 0.5), Pruning.from_mask(torch.ones(shape))):
        assert pruning.mask.shape == X.shape and pruning(X).shape == X.shape and 0 <= pruning.sparsity <= 1
        assert f"Pruning({tuple(shape)}, sparsity=" in repr(pruning)


def test_a_given_mask_is_copied():
    given = mask((5, 6))
    kinds = (
        given,
        given.float(),
        given.to(torch.uint8),
        given.to(torch.complex64),
        nn.Parameter(given.half()),
    )
    for given_kind in kinds:
        kept = Pruning(given_kind).mask
        assert kept.dtype == torch.bool and torch.equal(kept, given) and not kept.requires_grad
        assert kept.data_ptr() != given_kind.data_ptr()


# ---- on a layer ------------------------------------------------------------------------------------------


@every_maker
def test_registration_assignment_removal(kind, device):
    layer = prune_one(kind, device=device)
    pruning, raw = applied(layer), layer.parametrizations.weight.original
    assert torch.equal(layer.weight, torch.where(pruning.mask, raw, 0))
    W = torch.full((5, 6), -1.0, device=device)
    W[0, 0] = torch.nan
    pruning.mask = torch.ones_like(W, dtype=torch.bool).index_fill(0, torch.tensor([0], device=device), False)
    layer.weight = W
    assert layer.parametrizations.weight.original is raw
    assert torch.equal(layer.weight, torch.where(pruning.mask, W, 0))
    assert not torch.signbit(layer.weight[0]).any(), "pruned, as the tutorial says"
    assert pruning.right_inverse(W) is W
    value = layer.weight.detach().clone()
    parametrize.remove_parametrizations(layer, "weight")
    assert torch.equal(layer.weight, value) and layer.weight is raw


# ---- update_ ---------------------------------------------------------------------------------------------


def test_update():
    X = torch.randn(8, 12)
    for pruning, fresh in [
        (Pruning.magnitude(X, 0.4), lambda X: Pruning.magnitude(X, 0.4)),
        (Pruning.magnitude(X, 7), lambda X: Pruning.magnitude(X, 7)),
        (Pruning.structured(X, 3, 1, 1), lambda X: Pruning.structured(X, 3, 1, 1)),
        (Pruning.n_m(X), Pruning.n_m),
        (Pruning.random(X, 0.25), lambda X: Pruning.magnitude(X, 0.25)),
        (PruningParametrization(X, 0.25), lambda X: Pruning.magnitude(X, 0.25)),
        (
            Pruning.n_m(X, within=Pruning.magnitude(X, 9)),
            lambda X: Pruning.n_m(X, within=Pruning.magnitude(X, 9)),
        ),
    ]:
        for _ in range(3):
            Y, before = torch.randn(8, 12, requires_grad=True), pruning.mask
            assert pruning.update_(Y) is pruning and torch.equal(pruning.mask, fresh(Y).mask)
            assert pruning.mask is not before and not pruning.mask.requires_grad


def test_update_raises_the_amount():
    """Gradual pruning: the amount stays until it is changed. With several rules, it is that of the
    last one.
    """
    X = torch.randn(8, 12)
    pruning = Pruning.magnitude(X, 0.1)
    for amount in (0.25, 0.5, 30, 0.75):
        assert torch.equal(pruning.update_(X, amount=amount).mask, Pruning.magnitude(X, amount).mask)
        assert torch.equal(pruning.update_(X.flip(0)).mask, Pruning.magnitude(X.flip(0), amount).mask)
    rows = Pruning.structured(X, 1, 2, 0)
    assert torch.equal(rows.update_(X, 4).mask, Pruning.structured(X, 4, 2, 0).mask)
    first = Pruning.magnitude(X, 0.5)
    second = Pruning.magnitude(X, 0.5, within=first)
    second.update_(X, amount=0.25)
    assert torch.equal(second.mask, Pruning.magnitude(X, 0.25, within=first).mask)
    assert first.update_(X).sparsity == 0.5, "the rules of the earlier pruning are its own"


# ---- sparse gradients ------------------------------------------------------------------------------------

ROWS = torch.tensor([1, 2, 2, 5])
LOOKUPS = {
    "Embedding": lambda: nn.Embedding(6, 5, sparse=True),
    "EmbeddingBag": lambda: nn.EmbeddingBag(6, 5, sparse=True, mode="sum"),
}


@pytest.mark.parametrize("form", ["whole", "row", "packed"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.complex64], ids=str)
def test_gradients_of_embeddings_may_be_sparse(form, dtype):
    """Sparse gradients stay sparse, with +0 where a row is pruned, whatever the incoming gradient is."""
    keep = torch.arange(30).view(6, 5) % 3 > 0
    m = {"whole": keep, "row": keep[:1], "packed": pack_mask(keep)}[form]
    whole = keep if form != "row" else keep[:1].expand(6, 5)
    X = torch.randn(6, 5, dtype=dtype, requires_grad=True)
    G = torch.randn(4, 5, dtype=dtype)
    G[0] = G[3, ::2] = float("nan")
    G = torch.sparse_coo_tensor(ROWS[None], G, (6, 5), check_invariants=True).requires_grad_()
    (g,) = torch.autograd.grad(masked_prune(X, m), X, G, create_graph=True)
    assert g.layout is torch.sparse_coo
    with torch.no_grad():
        assert torch.equal(bits(g.to_dense()), bits(masked_prune(G.to_dense(), m)))
    (second,) = torch.autograd.grad(g.to_dense().sum().real, G)  # of a linear map
    assert torch.equal(second.to_dense() != 0, whole & (G.detach().to_dense() != 0))


def test_gradients_without_sparse_dimensions():
    """Dense gradients in a sparse layout, including that of a scalar."""
    for shape in ((4, 6), ()):
        X, keep = torch.randn(shape, requires_grad=True), torch.rand(shape) > 0.4
        for count in (0, 1, 2):
            values = torch.randn(count, *shape)
            G = torch.sparse_coo_tensor(torch.empty(0, count, dtype=torch.long), values, shape)
            (g,) = torch.autograd.grad(masked_prune(X, keep), X, G)
            torch.testing.assert_close(g.to_dense(), torch.where(keep, values.sum(0), 0))


@pytest.mark.parametrize("kind", LOOKUPS)
def test_sparse_training_steps(kind):
    """The steps are those of torch's pruning, with an optimizer for sparse gradients."""
    torch.manual_seed(0)
    ours, theirs = LOOKUPS[kind](), LOOKUPS[kind]()
    theirs.load_state_dict(ours.state_dict())
    l1_unstructured(ours, "weight", amount=0.5)
    prune.l1_unstructured(theirs, "weight", amount=0.5)
    for layer in (ours, theirs):
        optimizer = torch.optim.SparseAdam(layer.parameters(), lr=0.1)
        for _ in range(3):
            optimizer.zero_grad()
            layer(ROWS[None]).square().sum().backward()
            optimizer.step()
        layer(ROWS[None])  # torch's weight is that of the last forward pass
    assert ours.parametrizations.weight.original.grad.is_sparse
    torch.testing.assert_close(ours.weight, theirs.weight)
    assert int((ours.weight == 0).sum()) == 15
