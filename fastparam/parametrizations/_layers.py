"""The pruning of a layer: where it stands, and how it is put there or replaced."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn.utils import parametrize

from .._arguments import check_tensor
from .._prune import Pruning
from .._prune_rules import Rule


def chain(module: nn.Module, name: str) -> list[nn.Module]:
    """The parametrizations of a tensor, in order."""
    return list(module.parametrizations[name]) if parametrize.is_parametrized(module, name) else []  # type: ignore[index]


def pruning_of(module: nn.Module, name: str) -> Pruning | None:
    """The pruning that is applied last to a tensor."""
    applied = chain(module, name)
    return applied[-1] if applied and isinstance(applied[-1], Pruning) else None


def target(op: str, module: nn.Module, name: str) -> tuple[Tensor, Pruning | None]:
    """The value of a parameter or buffer, and its pruning; ValueError where there is no such tensor."""
    if not isinstance(module, nn.Module):
        raise TypeError(f"{op}: expected module to be a torch.nn.Module, got {type(module).__name__}")
    held = name in module._parameters or name in module._buffers or parametrize.is_parametrized(module, name)
    X = getattr(module, name) if held else None
    if X is None:
        raise ValueError(f"{op}: expected the name of a parameter or a buffer of {type(module).__name__}, got '{name}'")
    return X.detach(), pruning_of(module, name)


def check_shape(op: str, argument: str, given: object, name: str, X: Tensor) -> None:
    """Raises unless what is given is a tensor of the shape of X."""
    check_tensor(op, argument, given)
    if isinstance(given, Tensor) and given.shape != X.shape:
        raise ValueError(f"{op}: expected {argument} of the shape of {name}, {tuple(X.shape)}, got {tuple(given.shape)}")


def write(module: nn.Module, name: str, mask: Tensor, rule: Rule | None) -> None:
    """Prunes a tensor by this mask, in place of the mask that it is pruned by now."""
    X, pruning = target("prune", module, name)
    mask = mask.to(X.device)
    if pruning is None:
        pruning = Pruning(mask)
        pruning.rules = (rule,)
        parametrize.register_parametrization(module, name, pruning)
    else:
        pruning.replace_(mask, (*pruning.rules, rule))
    _show(module, name)


def _show(module: nn.Module, name: str) -> None:
    """Lets the mask and the raw tensor be read under the names that torch.nn.utils.prune gives them."""

    def mask(module: nn.Module) -> Tensor:
        pruning = pruning_of(module, name)
        if pruning is None:
            raise AttributeError(f"'{name}' of {type(module).__name__} is not pruned")
        return pruning.mask

    def raw(module: nn.Module) -> Tensor:
        value: Tensor = module.parametrizations[name].original  # type: ignore[index, union-attr]
        for before in chain(module, name)[:-1]:
            value = before(value)
        return value

    for suffix, read in (("_mask", mask), ("_orig", raw)):
        if not hasattr(module, name + suffix):
            setattr(type(module), name + suffix, property(read))  # the class is the module's own: torch made it on registration


def hide(module: nn.Module, name: str) -> None:
    """Takes those names away, where the module has a class of its own still."""
    for suffix in ("_mask", "_orig"):
        if name + suffix in vars(type(module)):
            delattr(type(module), name + suffix)
