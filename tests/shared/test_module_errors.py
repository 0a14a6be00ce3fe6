"""A registration or an assignment that fails leaves the layer exactly as it was."""

import copy
import re
from functools import partial

import numpy
import pytest
import torch
from modules import every_form
from table import every_module
from torch import nn
from torch.nn.utils import parametrize

import fastparam


class Snapshot:
    """Everything that an error could have changed: values, identities, attributes, the class."""

    def __init__(self, layer):
        self.layer, self.type = layer, type(layer)
        self.tensors = dict([*layer.named_parameters(), *layer.named_buffers()])
        self.values = {name: t.detach().clone() for name, t in self.tensors.items()}
        self.about = {
            name: (t.data_ptr(), t.shape, t.stride(), t.dtype, t._version, t.requires_grad)
            for name, t in self.tensors.items()
        }
        self.attributes = set(vars(layer)) | set(layer._modules)
        self.repr = repr(layer)

    def check(self):
        now = dict([*self.layer.named_parameters(), *self.layer.named_buffers()])
        assert list(now) == list(self.tensors)
        for name, t in now.items():
            assert t is self.tensors[name], f"{name} is another object"
            assert torch.equal(t, self.values[name]), f"{name} has other values"
            assert (t.data_ptr(), t.shape, t.stride(), t.dtype, t._version, t.requires_grad) == self.about[
                name
            ]
        assert type(self.layer) is self.type and repr(self.layer) == self.repr
        assert set(vars(self.layer)) | set(self.layer._modules) == self.attributes


def refused(layer, action, sentence, kind=ValueError):
    before = Snapshot(layer)
    with pytest.raises(kind) as e:
        action()
    assert type(e.value) is kind and str(e.value) == sentence
    before.check()


def shape_sentence(kind, shape):
    return f"{kind.word}: expected X of shape (..., n, n), got {shape}"


def dtype_sentence(kind, dtype):
    return f"{kind.word}: expected X of dtype float32, float64, bfloat16, float16 or complex, got {dtype}"


WRONG_LAYERS = {
    "(3, 4)": lambda: nn.Linear(4, 3),
    "(4, 3)": lambda: nn.Linear(3, 4),
    "(2, 3, 3, 1)": lambda: nn.Conv2d(3, 2, (3, 1)),
    "(5,)": lambda: nn.BatchNorm1d(5),
    "(1, 0)": lambda: nn.Embedding(1, 0),
}


@every_module
@pytest.mark.parametrize("shape", [*WRONG_LAYERS])
@pytest.mark.parametrize("unsafe", [False, True], ids=["safe", "unsafe"])
def test_registration_on_a_wrong_shape(kind, shape, unsafe):
    layer = WRONG_LAYERS[shape]()
    module = kind.ours()
    refused(
        layer,
        lambda: parametrize.register_parametrization(layer, "weight", module, unsafe=unsafe),
        shape_sentence(kind, shape),
    )
    assert not hasattr(layer, "parametrizations") and not parametrize.is_parametrized(layer)
    if layer.weight.numel():  # it still works
        layer.weight.sum().backward()


@every_module
@pytest.mark.parametrize("dtype", [torch.int64, torch.bool, torch.uint8], ids=str)
def test_registration_on_a_wrong_dtype(kind, dtype):
    layer = nn.Linear(3, 3)
    layer.register_buffer("mask", torch.ones(3, 3, dtype=dtype))
    sentence = dtype_sentence(kind, str(dtype).removeprefix("torch."))
    refused(layer, lambda: parametrize.register_parametrization(layer, "mask", kind.ours()), sentence)
    assert not hasattr(layer, "parametrizations")


@every_module
@pytest.mark.parametrize("name", ["bias", "in_features", "nothing"])
def test_registration_on_what_is_no_matrix(kind, name):
    layer = nn.Linear(3, 3)
    before = Snapshot(layer)
    with pytest.raises(ValueError):
        parametrize.register_parametrization(layer, name, kind.ours())
    before.check()


@every_module
def test_registration_after_another(kind):
    """The first parametrization stays when the second one is refused."""

    class Flat(nn.Module):
        def forward(self, X):
            return X.flatten()

        def right_inverse(self, X):
            return X.view(3, 3)

    layer = nn.Linear(3, 3)
    parametrize.register_parametrization(layer, "weight", Flat(), unsafe=True)
    with pytest.raises(ValueError, match=re.escape(shape_sentence(kind, "(9,)"))):
        parametrize.register_parametrization(layer, "weight", kind.ours())
    assert len(layer.parametrizations.weight) == 1 and layer.weight.shape == (9,)


@every_module
@pytest.mark.parametrize("shape", [(3, 4), (4,), (2, 4, 3), (), (1, 0)], ids=str)
def test_assignment_of_a_wrong_shape(kind, shape):
    layer = parametrize.register_parametrization(nn.Linear(4, 4), "weight", kind.ours())
    written = str(tuple(shape))
    for value in (
        torch.randn(shape),
        torch.randn(shape, requires_grad=True),
        torch.randn(shape, device="meta"),
        torch.ones(shape).long(),
    ):
        refused(layer, lambda: setattr(layer, "weight", value), shape_sentence(kind, written))  # noqa: B023
    weight = layer.weight.detach().clone()
    layer.weight = weight
    assert torch.equal(layer.weight, weight)


@every_module
def test_assignment_of_a_wrong_dtype(kind):
    layer = parametrize.register_parametrization(nn.Linear(4, 4), "weight", kind.ours())
    for dtype in (torch.int64, torch.bool, torch.uint8, torch.float8_e4m3fn):
        sentence = dtype_sentence(kind, str(dtype).removeprefix("torch."))
        refused(layer, partial(setattr, layer, "weight", torch.zeros(4, 4, dtype=dtype)), sentence)
    before = Snapshot(layer)
    with pytest.raises(ValueError, match="dtype"):  # torch's own check of the result of the inverse
        layer.weight = torch.randn(4, 4, dtype=torch.float64)
    before.check()


@every_module
@pytest.mark.parametrize(
    "value", ["text", None, 1.0, [[1.0]], numpy.eye(4, dtype=numpy.float32)], ids=lambda v: type(v).__name__
)
def test_assignment_of_what_is_no_tensor(kind, value):
    layer = parametrize.register_parametrization(nn.Linear(4, 4), "weight", kind.ours())
    sentence = f"{kind.word}: expected X to be a torch.Tensor, got {type(value).__name__}"
    refused(layer, lambda: setattr(layer, "weight", value), sentence, TypeError)


@every_module
def test_direct_calls(kind):
    module = kind.ours()
    for f in (module, module.right_inverse):
        for X, sentence in [
            (torch.randn(3, 4), shape_sentence(kind, "(3, 4)")),
            (torch.randn(3), shape_sentence(kind, "(3,)")),
            (torch.randn(3, 4, device="meta"), shape_sentence(kind, "(3, 4)")),
            (torch.ones(3, 3, dtype=torch.int32), dtype_sentence(kind, "int32")),
            (torch.ones(3, 4, dtype=torch.int32), shape_sentence(kind, "(3, 4)")),
        ]:
            with pytest.raises(ValueError, match=f"^{re.escape(sentence)}$"):
                f(X)
        with pytest.raises(TypeError, match=f"^{kind.word}: expected X to be a torch.Tensor, got str$"):
            f("text")


@every_module
def test_concatenated_assignment(kind):
    """If a later inverse of the chain fails, nothing of the chain is written."""

    class Narrow(nn.Module):
        def forward(self, X):
            return X

        def right_inverse(self, X):
            return X[:-1]

    layer = parametrize.register_parametrization(nn.Linear(4, 4), "weight", kind.ours())
    parametrize.register_parametrization(layer, "weight", Narrow(), unsafe=True)
    refused(layer, lambda: setattr(layer, "weight", torch.randn(4, 4)), shape_sentence(kind, "(3, 4)"))


def test_flag():
    for module, name in ((fastparam.Skew, "Skew"), (fastparam.Symmetric, "Symmetric")):
        with pytest.raises(TypeError, match=f"^{name}: expected lower to be True or False, got int$"):
            module(lower=1)


@every_module
def test_state_dict_of_another_shape(kind):
    """The error is torch's own. Values and identities are unchanged."""
    layer = parametrize.register_parametrization(nn.Linear(4, 4), "weight", kind.ours())
    other = parametrize.register_parametrization(nn.Linear(5, 5), "weight", kind.ours())
    before = Snapshot(layer)
    with pytest.raises(RuntimeError, match=r"size mismatch for parametrizations\.weight\.original"):
        layer.load_state_dict(copy.deepcopy(other).state_dict())
    before.check()


# ---- every form of the table of modules ------------------------------------------------------------------

ODD = {
    "sparse": lambda X: X.to_sparse(),
    "sparse rows": lambda X: X.to_sparse_csr(),
    "mkldnn": lambda X: X.to_mkldnn(),
    "nested": lambda X: torch.nested.nested_tensor([X, X]),
    "quantized": lambda X: torch.quantize_per_tensor(X, 0.1, 0, torch.qint8),
    "integers": lambda X: X.long(),
    "float8": lambda X: X.to(torch.float8_e4m3fn),
    "numpy": lambda X: X.numpy(),
    "a class": lambda X: torch.Tensor,
    "uninitialized": lambda X: nn.UninitializedBuffer(),
    "None": lambda X: None,
    "text": lambda X: "text",
}


def in_one_sentence(layer, action):
    before = Snapshot(layer)
    with pytest.raises((ValueError, TypeError), match=r"^\w+: expected [^\n]*, got [^\n]*$"):
        action()
    before.check()


@every_form
@pytest.mark.parametrize("odd", ODD)
def test_odd_tensors(form, odd):
    """Calls, inverses and assignments refuse them in one sentence, and nothing is changed."""
    layer, X = form.assigned(), ODD[odd](torch.randn(form.shape))
    for module in layer.parametrizations.weight:
        in_one_sentence(layer, lambda module=module: module(X))
        if hasattr(module, "right_inverse"):
            in_one_sentence(layer, lambda module=module: module.right_inverse(X))
    if form.image is not None and odd != "uninitialized":  # torch itself refuses to set buffers
        in_one_sentence(layer, lambda: setattr(layer, "weight", X))


@every_form
def test_no_matrix(form):
    """A scalar, a vector, and the tensor that a sharding library leaves in place of a weight."""
    for shape in ((), (4,), (0,)):
        layer, X = form.assigned(), torch.randn(shape)
        if "row" not in form.name or shape != (4,):  # a row mask fits a vector
            in_one_sentence(layer, lambda: layer.parametrizations.weight[-1](X))  # noqa: B023
            if form.image is not None:
                in_one_sentence(layer, lambda: setattr(layer, "weight", X))  # noqa: B023


@pytest.mark.parametrize(
    "module", [fastparam.Symmetric(), fastparam.Skew(), fastparam.SkewCayley(signs=False)], ids=repr
)
def test_an_assignment_of_another_shape_where_no_buffer_tells_it(module):
    """The assignment changes the shape of the weight, as for any parametrization of torch."""
    layer = nn.Linear(4, 4)
    nn.init.zeros_(layer.weight)
    parametrize.register_parametrization(layer, "weight", module, unsafe=True)
    layer.weight = module(torch.ones(3, 3))
    assert torch.equal(layer.weight, module(torch.ones(3, 3)))


@pytest.mark.parametrize(
    ("module", "shape", "Q", "expected"),
    [
        (fastparam.SkewCayley(), (4, 4), torch.eye(3), "(n, k) with min(n, k) = 4"),
        (fastparam.SkewCayley(), (3, 5), torch.eye(7)[:4], "(n, k) with min(n, k) = 3"),
        (fastparam.SkewCayley(), (2, 4, 4), torch.eye(4), "(2, n, k) with min(n, k) = 4"),
        (fastparam.SkewCayley(blocks=3), (12, 4), torch.eye(9), "(3 n, k) with min(n, k) = 4"),
        (fastparam.SkewCayley(blocks=3), (2, 12, 4), torch.eye(9), "(2, 3 n, k) with min(n, k) = 4"),
        (fastparam.CayleyMap(signs=True), (4, 4), torch.eye(3), "(n, k) with min(n, k) = 4"),
        (fastparam.SkewExponential(), (4, 4), torch.eye(3), "(n, k) with min(n, k) = 4"),
    ],
    ids=str,
)
def test_an_assignment_of_another_shape_where_a_buffer_tells_it(module, shape, Q, expected):
    layer = nn.Module()
    layer.weight = nn.Parameter(torch.eye(shape[-2], shape[-1]).expand(shape).clone())
    parametrize.register_parametrization(layer, "weight", module, unsafe=True)
    layer.weight = module(torch.zeros(shape))
    before = Snapshot(layer)
    with pytest.raises(ValueError) as error:
        layer.weight = Q
    assert str(error.value) == (
        f"{type(module).__name__}: expected Q of shape {expected}, as the weight has, got {tuple(Q.shape)}; "
        "an instance belongs to one weight, and another one needs its own"
    )
    before.check()
