"""Wrong input raises an error of one sentence, from every caller, before any work. Warnings appear once per
process.
"""

import functools
import inspect
import re

import numpy
import pytest
import torch
from table import CASES, every_square, python
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx

import fastparam
from fastparam import _C

SHAPES = [(3, 4), (4, 3), (3,), (), (2, 3, 4), (1, 0), (0, 1), (2, 3, 1), (100, 99), (0, 3, 4)]
TYPES = [
    torch.int64,
    torch.int32,
    torch.int16,
    torch.int8,
    torch.uint8,
    torch.bool,
    torch.float8_e4m3fn,
    torch.float8_e5m2,
    torch.uint16,
]


def written(shape):
    return f"({', '.join(map(str, shape))}{',' if len(shape) == 1 else ''})"


def shape_sentence(case, shape):
    return f"{case.word}: expected {case.argument} of shape (..., n, n), got {written(shape)}"


def dtype_sentence(case, dtype):
    name, dtypes = str(dtype).removeprefix("torch."), "float32, float64, bfloat16, float16 or complex"
    return f"{case.word}: expected {case.argument} of dtype {dtypes}, got {name}"


def check(sentence, f, kind=ValueError):
    with pytest.raises(kind) as e:
        f()
    assert type(e.value) is kind
    assert str(e.value) == sentence


def callers(case):
    """Every way to call the op, as functions of the tensors."""
    functions = [
        case.op,
        getattr(torch.ops.fastparam, case.word),
        getattr(torch.ops.fastparam, case.word).default,
    ]
    functions += [case.public, getattr(_C, case.word)] if case.public else []
    return [case.bind(f) for f in functions]


def tensors(X, case):
    """As many tensors as the op takes."""
    return (X,) * case.tensors


@every_square
@pytest.mark.parametrize("shape", SHAPES, ids=written)
def test_shape(case, shape, device):
    sentence = shape_sentence(case, shape)
    for f in callers(case):
        X = torch.randn(shape, device=device)
        for x in (
            X,
            X.clone().requires_grad_(),
            X.to(torch.complex64),
            X.half(),
            X.long(),
            X.to("meta"),
            X.to("meta").requires_grad_(),
        ):
            check(sentence, lambda: f(*tensors(x, case)))  # noqa: B023
        with torch.no_grad(), torch.inference_mode():
            check(sentence, lambda: f(*tensors(X.clone(), case)))  # noqa: B023
        with FakeTensorMode() as mode:
            check(sentence, lambda: f(*tensors(mode.from_tensor(X), case)))  # noqa: B023


@every_square
@pytest.mark.parametrize("dtype", TYPES, ids=str)
def test_dtype(case, dtype, device):
    sentence = dtype_sentence(case, dtype)
    X = torch.zeros(3, 3, dtype=dtype, device=device)
    for f in callers(case):
        for x in (X, X.to("meta"), X.expand(2, 3, 3), X[:0, :0]):
            check(sentence, lambda: f(*tensors(x, case)))  # noqa: B023
        with FakeTensorMode() as mode:
            check(sentence, lambda: f(*tensors(mode.from_tensor(X), case)))  # noqa: B023


@every_square
@pytest.mark.parametrize("transform", ["vmap", "grad", "jvp", "jacrev"])
def test_under_transforms(case, transform):
    """Under vmap, the sentence may count the batch as the first dimension."""
    f = case.bind(case.entry)
    X = tuple(torch.randn(5, 3, 4) for _ in range(case.tensors))
    run = {
        "vmap": lambda: torch.vmap(f)(*X),
        "grad": lambda: torch.func.grad(lambda *t: f(*t).sum())(*X),
        "jvp": lambda: torch.func.jvp(f, X, X),
        "jacrev": lambda: torch.func.jacrev(f)(*X),
    }[transform]
    with pytest.raises(
        ValueError,
        match=f"^{re.escape(shape_sentence(case, (5, 3, 4)))}$|{re.escape(shape_sentence(case, (3, 4)))}$",
    ):
        run()


@pytest.mark.slow
@every_square
@pytest.mark.usefixtures("dynamo")
@pytest.mark.parametrize("wrong", ["shape", "dimensions", "dtype"])
def test_under_compile_and_tracing(case, wrong):
    X = {
        "shape": torch.randn(3, 4),
        "dimensions": torch.randn(3),
        "dtype": torch.ones(3, 3, dtype=torch.int64),
    }[wrong]
    sentence = dtype_sentence(case, X.dtype) if wrong == "dtype" else shape_sentence(case, X.shape)
    f, ts = case.bind(case.entry), tensors(X, case)
    with pytest.raises(Exception, match=re.escape(sentence)):
        torch.compile(f, fullgraph=True, backend="aot_eager")(*ts)
    with pytest.raises(ValueError, match=re.escape(sentence)):
        make_fx(f, tracing_mode="fake")(*ts)


@pytest.mark.usefixtures("dynamo")
def test_compiled_for_any_size_still_checks():
    """A graph compiled for independent sizes is not used for a matrix that is not square."""
    f = torch.compile(fastparam.functional.skew, fullgraph=True, dynamic=True, backend="aot_eager")
    f(torch.randn(4, 4))
    with pytest.raises(Exception, match=re.escape("skew: expected X of shape (..., n, n), got (")):
        f(torch.randn(4, 5))


@pytest.mark.parametrize(
    "thing",
    ["text", None, 1.5, [[1.0]], numpy.eye(3), torch.float32, object, torch.Tensor, torch.nn.Parameter],
    ids=repr,
)
def test_not_a_tensor(thing):
    for case in CASES:
        if case.public:
            given = f"the class {thing.__name__}" if isinstance(thing, type) else type(thing).__name__
            sentence = f"{case.word}: expected {case.argument} to be a torch.Tensor, got {given}"
            given = (*tensors(thing, case), *case.arguments(torch.ones(3, 3)))
            check(sentence, functools.partial(case.public, *given), TypeError)


@pytest.mark.parametrize("flag", ["yes", 1, 0, None, 1.0, numpy.int64(1), torch.tensor(True)], ids=repr)
def test_flag(flag):
    for word in ("skew", "symmetric"):
        f = getattr(fastparam.functional, word)
        sentence = f"{word}: expected lower to be True or False, got {type(flag).__name__}"
        check(sentence, lambda: f(torch.ones(3, 3), flag), TypeError)  # noqa: B023
        check(sentence, lambda: f(torch.ones(3, 4), lower=flag), TypeError)  # noqa: B023
    for module in (
        fastparam.Skew,
        fastparam.Symmetric,
        fastparam.SkewExponential,
        fastparam.PositiveDefinite,
    ):
        sentence = f"{module.__name__}: expected lower to be True or False, got {type(flag).__name__}"
        check(sentence, lambda: module(flag), TypeError)  # noqa: B023


def test_numbers_of_numpy_are_numbers():
    X = torch.randn(3, 3)
    for word in (
        "skew",
        "symmetric",
        "skew_cayley",
        "stiefel_cayley",
        "skew_exp",
        "symmetric_exp",
        "stiefel_exp",
    ):
        f = getattr(fastparam.functional, word)
        assert torch.equal(f(X, lower=numpy.bool_(True)), f(X, lower=True))
        assert torch.equal(f(X, lower=numpy.bool_(False)), f(X))
    for alpha in (numpy.float32(0.5), numpy.float64(0.5), numpy.float16(0.5), numpy.int64(2)):
        for word in ("cayley", "skew_cayley", "stiefel_cayley", "cayley_inverse"):
            f = getattr(fastparam.functional, word)
            assert torch.equal(f(X, alpha), f(X, float(alpha)))
        assert type(fastparam.SkewCayley(alpha).alpha) is float
    assert torch.equal(
        fastparam.functional.skew_cayley_packed(X[0], numpy.float32(0.5)),
        fastparam.functional.skew_cayley_packed(X[0], 0.5),
    )
    assert (
        fastparam.CayleyMap(numpy.int64(3)).n == 3
        and fastparam.SkewCayley(lower=numpy.bool_(True)).lower is True
    )
    fastparam.PruningParametrization(X, numpy.float32(0.5)), fastparam.Pruning.random(X, numpy.float64(0.5))
    (
        fastparam.Pruning.magnitude(X, numpy.float64(0.5)),
        fastparam.Pruning.n_m(torch.randn(4, 4), numpy.int64(2), numpy.int32(4)),
    )
    packed = fastparam.functional.pack_mask(torch.ones(2, 3, dtype=torch.bool))
    assert fastparam.functional.unpack_mask(packed, (numpy.int64(2), numpy.int32(3))).all()


def takes_alpha():
    functional = fastparam.functional
    functions = {name: getattr(functional, name) for name in functional.__all__}
    return {
        name: f for name, f in functions.items() if callable(f) and "alpha" in inspect.signature(f).parameters
    }


@pytest.mark.parametrize("name", sorted(takes_alpha()))
def test_alpha_is_no_tensor(name):
    """Its gradient would be lost without an error."""
    f, X = takes_alpha()[name], torch.zeros(1 if name == "skew_cayley_packed" else (2, 2))
    sentence = f"{name}: expected alpha to be a number, got a tensor, which would get no gradient"
    for alpha in (torch.tensor(0.5, requires_grad=True), torch.tensor(0.5), torch.tensor([0.5])):
        check(sentence, lambda alpha=alpha: f(X, alpha=alpha), TypeError)
        check(sentence, lambda alpha=alpha: f(X.requires_grad_(), alpha), TypeError)
        check(sentence, lambda alpha=alpha: torch.vmap(f, (0, None))(X[None], alpha), TypeError)


def test_every_function_that_takes_alpha_is_tested():
    expected = {"cayley", "cayley_inverse", "skew_cayley", "skew_cayley_packed", "stiefel_cayley"}
    assert set(takes_alpha()) >= expected


@pytest.mark.parametrize("module", [fastparam.SkewCayley, fastparam.CayleyMap])
def test_alpha_of_a_module_is_no_tensor(module):
    sentence = "expected alpha to be a number, got a tensor, which would get no gradient"
    alpha = torch.tensor(0.5, requires_grad=True)
    check(f"{module.__name__}: {sentence}", lambda: module(alpha=alpha), TypeError)


def test_flag_under_vmap():
    with pytest.raises(TypeError, match=r"^skew: expected lower to be True or False, got Tensor$"):
        torch.vmap(lambda low: fastparam.functional.skew(torch.ones(3, 3), low))(torch.tensor([True, False]))


def test_both_wrong_names_the_tensor():
    check(
        "skew: expected X to be a torch.Tensor, got str",
        lambda: fastparam.functional.skew("text", "yes"),
        TypeError,
    )


@every_square
def test_nothing_is_left_behind(case):
    """After an error the op works as before, including gradients."""
    X = case.inputs()
    f = case.bind(case.entry)
    with pytest.raises(ValueError):
        f(*(torch.randn(3, 4, requires_grad=True) for _ in X))
    torch.testing.assert_close(f(*X), case.bind(case.reference)(*X))
    assert all(g is not None for g in torch.autograd.grad(f(*X).sum(), X))


def test_wrong_gradient_shape_is_refused():
    X = torch.randn(3, 3, requires_grad=True)
    with pytest.raises(RuntimeError, match="Mismatch in shape"):
        torch.autograd.grad(fastparam.functional.skew(X), X, torch.ones(4, 4))


# ---- warnings --------------------------------------------------------------------------------------------

WARN = """
import torch, fastparam, warnings
warnings.simplefilter("always")
X = torch.randn(2, 3, 3, dtype={dtype})
for _ in range(3):
    for f in ({functions}):
        f(X)
        f(X, True)
"""
COMPLEX_SENTENCE = (
    "fastparam: complex dtypes have no kernels and run as plain PyTorch expressions, with the same result; "
    "real dtypes run the kernels"
)


@pytest.mark.slow
def test_complex_warns_once_a_process():
    words = ("functional.skew", "functional.symmetric")
    ops = ("skew_adjoint", "skew")
    functions = ", ".join([*(f"fastparam.{w}" for w in words), *(f"torch.ops.fastparam.{op}" for op in ops)])
    done = python(WARN.format(dtype="torch.complex64", functions=functions))
    assert done.returncode == 0, done.stderr
    said = done.stdout + done.stderr
    assert said.count(COMPLEX_SENTENCE) == 1, said


@pytest.mark.slow
def test_public_functions_warn_as_python_does():
    """They are warnings of Python, which a filter can turn into errors, and they name the line of
    the call.
    """
    source = WARN.format(dtype="torch.complex64", functions="fastparam.functional.skew,")
    done = python(source)
    call = 1 + next(n for n, line in enumerate(source.splitlines()) if line.strip() == "f(X)")
    assert f"<string>:{call}: UserWarning: {COMPLEX_SENTENCE}\n" in done.stderr, (
        "it names the line that called"
    )
    done = python(source.replace('"always"', '"error"'))
    assert done.returncode == 1 and f"UserWarning: {COMPLEX_SENTENCE}" in done.stderr


@pytest.mark.slow
def test_what_shows_a_warning_may_call_the_op():
    """Loggers do this. An op that warned while it holds a lock would wait for itself."""
    done = python("""
import torch, fastparam, warnings
X = torch.randn(3, 3, dtype=torch.complex64)
warnings.showwarning = lambda *a, **k: print(fastparam.functional.skew(X).shape)
fastparam.functional.skew(X)
""")
    assert done.stdout.split() == ["torch.Size([3,", "3])"], done.stderr


@pytest.mark.slow
def test_real_dtypes_do_not_warn():
    functions = "fastparam.functional.skew, fastparam.functional.symmetric"
    loop = WARN.format(dtype="dtype", functions=functions).replace("\n", "\n    ")
    dtypes = "torch.float32, torch.float64, torch.bfloat16, torch.float16"
    done = python(f"import torch\nfor dtype in ({dtypes}):\n    {loop}")
    assert done.returncode == 0 and done.stderr == "", done.stderr
