"""Wrong input of the functions and modules of the Cayley map is refused in one sentence, and nothing is
changed.
"""

import copy
import re

import pytest
import torch
from table import ops
from test_orthogonal import holder, register
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

import fastparam
from fastparam import _C, CayleyMap, NotOrthogonalError, Skew, SkewCayley, functional


def entries(word):
    return (getattr(ops, word), getattr(functional, word), getattr(_C, word))


@pytest.mark.parametrize("alpha", [float("nan"), float("inf"), float("-inf")], ids=str)
def test_alpha_must_be_finite(alpha, device):
    G = torch.randn(3, 3, device=device)
    for word, X in (
        ("cayley", G),
        ("skew_cayley", G),
        ("skew_cayley_packed", G),
        ("stiefel_cayley", G[:, :2]),
    ):
        for f in entries(word):
            for x in (X, X.to("meta"), X.clone().requires_grad_()):
                with pytest.raises(ValueError, match=f"^{word}: expected a finite alpha, got -?(nan|inf)$"):
                    f(x, alpha)
        if word != "stiefel_cayley":
            with pytest.raises(
                ValueError, match=f"^{word}_backward: expected a finite alpha, got -?(nan|inf)$"
            ):
                getattr(ops, f"{word}_backward")(G, G, alpha)


@pytest.mark.parametrize("alpha", ["1", None, [1.0], 1j], ids=repr)
def test_alpha_must_be_a_number(alpha):
    X = torch.randn(3, 3)
    for word in ("cayley", "skew_cayley", "skew_cayley_packed", "stiefel_cayley"):
        with pytest.raises(
            TypeError, match=f"^{word}: expected alpha to be a number, got {type(alpha).__name__}$"
        ):
            getattr(functional, word)(X, alpha)


@pytest.mark.parametrize("shape", [(2,), (3, 4), (5, 7), ()], ids=str)
def test_a_packed_vector_has_a_triangular_number_of_entries(shape, device):
    sentence = r"^skew_cayley_packed: expected v of shape \(\.\.\., n \(n - 1\) / 2\), got \("
    v = torch.randn(shape, device=device)
    for f in entries("skew_cayley_packed"):
        for x in (v, v.to("meta"), v.clone().requires_grad_()):
            with pytest.raises(ValueError, match=sentence):
                f(x)
        with FakeTensorMode() as mode, pytest.raises(ValueError, match=sentence):
            f(mode.from_tensor(v))


def test_other_sentences(device):
    X = torch.randn(3, device=device)
    for f in entries("stiefel_cayley"):
        with pytest.raises(
            ValueError, match=r"^stiefel_cayley: expected X of shape \(\.\.\., n, k\), got \(3,\)$"
        ):
            f(X)
        with pytest.raises(ValueError, match=r"^stiefel_cayley: expected X of dtype float32.* got int64$"):
            f(torch.ones(3, 2, dtype=torch.int64, device=device))
    for f in entries("skew_cayley_packed"):
        with pytest.raises(
            ValueError, match=r"^skew_cayley_packed: expected v of dtype float32.* got int64$"
        ):
            f(torch.ones(3, dtype=torch.int64, device=device))
    for word in ("skew_cayley", "stiefel_cayley"):
        with pytest.raises(TypeError, match=f"^{word}: expected lower to be True or False, got int$"):
            getattr(functional, word)(torch.randn(3, 3), 1.0, 1)
    G, Q = torch.randn(2, 3, 3, device=device), torch.randn(3, 3, device=device)
    for word in ("cayley_backward", "skew_cayley_backward", "skew_cayley_packed_backward"):
        f = getattr(ops, word)
        with pytest.raises(
            ValueError, match=rf"^{word}: expected G to have the shape of Q, \(3, 3\), got \(2, 3, 3\)$"
        ):
            f(G, Q)
        with pytest.raises(
            ValueError, match=rf"^{word}: expected G to have the dtype of Q, float32, got float64$"
        ):
            f(G[0].double(), Q)
        with pytest.raises(
            ValueError, match=rf"^{word}: expected G on the same device as Q \(.*\), got meta$"
        ):
            f(G[0].to("meta"), Q)
        with pytest.raises(
            ValueError, match=f"^{word}: expected G to be a strided tensor, got a sparse one$"
        ):
            f(G[0].to_sparse(), Q)
    for shape, wanted in (((3, 3), (3, 3)), ((2, 3, 4), (2, 4, 4)), ((2, 4, 3), (2, 4, 4))):
        with pytest.raises(
            ValueError, match=f"^trivialized_cayley: expected base of shape {re.escape(str(wanted))}, got "
        ):
            ops.trivialized_cayley(torch.randn(shape, device=device), torch.randn(4, 5, device=device))
    X = torch.randn(3, 3, device=device)
    for base, sentence in (
        (X.to(torch.complex64), "expected base to be real, as X is, got complex64"),
        (X.int(), "expected base of dtype float32.* got int32"),
        (X.to_sparse(), "expected base to be a strided tensor, got a sparse one"),
        (X.to("meta"), r"expected base on the same device as X \(.*\), got meta"),
    ):
        with pytest.raises(ValueError, match=f"^trivialized_cayley: {sentence}"):
            ops.trivialized_cayley(X, base)
    word = "trivialized_cayley_backward"
    for position, name in ((0, "G"), (1, "base"), (3, "M")):
        like = [Q] * 4
        like[position] = G
        sentence = rf"^{word}: expected {name} to have the shape of Q, \(3, 3\), got \(2, 3, 3\)$"
        with pytest.raises(ValueError, match=sentence):
            getattr(ops, word)(*like)
    with pytest.raises(ValueError, match=rf"^{word}: expected Q of shape \(\.\.\., n, n\), got \(4, 3\)$"):
        getattr(ops, word)(*[torch.randn(4, 3, device=device)] * 4)


# ---- modules ---------------------------------------------------------------------------------------------


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
            r"expected a matrix with orthonormal rows and columns, got one with nan or inf$",
        ),
        "inf": (torch.full((4, 4), float("inf")), r"got one with nan or inf$"),
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
        NotOrthogonalError,
        match=r"expected a matrix with orthonormal columns \(rows, if it is wide\), got",
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
    for blocks, error, word in (
        (0, ValueError, "positive, got 0"),
        (2.0, TypeError, "an int, got float"),
        (True, TypeError, "an int, got bool"),
    ):
        with pytest.raises(error, match=f"^SkewCayley: expected blocks to be {word}$"):
            SkewCayley(blocks=blocks)
    three = SkewCayley(blocks=3)
    for f, argument in ((three, "X"), (three.right_inverse, "Q")):
        for shape, words, reason in (
            ((7, 4), "3 n, k) for blocks=3", ", and 7 is not divisible by 3"),
            ((3,), "n, k)", ""),
        ):
            sentence = f"SkewCayley: expected {argument} of shape (..., {words}, got {shape}{reason}"
            with pytest.raises(ValueError, match=f"^{re.escape(sentence)}$"):
                f(torch.zeros(shape))
    for made in (SkewCayley(), CayleyMap(), Skew(), fastparam.Symmetric()):
        word = type(made).__name__ if "Cayley" in type(made).__name__ else type(made).__name__.lower()
        with pytest.raises(
            ValueError, match=rf"^{word}: expected \w of dtype float32, float64, .* or complex, got int64$"
        ):
            made.right_inverse(torch.ones(3, 3, dtype=torch.int64))
    assert "alpha=-0.5, lower=True" in repr(SkewCayley(-0.5, lower=True)) and "alpha=1.0" in repr(CayleyMap())
    assert repr(three) == "SkewCayley(alpha=1.0, blocks=3)"
    raw = fastparam.parametrizations.orthogonal(
        torch.nn.Linear(4, 4), orthogonal_map="cayley", use_trivialization=False
    )
    assert repr(raw.parametrizations.weight[0]) == "SkewCayley(alpha=-0.5, lower=True, signs=False)"
    assert repr(CayleyMap(4, signs=True)) == "CayleyMap(4, alpha=1.0, signs=True)" and "signs=False" in repr(
        SkewCayley(signs=False)
    )
