"""What a function asks of its arguments before the op is called; shapes and dtypes are checked by the op itself."""

from __future__ import annotations

import torch
from torch.overrides import has_torch_function

from . import _C


def check_tensor(op: str, argument: str, X: object) -> None:
    """Raises TypeError unless X is a tensor, or passes for one (a subclass, an fx proxy)."""
    if not (isinstance(X, torch.Tensor) or has_torch_function((X,))):
        raise TypeError(f"{op}: expected {argument} to be a torch.Tensor, got {type(X).__name__}")


def check_square(op: str, X: object, argument: str = "X") -> None:
    """Raises what the op itself would say of X, before an inverse does any work on it."""
    check_tensor(op, argument, X)
    if isinstance(X, torch.Tensor) and not torch.compiler.is_compiling():
        _C.check_square(op, argument, X)


def check_flag(op: str, argument: str, flag: object) -> None:
    """Raises TypeError unless the flag is True or False."""
    if not isinstance(flag, bool):
        raise TypeError(f"{op}: expected {argument} to be True or False, got {type(flag).__name__}")


def check_number(op: str, argument: str, number: object) -> None:
    """Raises TypeError unless the number is an int or a float (a symbolic one while tracing)."""
    if not isinstance(number, (int, float, torch.SymInt, torch.SymFloat)):
        raise TypeError(f"{op}: expected {argument} to be a number, got {type(number).__name__}")
