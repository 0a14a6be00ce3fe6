"""The pruning of a layer: where it is kept, and how it is added, replaced and read."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from .._arguments import check_tensor, described
from .._prune_module import Pruning
from .._prune_rules import Rule, as_bool, check_weight, on_device


def check_module(op: str, module: object) -> None:
    """Raises TypeError unless it is a module."""
    if not isinstance(module, nn.Module):
        raise TypeError(f"{op}: expected module to be a torch.nn.Module, got {described(module)}")


def check_held(op: str, module: object, name: str) -> Any:
    """Returns what the module holds under this name. Raises TypeError unless it is a module and the name is a
    str, and ValueError if the tensor of this name is None or has no shape yet.
    """
    check_module(op, module)
    if not isinstance(name, str):
        raise TypeError(f"{op}: expected name to be a str, got {described(name)}")
    held = getattr(module, name, None)
    if isinstance(held, Tensor):
        check_tensor(op, name, held)
    elif held is None and hasattr(module, name):  # torch.nn.utils.parametrize would read its shape
        raise ValueError(f"Module '{module}' has no parameter or buffer with name '{name}'")
    return held


def chain(module: nn.Module, name: str) -> list[nn.Module]:
    """Returns the parametrizations of a tensor, in order."""
    parametrized = isinstance(name, str) and parametrize.is_parametrized(module, name)
    return list(module.parametrizations[name]) if parametrized else []  # type: ignore[index]


def pruning_of(module: nn.Module, name: str) -> Pruning | None:
    """Returns the pruning that is applied last to a tensor."""
    applied = chain(module, name)
    return applied[-1] if applied and isinstance(applied[-1], Pruning) else None


def target(op: str, module: nn.Module, name: str) -> tuple[Tensor, Tensor | None]:
    """Returns the value of a tensor and its mask, expanded to its shape. Raises if it cannot be pruned."""
    check_module(op, module)
    held = name in module._parameters or name in module._buffers or chain(module, name)
    X = getattr(module, name) if held else None
    if X is None and f"{name}_orig" in module._parameters:
        raise ValueError(
            f"{op}: expected '{name}' not to be pruned by torch.nn.utils.prune; call its remove() first"
        )
    if X is None:
        raise ValueError(
            f"{op}: expected the name of a parameter or a buffer of {type(module).__name__}, got '{name}'"
        )
    check_weight(op, name, X)
    pruning = pruning_of(module, name)
    return X.detach(), None if pruning is None else pruning.kept.expand(X.shape)


def like(op: str, argument: str, given: Any, name: str, X: Tensor) -> Tensor:
    """Returns the given tensor on the device of X. Raises unless it is a tensor of the shape of X."""
    check_tensor(op, argument, given)
    if given.shape != X.shape:
        raise ValueError(
            f"{op}: expected {argument} to have the shape of {name}, {tuple(X.shape)}, "
            f"got {tuple(given.shape)}"
        )
    if given.is_quantized:
        raise ValueError(f"{op}: expected {argument} to hold bools or numbers, got {given.dtype}")
    return on_device(op, argument, given, X.device)


def write(module: nn.Module, name: str, mask: Tensor, rule: Rule | None) -> None:
    """Prunes a tensor with this mask, which replaces its present mask."""
    pruning = pruning_of(module, name)
    if pruning is not None:
        pruning.mask, pruning.rules = as_bool("prune", "mask", mask), (*pruning.rules, rule)
    else:
        pruning = Pruning(mask)
        pruning.rules = (rule,)
        own_class(module)
        with setting(getattr(module, name)):
            parametrize.register_parametrization(module, name, pruning)
    _show(module, name)


def setting(X: Tensor) -> torch.inference_mode:
    """Returns the context in which torch can set the tensor: inference mode, if it was made there."""
    return torch.inference_mode(X.is_inference())


def own_class(module: nn.Module) -> None:
    """Gives a parametrized module a class of its own, because deep copies share the class that torch made."""
    if parametrize.is_parametrized(module):
        shared = type(module)
        module.__class__ = type(shared.__name__, shared.__bases__, dict(vars(shared)))


def _show(module: nn.Module, name: str) -> None:
    """Makes the mask and the raw tensor readable under the names that torch.nn.utils.prune gives them."""

    def pruning(module: nn.Module) -> Pruning:
        found = pruning_of(module, name)
        if found is None:
            raise AttributeError(f"'{name}' of {type(module).__name__} is not pruned")
        return found

    def raw(module: Any) -> Any:
        pruning(module)
        applied = module.parametrizations[name]
        values = (
            [applied.original]
            if applied.is_tensor
            else [getattr(applied, f"original{i}") for i in range(applied.ntensors)]
        )
        for before in list(applied)[:-1]:
            values = [before(*values)]
        return values[0]

    mask = property(
        lambda module: pruning(module).mask, lambda module, mask: setattr(pruning(module), "mask", mask)
    )
    for word, shown in ((f"{name}_mask", mask), (f"{name}_orig", property(raw))):
        if not hasattr(type(module), word) and not hasattr(module, word):
            setattr(type(module), word, shown)
