"""The pruning of a layer: where it stands, how it is put there or replaced, and what it reads from a checkpoint."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.nn.utils import parametrize

from ._arguments import check_tensor
from ._prune_rules import Rule
from .prune import pack_mask
from .pruning import Pruning


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
    if pruning is not None:
        return pruning.replace_(mask, (*pruning.rules, rule))
    pruning = Pruning(mask)
    pruning.rules = (rule,)
    parametrize.register_parametrization(module, name, pruning)
    hooked: Any = module  # untyped there
    hooked.register_load_state_dict_pre_hook(Loader(name))


def forget(module: nn.Module, name: str) -> None:
    """Takes the loader of a tensor away."""
    hooks = module._load_state_dict_pre_hooks
    for key in [key for key, hook in hooks.items() if getattr(hook.hook, "prunes", None) == name]:  # type: ignore[attr-defined]
        del hooks[key]


class Loader:
    """A load hook: what torch.nn.utils.prune wrote as ``weight_orig`` and ``weight_mask`` becomes the raw weight and its packed mask.

    Example:
        >>> layer = torch.nn.utils.prune.l1_unstructured(torch.nn.Linear(4, 4), "weight", amount=0.5)
        >>> ours = fastparam.parametrizations.l1_unstructured(torch.nn.Linear(4, 4), "weight", amount=0.5)
        >>> ours.load_state_dict(layer.state_dict())
        <All keys matched successfully>
        >>> torch.equal(ours.weight, layer.weight)
        True
    """

    def __init__(self, name: str) -> None:
        self.prunes = name

    def __call__(self, module: nn.Module, state: dict[str, Any], prefix: str, metadata: object, strict: bool, *messages: list[str]) -> None:
        raw, mask = prefix + self.prunes + "_orig", prefix + self.prunes + "_mask"
        pruning = pruning_of(module, self.prunes)
        if pruning is None or len(chain(module, self.prunes)) > 1 or not {raw, mask} <= state.keys():
            return
        if state[mask].shape != pruning.shape:
            messages[-1].append(f"{mask}: expected a mask of shape {tuple(pruning.shape)}, got {tuple(state[mask].shape)}")
            return
        key = f"{prefix}parametrizations.{self.prunes}."
        state[key + "original"], state[key + "0.packed"] = state.pop(raw), pack_mask(state.pop(mask).detach() != 0)
