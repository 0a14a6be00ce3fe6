"""Signs are a buffer that exists from registration on, and changes only if it cannot represent a
new weight.
"""

import copy

import pytest
import torch
from families import haar
from table import F64
from torch import nn
from torch.nn.utils import parametrize

import fastparam
from fastparam import CayleyMap, Skew, SkewCayley
from fastparam.functional import cayley, skew_cayley, stiefel_cayley

SHAPES = [(6, 6), (7, 3), (3, 7), (2, 4, 4), (2, 3, 6, 2)]


def layer_of(shape, *made, dtype=torch.float32):
    return layer_of_weight(torch.randn(shape, dtype=dtype), *made)


def layer_of_weight(weight, *made):
    layer = nn.Module()
    layer.weight = nn.Parameter(weight.clone())
    for module in made:
        parametrize.register_parametrization(layer, "weight", module)
    return layer


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_they_are_made_by_registration_of_the_dtype_and_for_the_smaller_side(shape):
    for dtype in (torch.float32, F64, torch.bfloat16, torch.complex64):
        module = SkewCayley()
        assert module.signs is None and module.state_dict() == {}
        layer_of(shape, module, dtype=dtype)
        assert torch.equal(module.signs, torch.ones((*shape[:-2], min(shape[-2:])), dtype=dtype))
    assert SkewCayley(signs=False).signs is None


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_what_is_negative_is_minus_one_and_all_else_one(shape):
    """An average of signs, or a zero, needs no special rule."""
    X = torch.randn(shape)
    wide, k = shape[-2] < shape[-1], min(shape[-2:])
    signs = torch.tensor([-2.0, -0.1, 0.0, 0.3, 5.0, float("nan")])[torch.arange(k) % 6].expand(
        *shape[:-2], k
    )
    D = torch.where(signs < 0, -1.0, 1.0)
    expected = stiefel_cayley(X) * D.unsqueeze(-1 if wide else -2)
    assert torch.equal(stiefel_cayley(X, signs=signs), expected)
    if shape[-2] == shape[-1]:
        assert torch.equal(skew_cayley(X, signs=signs), expected)
        A = X.triu(1) - X.triu(1).mT
        assert torch.equal(cayley(A, signs=signs), expected)
        assert torch.equal(skew_cayley(X.to(torch.complex64), signs=signs).real.sign(), expected.sign())


def test_signs_of_another_real_dtype():
    X = torch.randn(5, 5)
    signs = torch.tensor([1, -1, 1, -1, -1])
    for dtype in (torch.float32, F64, torch.bfloat16):
        for there in (torch.float32, F64, torch.bfloat16, torch.complex64):
            assert torch.equal(
                skew_cayley(X.to(dtype), signs=signs.to(there)), skew_cayley(X.to(dtype), signs=signs.to(F64))
            )


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_they_change_only_where_they_do_not_serve(shape):
    module = SkewCayley()
    layer = layer_of(shape, module)
    for _ in range(4):
        Q = haar(*shape, dtype=torch.float32, det=-1 if shape[-2] == shape[-1] else None)
        layer.weight = Q
        torch.testing.assert_close(layer.weight, Q, rtol=0, atol=1e-5)
        kept = module.signs
        layer.weight = layer.weight
        assert module.signs is kept, "the map's own output is reached with the signs that it was made with"
    with torch.no_grad():
        layer.parametrizations.weight.original.mul_(1.5)
    layer.weight = layer.weight.detach()
    assert module.signs is kept


def test_only_the_matrices_of_a_batch_that_need_others_get_them():
    module = SkewCayley()
    layer = layer_of((4, 5, 5), module)
    Q = torch.stack([skew_cayley(torch.randn(5, 5)) for _ in range(4)])
    Q[2] = haar(5, 5, dtype=torch.float32, det=-1)
    layer.weight = Q
    torch.testing.assert_close(layer.weight, Q, rtol=0, atol=1e-5)
    assert (module.signs[[0, 1, 3]] == 1).all() and (module.signs[2] < 0).any()


@pytest.mark.parametrize(
    "context", [torch.enable_grad, torch.no_grad, torch.inference_mode], ids=lambda c: c.__name__
)
def test_the_inverse_by_hand(context):
    """forward(right_inverse(Q)) is Q for any caller: with a parameter or the output of a network, and in any
    grad mode.
    """
    for Q in (
        nn.Parameter(haar(6, 6, dtype=torch.float32, det=-1)),
        -(torch.eye(6) * torch.ones(1, requires_grad=True)),
    ):
        for module in (SkewCayley(), SkewCayley(-0.5, lower=True), CayleyMap(signs=True)):
            with context():
                torch.testing.assert_close(module(module.right_inverse(Q)), Q, rtol=0, atol=1e-5)


@pytest.mark.parametrize("frozen", [True, False], ids=["frozen", "trained"])
@pytest.mark.parametrize("context", [torch.enable_grad, torch.no_grad], ids=lambda c: c.__name__)
def test_torchs_trial_of_a_second_parametrization_changes_nothing(frozen, context):
    class Double(nn.Module):
        def forward(self, X):
            return X

        def right_inverse(self, X):
            return X

    with context():
        first = SkewCayley()
        layer = layer_of((6, 6), first)
        layer.weight = haar(6, 6, dtype=torch.float32, det=-1)
        layer.requires_grad_(not frozen)
        weight, signs = layer.weight.clone(), first.signs
        parametrize.register_parametrization(layer, "weight", Double())
        assert first.signs is signs and torch.equal(layer.weight, weight)
        for module in (CayleyMap(), CayleyMap(signs=True)):
            X = 30 * torch.randn(6, 6)
            chain = layer_of((6, 6), Skew())
            with torch.no_grad():
                chain.weight = X
            parametrize.register_parametrization(chain, "weight", module)
            assert module.signs is None or (module.signs == 1).all()
            torch.testing.assert_close(chain.weight, skew_cayley(X))


def test_a_trial_where_the_weight_no_longer_tells_its_parameter():
    """At norms of 1e5 in float32, the weight may give other signs, but it stays the one that the free
    parameter gives.
    """
    chain = layer_of((6, 6), Skew())
    with torch.no_grad():
        chain.weight = 1e5 * torch.randn(6, 6)
    module = CayleyMap(signs=True)
    parametrize.register_parametrization(chain, "weight", module)
    D = torch.where(module.signs < 0, -1.0, 1.0)
    torch.testing.assert_close(chain.weight, skew_cayley(chain.parametrizations.weight.original) * D)


@pytest.mark.parametrize("dtype", [torch.float32, F64, torch.bfloat16, torch.complex64], ids=str)
def test_a_matrix_near_the_reach_of_the_present_signs_gets_others(dtype):
    """-I, turned by eps / 8, would need X = 8 / eps with the present signs, which no gradient would move."""
    tiny = torch.finfo(dtype).eps / 8
    Q = torch.tensor([[-1, -tiny], [tiny, -1]], dtype=dtype)
    for made in (SkewCayley(), SkewCayley(-0.5), CayleyMap(signs=True)):
        X = made.right_inverse(Q)
        assert X.abs().max() <= 2 and torch.equal(made(X), Q)


def test_without_signs_a_matrix_beyond_the_map_is_refused_in_a_sentence():
    """The ValueError is not one that registration swallows, which would use the matrix as the free
    parameter.
    """
    Q = haar(6, 6, dtype=torch.float32, det=-1)
    sentence = (
        r": expected a matrix without an eigenvalue near -1, which .* does not reach without signs=True$"
    )
    for made in (SkewCayley(signs=False), CayleyMap()):
        with pytest.raises(ValueError, match=type(made).__name__ + sentence) as e:
            made.right_inverse(Q)
        assert not isinstance(e.value, NotImplementedError)
    layer = nn.Linear(6, 6)
    layer.weight = nn.Parameter(Q.clone())
    with pytest.raises(ValueError, match=sentence):
        parametrize.register_parametrization(layer, "weight", SkewCayley(signs=False))
    assert torch.equal(layer.weight, Q) and not parametrize.is_parametrized(layer)


@pytest.mark.parametrize("shape", [(6, 6), (7, 3)], ids=str)
def test_a_matrix_of_another_shape_dtype_or_device_is_refused_before_they_are_written(shape):
    module = SkewCayley()
    layer = layer_of(shape, module)
    layer.weight = haar(*shape, dtype=torch.float32)
    signs, weight = module.signs.clone(), layer.weight.clone()
    other = haar(shape[0] + 1, shape[1] + 1, dtype=torch.float32)
    for Q, sentence in (
        (
            other,
            rf"^SkewCayley: expected Q of shape \(n, k\) with min\(n, k\) = {shape[1]}, as the weight has, "
            rf"got \({shape[0] + 1}, {shape[1] + 1}\); an instance belongs to one weight, "
            r"and another one needs its own$",
        ),
        (haar(*shape), r"^SkewCayley: expected Q of dtype float32, as its signs are, got float64$"),
        (
            haar(*shape, dtype=torch.float32).to("meta"),
            r"^SkewCayley: expected Q on cpu, as its signs are, got meta$",
        ),
    ):
        with pytest.raises(ValueError, match=sentence):
            layer.weight = Q
        assert torch.equal(module.signs, signs) and torch.equal(layer.weight, weight)
    with pytest.raises(ValueError, match=r"^CayleyMap: expected Q of order n = 4, got \(5, 5\)$"):
        layer_of((4, 4), Skew(), CayleyMap(4)).weight = torch.eye(5)


def test_reset_parameters():
    module = SkewCayley()
    layer = layer_of((4, 4), module)
    layer.weight = -torch.eye(4)
    assert (module.signs < 0).all()
    module.reset_parameters()
    assert torch.equal(module.signs, torch.ones(4))
    identity = CayleyMap(4)
    identity.Id.fill_(7)
    identity.reset_parameters()
    assert torch.equal(identity.Id, torch.eye(4))
    SkewCayley().reset_parameters()


def test_a_copy_and_a_cast_take_them_along():
    module = SkewCayley()
    layer = layer_of((4, 4), module)
    layer.weight = -torch.eye(4)
    twin = copy.deepcopy(layer)
    assert torch.equal(twin.parametrizations.weight[0].signs, module.signs)
    for dtype in (F64, torch.bfloat16, torch.float16):
        twin.to(dtype)
        assert twin.parametrizations.weight[0].signs.dtype == dtype
        torch.testing.assert_close(twin.weight, -torch.eye(4, dtype=dtype))


# ---- as an argument of the functions ---------------------------------------------------------------------


@pytest.mark.parametrize("word", ["cayley", "skew_cayley", "stiefel_cayley"])
def test_sentences_of_the_argument(word):
    f = {"cayley": cayley, "skew_cayley": skew_cayley, "stiefel_cayley": stiefel_cayley}[word]
    X = torch.zeros(2, 3, 3)
    for signs, sentence in (
        (torch.ones(3), rf"^{word}: expected signs of shape \(2, 3\), got \(3,\)$"),
        (torch.ones(2, 4), rf"^{word}: expected signs of shape \(2, 3\), got \(2, 4\)$"),
        (torch.ones(2, 3, 3), rf"^{word}: expected signs of shape \(2, 3\), got \(2, 3, 3\)$"),
        (torch.ones(2, 3, dtype=torch.int64), rf"^{word}: expected signs of dtype float32, .*, got int64$"),
        (torch.ones(2, 3, device="meta"), rf"^{word}: expected signs on cpu, got meta$"),
        (torch.ones(2, 3).to_sparse(), rf"^{word}: expected signs to be a strided tensor, got a sparse one$"),
    ):
        with pytest.raises(ValueError, match=sentence):
            f(X, signs=signs)
    with pytest.raises(TypeError, match=rf"^{word}: expected signs to be a torch.Tensor, got list$"):
        f(X, signs=[1.0])


def test_a_matrix_whose_parameter_overflows_is_refused_before_they_are_written():
    for dtype, alpha in (
        (torch.float16, 1e-7),
        (torch.float32, 1e-41),
        (torch.float16, 1e30),  # X underflows
        (torch.float32, 1e50),
        (torch.float64, 1e-308),
        (torch.float64, 5e-324),
    ):
        layer = nn.Linear(3, 3, dtype=dtype)
        nn.init.eye_(layer.weight)
        parametrize.register_parametrization(layer, "weight", fastparam.SkewCayley(alpha=alpha))
        before = {name: t.clone() for name, t in layer.state_dict().items()}
        Q = fastparam.functional.skew_cayley(torch.arange(9.0).view(3, 3)).to(dtype)
        with pytest.raises(ValueError, match="SkewCayley: expected an alpha for which float"):
            layer.weight = Q
        assert all(torch.equal(t, before[name]) for name, t in layer.state_dict().items())


@pytest.mark.parametrize("kind", ["SkewCayley", "orthogonal"])
def test_a_layer_assigned_to_in_inference_mode_trains_on(kind):
    layer = nn.Linear(4, 4)
    if kind == "orthogonal":
        fastparam.parametrizations.orthogonal(layer, orthogonal_map="cayley")
    else:
        parametrize.register_parametrization(layer, "weight", fastparam.SkewCayley())
    with torch.inference_mode():
        layer.weight = -torch.eye(4)
    layer(torch.ones(1, 4)).sum().backward()
    assert torch.equal(layer.weight, -torch.eye(4))


@pytest.mark.parametrize("shape", [(5, 5), (300, 300), (300, 5)], ids=str)
def test_the_default_device_need_not_be_that_of_the_weight(shape):
    """As where the default device is a GPU, and a layer is still on the CPU."""
    Q, P = (haar(*shape, dtype=torch.float32) for _ in range(2))
    made = CayleyMap(shape[1], signs=True)
    with torch.device("meta"):
        layer = layer_of_weight(Q, SkewCayley())
        torch.testing.assert_close(layer.weight, Q, rtol=0, atol=1e-5)
        layer.weight = P
        made.reset_parameters()
    torch.testing.assert_close(layer.weight, P, rtol=0, atol=1e-5)
    assert torch.equal(made.Id, torch.eye(shape[1]))


@pytest.mark.parametrize("shape", [(4, 4), (6, 4), (4, 6)], ids=str)
def test_a_matrix_on_another_device_changes_no_base(shape):
    layer = fastparam.parametrizations.orthogonal(nn.Linear(*shape), orthogonal_map="cayley")
    before = {name: t.clone() for name, t in layer.state_dict().items()}
    with pytest.raises(ValueError, match="orthogonal: expected a matrix on cpu, as its base is, got meta"):
        layer.weight = torch.empty(layer.weight.shape, device="meta")
    assert all(torch.equal(t, before[name]) for name, t in layer.state_dict().items())


# ---- blocks of rows --------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(12, 4), (2, 15, 3), (6, 5), (0, 4), (3, 0)], ids=str)
def test_every_block_is_mapped_by_itself(shape):
    """The results are bit for bit those of a separate layer, and each block is assigned like one."""
    layer = layer_of(shape, SkewCayley(-0.5, True, blocks=3))
    module, X = layer.parametrizations.weight[0], layer.parametrizations.weight.original
    alone = SkewCayley(-0.5, True)
    parts = X.detach().unflatten(-2, (3, shape[-2] // 3))
    assert module.signs.shape == (*shape[:-2], 3, min(parts.shape[-2:]))
    assert torch.equal(layer.weight, alone(parts).flatten(-3, -2)) and layer.weight.is_contiguous()
    Q = haar(*parts.shape, dtype=torch.float32).flatten(-3, -2)
    layer.weight = Q
    torch.testing.assert_close(layer.weight.detach(), Q, rtol=0, atol=1e-5)
    assert X.shape == layer.parametrizations.weight.original.shape == shape


@pytest.mark.parametrize("kind", [nn.GRU, nn.LSTM])
def test_gates_of_recurrent_nets(kind):
    layer, gates = kind(3, 4), 3 if kind is nn.GRU else 4
    parametrize.register_parametrization(layer, "weight_hh_l0", SkewCayley(blocks=gates))
    plain = kind(3, 4)
    plain.load_state_dict({key: getattr(layer, key).detach() for key in plain.state_dict()})
    Y, Z = (f(torch.ones(5, 3))[0] for f in (layer, plain))
    torch.testing.assert_close(Y, Z, rtol=0, atol=0)
    optimizer, before = torch.optim.Adam(layer.parameters(), lr=0.1), layer.weight_hh_l0.detach()
    Y.square().sum().backward()
    optimizer.step()
    W = layer.weight_hh_l0.detach().unflatten(0, (gates, 4))
    assert not torch.equal(W.flatten(0, 1), before)
    torch.testing.assert_close(W.mT @ W, torch.eye(4).expand_as(W))
