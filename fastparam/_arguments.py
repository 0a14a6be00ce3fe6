"""Checks of arguments that a function makes before it calls its op, which checks shapes and dtypes itself."""

from __future__ import annotations

import numbers
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.nn.parameter import UninitializedBuffer, UninitializedParameter
from torch.overrides import has_torch_function

from . import _C

PLAIN = (Tensor, nn.Parameter)  # classes of most tensors, of which less has to be checked


def described(thing: object) -> str:
    """Returns the name by which an error calls a thing of the wrong kind."""
    return f"the class {thing.__name__}" if isinstance(thing, type) else type(thing).__name__


def check_tensor(op: str, argument: str, X: Any) -> Any:
    """Returns X. Raises TypeError unless it is a tensor or passes for one (a subclass, an fx proxy), and
    ValueError unless it is strided and has a shape.
    """
    if type(X) not in PLAIN:
        if isinstance(X, type) or not (isinstance(X, Tensor) or has_torch_function((X,))):
            raise TypeError(f"{op}: expected {argument} to be a torch.Tensor, got {described(X)}")
        if isinstance(X, (UninitializedParameter, UninitializedBuffer)):
            raise ValueError(f"{op}: expected {argument} to have a shape, got an uninitialized tensor")
    if isinstance(X, Tensor) and (X.is_nested or X.layout != torch.strided):
        kind = "a nested" if X.is_nested else "an mkldnn" if X.is_mkldnn else "a sparse"
        raise ValueError(f"{op}: expected {argument} to be a strided tensor, got {kind} one")
    return X


def ordinary(buffer: Tensor) -> Tensor:
    """Returns the tensor, or a copy if it was made in inference mode, with which no layer can be trained."""
    if not buffer.is_inference():
        return buffer
    with torch.inference_mode(False):
        return buffer.clone()


def check_optional_tensor(op: str, argument: str, X: Any) -> Any:
    """Returns X. Raises TypeError unless it is a tensor or None."""
    return None if X is None else check_tensor(op, argument, X)


def check_square(op: str, X: object, argument: str = "X") -> None:
    """Raises the op's own error for X, before an inverse does any work on it."""
    check_tensor(op, argument, X)
    if isinstance(X, Tensor) and not torch.compiler.is_compiling():
        _C.check_square(op, argument, X)


def check_matrices(op: str, X: object, argument: str = "X") -> None:
    """Raises unless X is a batch of matrices of a dtype that the ops take."""
    check_tensor(op, argument, X)
    if isinstance(X, Tensor) and not torch.compiler.is_compiling():
        _C.check_matrices(op, argument, X)


def is_flag(flag: object) -> bool:
    """Whether the object is a bool of Python or of numpy."""
    return isinstance(flag, bool) or (
        type(flag).__module__ == "numpy" and type(flag).__name__ in ("bool", "bool_")
    )


def check_flag(op: str, argument: str, flag: Any) -> bool:
    """Returns the flag as Python's bool. Raises TypeError unless it is one."""
    if not is_flag(flag):
        raise TypeError(f"{op}: expected {argument} to be True or False, got {type(flag).__name__}")
    return bool(flag)


def check_number(op: str, argument: str, number: Any) -> Any:
    """Returns the number, which is symbolic while tracing. Raises TypeError unless it is real."""
    if isinstance(number, (torch.SymInt, torch.SymFloat)):
        return number
    if isinstance(number, Tensor):
        kind = "a tensor, which would get no gradient"
        raise TypeError(f"{op}: expected {argument} to be a number, got {kind}")
    if not isinstance(number, numbers.Real):
        raise TypeError(f"{op}: expected {argument} to be a number, got {type(number).__name__}")
    return float(number)


def check_integer(op: str, argument: str, number: Any) -> int:
    """Returns the integer as Python's int. Raises TypeError unless it is one."""
    if not isinstance(number, numbers.Integral) or is_flag(number):
        raise TypeError(f"{op}: expected {argument} to be an int, got {type(number).__name__}")
    return int(number)


def check_sizes(op: str, argument: str, sizes: Any) -> Any:
    """Returns the sizes. Raises TypeError unless they are a sequence of ints."""
    if not isinstance(sizes, Iterable) or not all(
        isinstance(s, (numbers.Integral, torch.SymInt)) for s in sizes
    ):
        raise TypeError(f"{op}: expected {argument} to be a sequence of ints, got {sizes!r}")
    return [s if isinstance(s, torch.SymInt) else int(s) for s in sizes]


def has_no_data(Q: Tensor) -> bool:
    """Whether the tensor has no numbers: on the meta device, while tracing, or if it is empty."""
    return Q.is_meta or isinstance(Q, FakeTensor) or Q.numel() == 0


def in_memory(X: Tensor) -> bool:
    """Whether the numbers lie in the memory of the tensor: not where it wraps another one (in torch.func,
    a DTensor), or stands for the negative of what lies there.
    """
    if X.is_neg():
        return False
    try:
        return X.data_ptr() != 0
    except RuntimeError:
        return False
