"""CayleyMap, SkewCayley and orthogonal: the modules that they replace, and their checkpoints."""

import copy

import pytest
import torch
from families import haar
from orthogonality import defect
from table import F64, REAL
from torch import nn
from torch.nn.utils import parametrizations as torchs
from torch.nn.utils import parametrize
from tutorial import EagerCayleyMap

import fastparam
from fastparam import CayleyMap, Skew, SkewCayley
from fastparam.parametrizations import orthogonal

SHAPES = [(5, 5), (7, 3), (3, 7), (2, 4, 4), (2, 3, 6, 2), (1, 1), (4, 1), (1, 4)]
every_shape = pytest.mark.parametrize("shape", SHAPES, ids=str)


def holder(weight):
    module = nn.Module()
    module.weight = nn.Parameter(weight)
    return module


def register(layer, *maps):
    for module in maps:
        parametrize.register_parametrization(layer, "weight", module)
    return layer


# ---- the tutorial's map ----------------------------------------------------------------------------------


def test_the_tutorials_map_and_its_checkpoints():
    """The keys are the same in both directions, and the identity is a buffer that follows dtype and
    device.
    """
    X = torch.randn(4, 4)
    theirs, ours = (
        register(holder(X.clone()), Skew(), EagerCayleyMap(4)),
        register(holder(X.clone()), Skew(), CayleyMap(4)),
    )
    assert list(ours.state_dict()) == list(theirs.state_dict())
    for source, target in ((theirs, ours), (ours, theirs)):
        with torch.no_grad():
            source.parametrizations.weight.original.normal_()
        target.load_state_dict(source.state_dict())
        torch.testing.assert_close(ours.weight, theirs.weight)
    ours.weight.square().sum().backward(), theirs.weight.square().sum().backward()
    ours.double()
    assert ours.parametrizations.weight[1].Id.dtype == F64
    assert list(register(holder(X), Skew(), CayleyMap()).state_dict()) == ["parametrizations.weight.original"]


def test_fused_is_the_chain_of_two():
    X = torch.randn(3, 6, 6)
    fused, chain = register(holder(X.clone()), SkewCayley()), register(holder(X.clone()), Skew(), CayleyMap())
    torch.testing.assert_close(fused.weight, chain.weight)
    G = torch.randn(3, 6, 6)
    for layer in (fused, chain):
        layer.weight.backward(G)
    a, b = (layer.parametrizations.weight.original.grad for layer in (fused, chain))
    torch.testing.assert_close(a, b)


@every_shape
@pytest.mark.parametrize("dtype", (*REAL, torch.complex64, torch.complex128), ids=str)
def test_the_weight_is_orthogonal(shape, dtype):
    layer = register(holder(torch.randn(shape).to(dtype)), SkewCayley())
    assert layer.weight.dtype == dtype and layer.weight.is_contiguous()
    assert defect(layer.weight) < 40 * torch.finfo(dtype).eps


# ---- torch's orthogonal ----------------------------------------------------------------------------------


@every_shape
@pytest.mark.parametrize("kind", ["cayley", "matrix_exp", "householder", None])
@pytest.mark.parametrize("trivialization", [True, False], ids=["base", "plain"])
@pytest.mark.parametrize("dtype", [torch.float32, F64, torch.complex128], ids=str)
def test_torchs_orthogonal(shape, kind, trivialization, dtype):
    """Values, gradients and keys of the state_dict agree, and checkpoints move in both directions."""
    if dtype.is_complex and kind == "householder":
        return
    weight = torch.randn(shape, dtype=dtype)
    ours, theirs = holder(weight.clone()), holder(weight.clone())
    assert orthogonal(ours, "weight", kind, use_trivialization=trivialization) is ours
    torchs.orthogonal(theirs, "weight", kind, use_trivialization=trivialization)
    close = {"rtol": 1e-4, "atol": 1e-5} if dtype == torch.float32 else {}
    torch.testing.assert_close(ours.weight, theirs.weight, **close)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    assert [t.shape for t in ours.state_dict().values()] == [t.shape for t in theirs.state_dict().values()]
    assert ours.weight.is_contiguous() and all(t.is_contiguous() for t in ours.state_dict().values())
    noise = torch.randn(shape, dtype=dtype)
    if kind == "householder" or (kind is None and not dtype.is_complex and shape[-2] != shape[-1]):
        noise.diagonal(dim1=-2, dim2=-1).zero_()  # signs
    with torch.no_grad():
        theirs.parametrizations.weight.original.add_(noise)
    for source, target in ((theirs, ours), (ours, theirs)):
        target.load_state_dict(source.state_dict())
        torch.testing.assert_close(ours.weight, theirs.weight, **close)
    G = torch.randn(shape, dtype=dtype)
    for layer in (ours, theirs):
        layer.weight.backward(G)
    a, b = (layer.parametrizations.weight.original.grad for layer in (ours, theirs))
    torch.testing.assert_close(a, b, **close)


@every_shape
@pytest.mark.parametrize("kind", ["matrix_exp", "householder"])
def test_what_torchs_own_maps_cannot_do(shape, kind):
    """Half types, the meta device, weights that have decayed, and bases that safetensors accepts."""
    for dtype in (torch.bfloat16, torch.float16):
        layer = orthogonal(holder(torch.randn(shape).to(dtype)), "weight", kind)
        assert layer.weight.dtype == dtype and defect(layer.weight) < 40 * torch.finfo(dtype).eps
    with torch.device("meta"):
        layer = orthogonal(holder(torch.randn(shape)), "weight", kind)
    assert layer.weight.shape == shape and "parametrizations.weight.0.base" in layer.state_dict()
    for trivialization in (True, False):
        layer = orthogonal(holder(torch.randn(shape)), "weight", kind, use_trivialization=trivialization)
        optimiser = torch.optim.AdamW(layer.parameters(), lr=0.01, weight_decay=0.1)
        goal = haar(*shape, dtype=torch.float32)
        for _ in range(200):
            optimiser.zero_grad()
            (layer.weight - goal).square().sum().backward()
            optimiser.step()
        assert defect(layer.weight) < 1e-4
        with torch.autocast("cpu"):
            assert defect(layer.weight) < 1e-4


@every_shape
def test_assigning_to_torchs_orthogonal(shape):
    """With trivialization, every orthogonal matrix can be assigned. Without it, only matrices that the map
    can produce can be assigned, because torch's state has no signs.
    """
    Q = haar(*shape, dtype=torch.float32)
    reached = torch.ops.fastparam.stiefel_cayley(torch.randn(shape), -0.5, True)
    for trivialization, W in ((True, Q), (True, reached), (False, reached)):
        layer = orthogonal(
            holder(torch.randn(shape)), orthogonal_map="cayley", use_trivialization=trivialization
        )
        layer.weight = W
        torch.testing.assert_close(layer.weight, W, rtol=0, atol=1e-5)
        assert layer.weight.is_contiguous() and all(buffer.is_contiguous() for buffer in layer.buffers())
    base = orthogonal(holder(Q.clone()), orthogonal_map="cayley").parametrizations.weight[0].base
    again = orthogonal(holder(Q.clone()), orthogonal_map="cayley").parametrizations.weight[0].base
    assert torch.equal(base, again) and defect(base) < 1e-5, "completed without random numbers"


@pytest.mark.parametrize("size", [1e38, 1e30, 1e-30, 1e-42])
def test_a_huge_or_tiny_weight_is_made_orthogonal(size):
    """The norm of its columns, or the square of that norm, is not representable in its dtype."""
    X = (torch.randn(5, 3).double() * size).clamp(-3e38, 3e38).float()
    layer = orthogonal(holder(X.clone()), orthogonal_map="cayley")
    assert defect(layer.weight) < 1e-5
    base = torch.linalg.qr(X.double())
    expected = base.Q * base.R.diagonal().sign()
    torch.testing.assert_close(layer.weight.double(), expected, rtol=0, atol=1e-4)


def test_orthogonal_without_trivialization_starts_from_the_raw_weight():
    for start in (torch.randn(4, 4), torch.eye(4), -torch.eye(4)):
        layer = orthogonal(holder(start.clone()), orthogonal_map="cayley", use_trivialization=False)
        theirs = torchs.orthogonal(holder(start.clone()), "weight", "cayley", use_trivialization=False)
        assert torch.equal(layer.parametrizations.weight.original, start)
        torch.testing.assert_close(layer.weight, theirs.weight)
    with pytest.raises(
        ValueError,
        match=r"^orthogonal: expected a matrix without an eigenvalue near -1, "
        r"which .* does not reach without use_trivialization=True$",
    ):
        layer.weight = -torch.eye(4)


@pytest.mark.parametrize("kind", ["cayley", "matrix_exp", "householder", None])
@pytest.mark.parametrize("trivialization", [True, False], ids=["base", "plain"])
def test_orthogonal_on_a_tensor_that_is_parametrized(kind, trivialization):
    """The first value is the map of the result that the previous parametrizations compute from the raw
    tensor.
    """
    layer = fastparam.parametrizations.l1_unstructured(nn.Linear(4, 6), "weight", amount=0.5)
    before = layer.weight.detach().clone()
    orthogonal(layer, "weight", kind, use_trivialization=trivialization)
    plain = torchs.orthogonal(holder(before.clone()), "weight", kind, use_trivialization=False)
    signs = before.clone()
    signs.diagonal().copy_(torch.where(before.diagonal() < 0, -1.0, 1.0))  # as torch's householder reads them
    expected = plain.parametrizations.weight[0](before if kind in ("cayley", "matrix_exp") else signs)
    torch.testing.assert_close(layer.weight, expected)
    layer.weight.sum().backward()


@pytest.mark.parametrize(
    "verb", [orthogonal, fastparam.parametrizations.skew, fastparam.parametrizations.symmetric]
)
def test_what_is_no_module(verb):
    for thing, given in ((None, "NoneType"), (torch.eye(3), "Tensor"), (nn.Linear, "the class Linear")):
        sentence = f"^{verb.__name__}: expected module to be a torch.nn.Module, got {given}$"
        with pytest.raises(TypeError, match=sentence):
            verb(thing)
    with pytest.raises(TypeError, match=rf"^{verb.__name__}: expected name to be a str, got bool$"):
        verb(nn.Linear(3, 3), True)
    sentence = rf"^{verb.__name__}: expected weight to have a shape, got an uninitialized tensor$"
    with pytest.raises(ValueError, match=sentence):
        verb(nn.LazyLinear(3))


def test_sentences_of_orthogonal():
    for trivialization in ("yes", 1, None):
        with pytest.raises(TypeError, match=r"^orthogonal: expected use_trivialization to be True or False"):
            orthogonal(nn.Linear(3, 3), use_trivialization=trivialization)
    layer = orthogonal(holder(torch.randn(4, 4)), orthogonal_map="cayley")
    before = copy.deepcopy(layer.state_dict())
    nan = torch.full((4, 4), float("nan"))
    for W, sentence in (
        (
            torch.randn(9, 9),
            r"^orthogonal: expected a matrix or batch of matrices of shape \(4, 4\), got \(9, 9\)$",
        ),
        (
            torch.eye(4).double(),
            r"^orthogonal: expected a matrix of dtype float32, as its base is, got float64$",
        ),
        (nan, r"^orthogonal: expected a finite matrix, got one with nan or inf$"),
    ):
        with pytest.raises(ValueError, match=sentence):
            layer.weight = W
        assert all(
            torch.equal(a, b) for a, b in zip(before.values(), layer.state_dict().values(), strict=True)
        )


def test_maps_without_a_base():
    """The logarithm of a square matrix, and the reflections of a finite one, are found."""
    for dtype in (torch.float32, F64, torch.complex64):
        layer = orthogonal(
            holder(torch.randn(4, 4, dtype=dtype)), "weight", "matrix_exp", use_trivialization=False
        )
        raw = layer.parametrizations.weight.original.detach().clone()
        Q = haar(2, 4, 4, dtype=dtype, det=None if dtype.is_complex else 1)[0]
        layer.weight = Q
        torch.testing.assert_close(layer.weight, Q, rtol=0, atol=1e-5)
        assert not torch.equal(layer.parametrizations.weight.original, raw)
        for W, sentence in (
            (Q[:2], r"^orthogonal: expected a matrix or batch of matrices of shape \(4, 4\), got \(2, 4\)$"),
            (2 * Q, r"^orthogonal: expected a matrix with orthonormal rows and columns, got one with max"),
        ):
            with pytest.raises(ValueError, match=sentence):
                layer.weight = W
    with pytest.raises(
        ValueError, match=r"-1, which the exponential does not reach without use_trivialization"
    ):
        orthogonal(nn.Linear(2, 2), "weight", "matrix_exp", use_trivialization=False).weight = torch.eye(
            2
        ).flip(0)
    layer = orthogonal(nn.Linear(4, 6), "weight", "matrix_exp", use_trivialization=False)
    with pytest.raises(
        NotImplementedError, match=r"weight that is not square cannot be assigned to without use_"
    ):
        layer.weight = torch.eye(6, 4)
    layer = orthogonal(nn.Linear(4, 6), "weight", "householder", use_trivialization=False)
    with pytest.raises(ValueError, match=r"^orthogonal: expected a finite matrix, got one with nan or inf$"):
        layer.weight = torch.full((6, 4), float("nan"))
    for Q in (haar(6, 4, dtype=torch.float32), torch.eye(6, 4), -torch.eye(6, 4)):
        layer.weight = Q
        torch.testing.assert_close(layer.weight, Q)


@pytest.mark.parametrize("kind", ["cayley", "matrix_exp", "householder"])
def test_an_orthogonal_square_weight_is_kept_bit_for_bit(kind):
    for dtype, n in ((torch.float32, 4), (torch.float32, 64), (torch.bfloat16, 64), (torch.complex64, 5)):
        if dtype.is_complex and kind == "householder":
            continue
        Q, P = (haar(n, n, dtype=torch.complex128 if dtype.is_complex else F64).to(dtype) for _ in range(2))
        layer = orthogonal(holder(Q.clone()), "weight", kind)
        assert torch.equal(layer.weight, Q)
        layer.weight = P
        assert torch.equal(layer.weight, P)
        layer.weight = torch.randn(n, n).to(dtype)  # the nearest in QR's sense
        assert defect(layer.weight) < 40 * torch.finfo(dtype).eps


@pytest.mark.parametrize("kind", ["cayley", "matrix_exp", "householder"])
def test_on_a_parametrized_tensor_in_inference_mode(kind):
    layer = fastparam.parametrizations.l1_unstructured(nn.Linear(4, 6), "weight", amount=0.3)
    with torch.inference_mode():
        orthogonal(layer, "weight", kind)
    layer.weight.sum().backward()
    assert layer.parametrizations.weight.original.grad is not None


def test_what_is_refused_before_any_change():
    for kind in ("cayley", "matrix_exp", "householder"):
        for trivialization in (True, False):
            layer = nn.Module()
            layer.register_buffer("weight", torch.eye(3).int())
            with pytest.raises(ValueError, match=r"^orthogonal: expected weight of dtype .*, got int32$"):
                orthogonal(layer, "weight", kind, use_trivialization=trivialization)
            assert not parametrize.is_parametrized(layer)
    for kind in ("cayley", "householder"):
        layer = orthogonal(nn.Linear(4, 6), "weight", kind, use_trivialization=False)
        for shape in ((3, 3), (1, 6, 4)):
            with pytest.raises(
                ValueError, match=r"^orthogonal: expected a matrix or batch .* shape \(6, 4\)"
            ):
                layer.weight = torch.eye(3).expand(shape) if shape == (3, 3) else torch.zeros(shape)
    with pytest.raises(ValueError, match=r"^orthogonal: expected a real matrix, got one of dtype complex64$"):
        layer.weight = torch.eye(6, 4) + 0j
    with torch.device("meta"):
        made = orthogonal(nn.Linear(4, 6), "weight", "householder", use_trivialization=False)
    assert made.weight.shape == (6, 4)


def test_errors_are_torchs():
    for call in (
        lambda f: f(nn.Linear(3, 3, dtype=torch.complex64), "weight", "householder"),
        lambda f: f(nn.Linear(3, 3), "nothing", "cayley"),
        lambda f: f(nn.Linear(3, 3), "bias", "cayley"),
        lambda f: f(nn.Linear(3, 3), "weight", "cayly"),
    ):
        with pytest.raises(ValueError) as ours:
            call(orthogonal)
        with pytest.raises(ValueError) as theirs:
            call(torchs.orthogonal)
        assert str(ours.value) == str(theirs.value)


# ---- training ---------------------------------------------------------------------------------------------


def test_training_keeps_the_constraint_and_the_signs():
    layer = register(nn.Linear(6, 6), SkewCayley())
    layer.weight = torch.eye(6)[[1, 0, 2, 3, 4, 5]]
    optimiser = torch.optim.Adam(layer.parameters(), lr=0.05)
    x, y = torch.randn(32, 6), torch.randn(32, 6)
    losses = []
    for _ in range(40):
        optimiser.zero_grad()
        loss = (layer(x) - y).square().mean()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] and defect(layer.weight) < 1e-5 and layer.weight.det() < 0


def test_matrix_exponential():
    layer = register(nn.Linear(4, 4), Skew(), fastparam.MatrixExponential())
    assert defect(layer.weight) < 1e-5
    for dtype in (torch.bfloat16, torch.float16):  # torch's own makes them NaN
        torch.testing.assert_close(
            copy.deepcopy(layer).to(dtype).weight,
            layer.weight.to(dtype),
            rtol=0,
            atol=4 * torch.finfo(dtype).eps,
        )
    with pytest.raises(ValueError, match=r"^matrix_exp: expected A of shape"):
        fastparam.MatrixExponential()(torch.zeros(3, 4))
