"""What a function asks of its arguments before the op is called; shapes and dtypes are checked by the op
itself.
"""

from __future__ import annotations

import numbers
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.nn.parameter import UninitializedBuffer, UninitializedParameter
from torch.overrides import has_torch_function

from . import _C


def described(thing: object) -> str:
    """Returns what an error calls a thing of the wrong kind."""
    return f"the class {thing.__name__}" if isinstance(thing, type) else type(thing).__name__


def check_tensor(op: str, argument: str, X: Any) -> Any:
    """Returns X; raises TypeError unless it is a tensor, or passes for one (a subclass, an fx proxy),
    ValueError unless it is strided and has a shape.
    """
    if isinstance(X, type) or not (isinstance(X, Tensor) or has_torch_function((X,))):
        raise TypeError(f"{op}: expected {argument} to be a torch.Tensor, got {described(X)}")
    if isinstance(X, (UninitializedParameter, UninitializedBuffer)):
        raise ValueError(f"{op}: expected {argument} to have a shape, got an uninitialized tensor")
    if isinstance(X, Tensor) and (X.is_nested or X.layout != torch.strided):
        kind = "a nested" if X.is_nested else "an mkldnn" if X.is_mkldnn else "a sparse"
        raise ValueError(f"{op}: expected {argument} to be a strided tensor, got {kind} one")
    return X


def ordinary(buffer: Tensor) -> Tensor:
    """Returns the tensor, or its copy where it was made in inference mode: a layer trains after it."""
    if not buffer.is_inference():
        return buffer
    with torch.inference_mode(False):
        return buffer.clone()


def check_optional_tensor(op: str, argument: str, X: Any) -> Any:
    """Returns X; raises TypeError unless it is a tensor or None."""
    return None if X is None else check_tensor(op, argument, X)


def check_square(op: str, X: object, argument: str = "X") -> None:
    """Raises what the op itself would say of X, before an inverse does any work on it."""
    check_tensor(op, argument, X)
    if isinstance(X, Tensor) and not torch.compiler.is_compiling():
        _C.check_square(op, argument, X)


def check_matrices(op: str, X: object, argument: str = "X") -> None:
    """Raises unless X is a batch of matrices of a dtype that the ops take."""
    check_tensor(op, argument, X)
    if isinstance(X, Tensor) and not torch.compiler.is_compiling():
        _C.check_matrices(op, argument, X)


def is_flag(flag: object) -> bool:
    """Whether the object is True or False, of Python or of numpy."""
    return isinstance(flag, bool) or (
        type(flag).__module__ == "numpy" and type(flag).__name__ in ("bool", "bool_")
    )


def check_flag(op: str, argument: str, flag: Any) -> bool:
    """Returns True or False; raises TypeError unless the flag is one of them."""
    if not is_flag(flag):
        raise TypeError(f"{op}: expected {argument} to be True or False, got {type(flag).__name__}")
    return bool(flag)


def check_number(op: str, argument: str, number: Any) -> Any:
    """Returns the number; raises TypeError unless it is real (a symbolic one while tracing)."""
    if isinstance(number, (torch.SymInt, torch.SymFloat)):
        return number
    if not isinstance(number, numbers.Real):
        raise TypeError(f"{op}: expected {argument} to be a number, got {type(number).__name__}")
    return float(number)


def check_integer(op: str, argument: str, number: Any) -> int:
    """Returns the integer as Python's; raises TypeError unless it is one."""
    if not isinstance(number, numbers.Integral) or is_flag(number):
        raise TypeError(f"{op}: expected {argument} to be an int, got {type(number).__name__}")
    return int(number)


def check_sizes(op: str, argument: str, sizes: Any) -> Any:
    """Returns the sizes; raises TypeError unless they are a sequence of ints."""
    if not isinstance(sizes, Iterable) or not all(
        isinstance(s, (numbers.Integral, torch.SymInt)) for s in sizes
    ):
        raise TypeError(f"{op}: expected {argument} to be a sequence of ints, got {sizes!r}")
    return [s if isinstance(s, torch.SymInt) else int(s) for s in sizes]


def has_no_data(Q: Tensor) -> bool:
    """Whether there are no numbers to look at: on the meta device, while tracing, or where a tensor is
    empty.
    """
    return Q.is_meta or isinstance(Q, FakeTensor) or Q.numel() == 0
