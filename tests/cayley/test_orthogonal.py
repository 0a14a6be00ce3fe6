"""CayleyMap, SkewCayley and orthogonal: the modules they replace, their inverses, signs and checkpoints."""

import copy
import itertools

import pytest
import torch
from modules import defect, haar
from table import F64, REAL
from torch import nn
from torch.nn.utils import parametrizations as torchs
from torch.nn.utils import parametrize

import fastparam
from fastparam import CayleyMap, NotOrthogonalError, Skew, SkewCayley
from fastparam.parametrizations import orthogonal

ROUND_TRIP = {torch.float32: 1e-5, F64: 1e-12, torch.bfloat16: 0.05, torch.float16: 0.01}
SHAPES = [(5, 5), (7, 3), (3, 7), (2, 4, 4), (2, 3, 6, 2), (1, 1), (4, 1), (1, 4)]
every_shape = pytest.mark.parametrize("shape", SHAPES, ids=str)


class TutorialCayleyMap(nn.Module):
    def __init__(self, n):
        super().__init__()
        self.register_buffer("Id", torch.eye(n))

    def forward(self, X):
        return torch.linalg.solve(self.Id + X, self.Id - X)


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
    """The same keys both ways, and the identity is a buffer that follows dtype and device."""
    X = torch.randn(4, 4)
    theirs, ours = (
        register(holder(X.clone()), Skew(), TutorialCayleyMap(4)),
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
@pytest.mark.parametrize("trivialization", [True, False], ids=["base", "plain"])
@pytest.mark.parametrize("dtype", [torch.float32, F64, torch.complex128], ids=str)
def test_torchs_orthogonal(shape, trivialization, dtype):
    """Values, gradients, state_dict keys; checkpoints move both ways."""
    weight = torch.randn(shape, dtype=dtype)
    ours, theirs = holder(weight.clone()), holder(weight.clone())
    assert orthogonal(ours, "weight", "cayley", use_trivialization=trivialization) is ours
    torchs.orthogonal(theirs, "weight", "cayley", use_trivialization=trivialization)
    close = {"rtol": 1e-4, "atol": 1e-5} if dtype == torch.float32 else {}
    torch.testing.assert_close(ours.weight, theirs.weight, **close)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    assert [t.shape for t in ours.state_dict().values()] == [t.shape for t in theirs.state_dict().values()]
    with torch.no_grad():
        theirs.parametrizations.weight.original.add_(torch.randn(shape, dtype=dtype))
    for source, target in ((theirs, ours), (ours, theirs)):
        target.load_state_dict(source.state_dict())
        torch.testing.assert_close(ours.weight, theirs.weight, **close)
    G = torch.randn(shape, dtype=dtype)
    for layer in (ours, theirs):
        layer.weight.backward(G)
    a, b = (layer.parametrizations.weight.original.grad for layer in (ours, theirs))
    torch.testing.assert_close(a, b, **close)


@every_shape
def test_assigning_to_torchs_orthogonal(shape):
    """With trivialization every orthogonal matrix; without, what the map reaches: there are no signs in
    torch's state.
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


def test_orthogonal_without_trivialization_starts_from_the_raw_weight():
    for start in (torch.randn(4, 4), torch.eye(4), -torch.eye(4)):
        layer = orthogonal(holder(start.clone()), orthogonal_map="cayley", use_trivialization=False)
        theirs = torchs.orthogonal(holder(start.clone()), "weight", "cayley", use_trivialization=False)
        assert torch.equal(layer.parametrizations.weight.original, start)
        torch.testing.assert_close(layer.weight, theirs.weight)
    with pytest.raises(
        ValueError,
        match=r"^orthogonal: expected a matrix without an eigenvalue near -1, .* without signs=True$",
    ):
        layer.weight = -torch.eye(4)


@pytest.mark.parametrize("kind", ["cayley", "matrix_exp", "householder"])
@pytest.mark.parametrize("trivialization", [True, False], ids=["base", "plain"])
def test_orthogonal_on_a_tensor_that_is_parametrized(kind, trivialization):
    """The first value is the map of what the parametrizations before make of the raw tensor."""
    layer = fastparam.parametrizations.l1_unstructured(nn.Linear(4, 6), "weight", amount=0.5)
    before = layer.weight.detach().clone()
    orthogonal(layer, "weight", kind, use_trivialization=trivialization)
    plain = torchs.orthogonal(holder(before), "weight", kind, use_trivialization=False)
    expected = plain.parametrizations.weight[0](before)
    torch.testing.assert_close(layer.weight, expected)
    layer.weight.sum().backward()


def test_sentences_of_orthogonal():
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
            r"^orthogonal: expected a matrix of dtype torch.float32, as the weight is, got torch.float64$",
        ),
        (nan, r"^orthogonal: expected a finite matrix, got one with nan or inf$"),
    ):
        with pytest.raises(ValueError, match=sentence):
            layer.weight = W
        assert all(
            torch.equal(a, b) for a, b in zip(before.values(), layer.state_dict().values(), strict=True)
        )


def test_other_maps_and_errors_are_torchs():
    for kind, name in (("matrix_exp", "matrix_exp"), ("householder", "householder"), (None, "matrix_exp")):
        torch.manual_seed(0)
        ours = orthogonal(nn.Linear(4, 4), "weight", kind)
        torch.manual_seed(0)
        assert torch.equal(ours.weight, torchs.orthogonal(nn.Linear(4, 4), "weight", name).weight)
    for call in (
        lambda f: f(nn.Linear(3, 3), "nothing", "cayley"),
        lambda f: f(nn.Linear(3, 3), "bias", "cayley"),
        lambda f: f(nn.Linear(3, 3), "weight", "cayly"),
    ):
        with pytest.raises(ValueError) as ours:
            call(orthogonal)
        with pytest.raises(ValueError) as theirs:
            call(torchs.orthogonal)
        assert str(ours.value) == str(theirs.value)


# ---- inverses --------------------------------------------------------------------------------------------


def families(n):
    yield "Haar", haar(n, n)
    yield "identity", torch.eye(n, dtype=F64)
    yield "minus identity", -torch.eye(n, dtype=F64)
    yield "permutation", torch.eye(n, dtype=F64)[torch.randperm(n)]
    yield "cycle", torch.eye(n, dtype=F64).roll(1, 0)
    v = torch.randn(n, 1, dtype=F64)
    yield "reflection", torch.eye(n, dtype=F64) - 2 * v @ v.mT / (v * v).sum()
    B = haar(n, n)
    signs = torch.ones(n, dtype=F64)
    signs[: n // 2 * 2 : 2] = -1
    yield "eigenvalues 1 and -1", B @ torch.diag(signs) @ B.mT
    for angle in (
        torch.pi,
        torch.pi - 1e-4,
        torch.pi - 1e-8,
    ):  # blocks of rotations, by half a turn or nearly so
        D = torch.eye(n, dtype=F64)
        for i in range(0, n - 1, 2):
            c, s = torch.tensor(angle, dtype=F64).cos(), torch.tensor(angle, dtype=F64).sin()
            D[i : i + 2, i : i + 2] = torch.stack([torch.stack([c, -s]), torch.stack([s, c])])
        yield f"rotations by pi - {torch.pi - angle:.0e}", B @ D @ B.mT
    yield "Cayley of a large matrix", torch.ops.fastparam.skew_cayley(1e3 * torch.randn(n, n, dtype=F64))


@pytest.mark.parametrize("dtype", [torch.float32, F64], ids=str)
@pytest.mark.parametrize("n", [1, 2, 3, 5, 8, 16, 33, 64, 100, 256, 512])
def test_every_orthogonal_matrix_comes_back(n, dtype):
    for (name, Q), alpha, lower in zip(
        families(n), itertools.cycle([1.0, -0.5, -1.0, 2.0]), itertools.cycle([False, True, True])
    ):
        Q = Q.to(dtype)
        for made in (SkewCayley(alpha, lower), CayleyMap(alpha=alpha, signs=True)):
            with torch.no_grad():
                X = made.right_inverse(Q)
                back = made(X)
            assert X.dtype == dtype and X.isfinite().all()
            assert (back - Q).abs().max() <= ROUND_TRIP[dtype], (name, alpha)
            if isinstance(made, SkewCayley):
                assert ((X.triu() if lower else X.tril()) == 0).all()
            else:
                assert torch.equal(X, -X.mT)


@pytest.mark.parametrize("dtype", REAL, ids=str)
@pytest.mark.parametrize(
    "shape",
    [(7, 3), (3, 7), (64, 64), (100, 20), (3, 20, 8), (2, 8, 20), (4, 5, 5), (256, 255), (9, 1)],
    ids=str,
)
def test_assignment(shape, dtype):
    layer = register(holder(torch.randn(shape).to(dtype)), SkewCayley(-0.5, lower=True))
    for _ in range(4):
        Q = haar(*shape, dtype=dtype)
        layer.weight = Q
        assert (layer.weight - Q).abs().max() <= ROUND_TRIP[dtype]


def test_unitary_matrices_come_back():
    for shape in ((5, 5), (7, 3), (3, 7), (2, 6, 6)):
        Q = torch.linalg.qr(
            torch.randn(*shape[:-2], max(shape[-2:]), min(shape[-2:]), dtype=torch.complex128)
        ).Q
        Q = Q if shape[-2] >= shape[-1] else Q.mT
        layer = register(holder(torch.randn(shape, dtype=torch.complex128)), SkewCayley())
        layer.weight = Q
        torch.testing.assert_close(layer.weight.detach(), Q, rtol=0, atol=1e-12)


def test_an_orthogonal_weight_is_kept_on_registration():
    Q = haar(6, 6, dtype=torch.float32)
    for start in (Q, Q[:, :3].clone(), -Q):
        torch.testing.assert_close(
            register(holder(start.clone()), SkewCayley()).weight, start, rtol=0, atol=1e-5
        )
    X = torch.randn(6, 6)
    layer = register(holder(X.clone()), SkewCayley())
    assert torch.equal(layer.parametrizations.weight.original, X), "any other weight is the free parameter"


@pytest.mark.parametrize("lower", [torch.bfloat16, torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize("shape", [(32, 32), (40, 8), (8, 40)], ids=str)
def test_a_rotation_rounded_to_a_lower_dtype_is_kept_up_to_that_rounding(shape, lower):
    """Published in bfloat16, registered in float32; computed in float32, assigned to a layer in float64."""
    dtype = F64 if lower == torch.float32 else torch.float32
    Q = haar(*shape).to(lower).to(dtype)
    layer = register(holder(Q.clone()), SkewCayley())
    assert (layer.weight - Q).abs().max() <= 4 * torch.finfo(lower).eps and defect(
        layer.weight
    ) <= 100 * torch.finfo(dtype).eps
    layer = register(holder(torch.zeros(shape, dtype=dtype)), SkewCayley())
    layer.weight = Q
    assert (layer.weight - Q).abs().max() <= 4 * torch.finfo(lower).eps
    with pytest.raises(NotOrthogonalError):
        layer.weight = Q + 3 * torch.finfo(dtype).eps ** 0.5 * torch.randn(shape, dtype=dtype)


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


# ---- errors: a sentence, and nothing changed -------------------------------------------------------------


def failing():
    bad, nan = torch.eye(4) * 1.5, torch.eye(4)
    nan[1, 2] = float("nan")
    return {
        "scaled": (
            bad,
            r"expected a matrix with orthonormal rows and columns, got one with max \|Q\^T Q - I\| = 1.2$",
        ),
        "nan": (
            nan,
            r"expected a matrix with orthonormal rows and columns, got one with max \|Q\^T Q - I\| = nan$",
        ),
        "inf": (torch.full((4, 4), float("inf")), r"= (nan|inf)$"),
    }


@pytest.mark.parametrize("name", failing())
def test_what_is_not_orthogonal_is_refused(name):
    Q, sentence = failing()[name]
    for layer in (
        register(holder(torch.randn(4, 4)), SkewCayley()),
        register(holder(torch.randn(4, 4)), Skew(), CayleyMap()),
    ):
        if layer.parametrizations.weight[-1].with_signs:
            layer.weight = -torch.eye(4)
        before, state = layer.weight.clone(), copy.deepcopy(layer.state_dict())
        with pytest.raises(NotOrthogonalError, match=sentence) as e:
            layer.weight = Q
        assert isinstance(e.value, ValueError)
        assert torch.equal(layer.weight, before)
        assert all(
            torch.equal(a, b) for a, b in zip(state.values(), layer.state_dict().values(), strict=True)
        )


def test_tall_matrices_that_are_not_orthogonal():
    layer = register(nn.Linear(3, 5), SkewCayley())
    with pytest.raises(
        NotOrthogonalError, match=r"^SkewCayley: expected a matrix with orthonormal columns, got one with"
    ):
        layer.weight = torch.randn(5, 3)


@pytest.mark.parametrize(
    "made", [SkewCayley, lambda alpha: CayleyMap(alpha=alpha)], ids=["SkewCayley", "CayleyMap"]
)
def test_alpha_of_a_module(made):
    for alpha in (0, 0.0, float("nan"), float("inf")):
        with pytest.raises(
            ValueError, match=r"^(SkewCayley|CayleyMap): expected a finite alpha other than 0, got "
        ):
            made(alpha)
    for alpha in ("1", None, torch.ones(())):
        with pytest.raises(TypeError, match=r"^(SkewCayley|CayleyMap): expected alpha to be a number, got "):
            made(alpha)


def test_other_arguments_of_modules():
    for n in (0, -3):
        with pytest.raises(ValueError, match=f"^CayleyMap: expected n to be positive, got {n}$"):
            CayleyMap(n)
    for n in (2.0, "4", True):
        with pytest.raises(TypeError, match=f"^CayleyMap: expected n to be an int, got {type(n).__name__}$"):
            CayleyMap(n)
    for made in (SkewCayley, CayleyMap):
        with pytest.raises(
            TypeError, match=f"^{made.__name__}: expected signs to be True or False, got int$"
        ):
            made(signs=1)
    with pytest.raises(ValueError, match=r"^CayleyMap: expected A of order n = 3, got \(4, 4\)$"):
        CayleyMap(3)(torch.zeros(4, 4))
    with pytest.raises(TypeError, match=r"^SkewCayley: expected lower to be True or False, got int$"):
        SkewCayley(lower=1)
    with pytest.raises(ValueError, match=r"^CayleyMap: expected Q of shape \(\.\.\., n, n\), got \(3, 4\)$"):
        CayleyMap().right_inverse(torch.zeros(3, 4))
    with pytest.raises(ValueError, match=r"^SkewCayley: expected Q of shape \(\.\.\., n, k\), got \(3,\)$"):
        SkewCayley().right_inverse(torch.zeros(3))
    with pytest.raises(TypeError, match=r"^SkewCayley: expected Q to be a torch.Tensor, got list$"):
        SkewCayley().right_inverse([1.0])
    with pytest.raises(ValueError, match=r"^skew_cayley: expected X of shape \(\.\.\., n, n\), got \(3,\)$"):
        SkewCayley()(torch.zeros(3))
    for made in (SkewCayley(), CayleyMap(), Skew(), fastparam.Symmetric()):
        word = type(made).__name__ if "Cayley" in type(made).__name__ else type(made).__name__.lower()
        with pytest.raises(
            ValueError, match=rf"^{word}: expected \w of dtype float32, float64, .* or complex, got int64$"
        ):
            made.right_inverse(torch.ones(3, 3, dtype=torch.int64))
    assert "alpha=-0.5, lower=True" in repr(SkewCayley(-0.5, lower=True)) and "alpha=1.0" in repr(CayleyMap())
    assert repr(CayleyMap(4, signs=True)) == "CayleyMap(4, alpha=1.0, signs=True)" and "signs=False" in repr(
        SkewCayley(signs=False)
    )


def test_matrix_exponential():
    layer = register(nn.Linear(4, 4), Skew(), fastparam.MatrixExponential())
    assert defect(layer.weight) < 1e-5
    with pytest.raises(ValueError, match=r"^matrix_exp: expected X of shape"):
        fastparam.MatrixExponential()(torch.zeros(3, 4))
