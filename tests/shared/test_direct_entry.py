"""The public functions call C++ directly in eager mode, but modes and subclasses must still see the op."""

from typing import ClassVar

import pytest
import torch
from table import every_public
from torch.overrides import TorchFunctionMode
from torch.testing._internal.two_tensor import TwoTensor
from torch.utils._python_dispatch import TorchDispatchMode

from fastparam import _C


class Functions(TorchFunctionMode):
    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_function__(self, func, types, args=(), kwargs=None):
        self.seen.append(str(func))
        return func(*args, **(kwargs or {}))


class Dispatched(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.seen.append(str(func))
        return func(*args, **(kwargs or {}))


class Logged(torch.Tensor):
    seen: ClassVar[list[str]] = []

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        cls.seen.append(str(func))
        return super().__torch_function__(func, types, args, kwargs or {})


class Duck:
    """Not a tensor, but it passes for one."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        return str(func)


@every_public
def test_torch_function_mode(case):
    with Functions() as mode:
        case.bind(case.public)(*case.inputs())
    assert any(case.word in name for name in mode.seen)


@every_public
def test_torch_dispatch_mode(case):
    ts = case.inputs()
    with Dispatched() as mode:
        case.bind(case.public)(*ts).sum().backward()
    ours = [name for name in mode.seen if name.startswith("fastparam.")]
    # the op and the ops that its gradient calls
    assert ours[0] == f"fastparam.{case.word}.default" and len(ours) > 1


@every_public
def test_direct_entry_goes_through_the_dispatcher(case):
    with Dispatched() as mode:
        case.bind(getattr(_C, case.word))(*case.inputs(grad=False))
    assert f"fastparam.{case.word}.default" in mode.seen


@every_public
def test_torch_function_subclass(case):
    ts = tuple(t.as_subclass(Logged) for t in case.inputs(grad=False))
    Logged.seen.clear()
    Y = case.bind(case.public)(*ts)
    assert isinstance(Y, Logged) and any(case.word in name for name in Logged.seen)


@every_public
def test_torch_dispatch_subclass(case):
    ts = case.inputs(grad=False)
    pairs = tuple(TwoTensor(t, 2 * t).requires_grad_() for t in ts)
    Y = case.bind(case.public)(*pairs)
    assert isinstance(Y, TwoTensor)
    case.check(Y.a, case.bind(case.reference)(*ts))
    case.check(Y.b, case.bind(case.reference)(*(2 * t for t in ts)))
    (Y**3).sum().backward()
    plain = tuple(t.requires_grad_() for t in ts)
    expected = torch.autograd.grad((case.bind(case.reference)(*plain) ** 3).sum(), plain)
    torch.testing.assert_close(tuple(p.grad.a for p in pairs), expected)


@every_public
def test_duck(case):
    assert case.word in case.public(*[Duck()] * case.tensors, *case.arguments(torch.ones(3, 3)))


@every_public
def test_direct_entry_is_the_op(case):
    ts = case.inputs()
    direct, op = case.bind(getattr(_C, case.word)), case.bind(case.op)
    assert torch.equal(direct(*ts), op(*ts))
    torch.testing.assert_close(
        torch.autograd.grad(direct(*ts).sum(), ts), torch.autograd.grad(op(*ts).sum(), ts)
    )


@every_public
def test_parameters_by_name(case):
    names = [a.name for a in case.op._schema.arguments]
    values = case.prepared(*case.inputs(grad=False))
    arguments = dict(zip(names, values, strict=True))
    for f in (case.public, case.op, getattr(_C, case.word)):
        assert torch.equal(f(**arguments), case.op(*values))


def test_functions_have_docstrings_and_signatures():
    import doctest

    import fastparam

    for name in fastparam.functional.__all__:
        f = getattr(fastparam.functional, name)
        failed, tried = 0, 0
        for test in doctest.DocTestFinder(recurse=False).find(
            f, name, globs={"torch": torch, "fastparam": fastparam}
        ):
            result = doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE).run(test)
            failed, tried = failed + result.failed, tried + result.attempted
        assert tried and not failed


@pytest.mark.parametrize("name", ["Symmetric", "Skew"])
def test_module_docstrings(name):
    import doctest

    import fastparam

    globs = {"torch": torch, "fastparam": fastparam, "parametrize": torch.nn.utils.parametrize}
    (test,) = doctest.DocTestFinder(recurse=False).find(getattr(fastparam, name), name, globs=globs)
    result = doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE).run(test)
    assert result.attempted and not result.failed
