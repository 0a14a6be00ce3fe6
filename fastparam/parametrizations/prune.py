"""The verbs of ``torch.nn.utils.prune``, with their signatures and masks, on :class:`~fastparam.Pruning`.

A verb called again prunes further: it chooses among what is still kept, as ``PruningContainer`` does. ``weight_mask`` and ``weight_orig``
can be read as there. After any error the module is unchanged.

Example:
    >>> layer = fastparam.parametrizations.l1_unstructured(torch.nn.Linear(4, 4), "weight", amount=0.5)
    >>> layer = fastparam.parametrizations.random_unstructured(layer, "weight", amount=3)
    >>> int((layer.weight == 0).sum())
    11
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from .._prune import Pruning
from .._prune_rules import Rule, as_bool, by_magnitude, methods, select
from ._layers import chain, check_shape, hide, pruning_of, target, write

M = TypeVar("M", bound=nn.Module)


def random_unstructured(module: M, name: str, amount: float) -> M:
    """Prunes ``amount`` entries (int) or a share of them (float), chosen at random; returns the module.

    Same masks as :func:`torch.nn.utils.prune.random_unstructured` for the same seed.

    Args:
        module: holds the tensor.
        name: of the parameter or buffer.
        amount: among the entries still kept.

    Raises:
        ValueError, TypeError: ``amount`` or ``name`` is not possible.

    Example:
        >>> layer = fastparam.parametrizations.random_unstructured(torch.nn.Linear(3, 2), "weight", amount=1)
        >>> int((layer.weight == 0).sum())
        1
    """
    return _prune("random_unstructured", module, name, methods.RandomUnstructured(amount))


def l1_unstructured(module: M, name: str, amount: float, importance_scores: Tensor | None = None) -> M:
    """Prunes the ``amount`` entries (int) or share (float) of least absolute value; returns the module.

    Same masks as :func:`torch.nn.utils.prune.l1_unstructured`.

    Args:
        module: holds the tensor.
        name: of the parameter or buffer.
        amount: among the entries still kept.
        importance_scores: compared in place of the tensor; of its shape.

    Raises:
        ValueError, TypeError: ``amount``, ``name`` or ``importance_scores`` is not possible.

    Example:
        >>> layer = torch.nn.Linear(3, 1)
        >>> layer.weight = torch.nn.Parameter(torch.tensor([[1., -3., 2.]]))
        >>> fastparam.parametrizations.l1_unstructured(layer, "weight", amount=1).weight.tolist()
        [[0.0, -3.0, 2.0]]
    """
    return _prune("l1_unstructured", module, name, methods.L1Unstructured(amount), importance_scores)


def random_structured(module: M, name: str, amount: float, dim: int) -> M:
    """Prunes ``amount`` slices (int) or a share of them (float) along ``dim``, chosen at random; returns the module.

    Same masks as :func:`torch.nn.utils.prune.random_structured` for the same seed.

    Args:
        module: holds the tensor.
        name: of the parameter or buffer, of two or more dimensions.
        amount: among the slices not pruned whole.
        dim: along which slices are counted.

    Raises:
        ValueError, TypeError, IndexError: ``amount``, ``name`` or ``dim`` is not possible.

    Example:
        >>> layer = fastparam.parametrizations.random_structured(torch.nn.Linear(5, 3), "weight", amount=3, dim=1)
        >>> int((layer.weight == 0).all(0).sum())
        3
    """
    return _prune("random_structured", module, name, methods.RandomStructured(amount, dim))


def ln_structured(module: M, name: str, amount: float, n: float | str, dim: int, importance_scores: Tensor | None = None) -> M:
    """Prunes the ``amount`` slices (int) or share (float) along ``dim`` of least norm; returns the module.

    Same masks as :func:`torch.nn.utils.prune.ln_structured`.

    Args:
        module: holds the tensor.
        name: of the parameter or buffer, of two or more dimensions.
        amount: among the slices not pruned whole.
        n: the order of the norm, as in :func:`torch.norm`.
        dim: along which slices are counted.
        importance_scores: compared in place of the tensor; of its shape.

    Raises:
        ValueError, TypeError, IndexError: ``amount``, ``name``, ``dim`` or ``importance_scores`` is not possible.

    Example:
        >>> layer = fastparam.parametrizations.ln_structured(torch.nn.Conv2d(5, 3, 2), "weight", amount=0.4, n=2, dim=1)
        >>> int((layer.weight == 0).all(0).all(-1).all(-1).sum())
        2
    """
    return _prune("ln_structured", module, name, methods.LnStructured(amount, n, dim), importance_scores)


def custom_from_mask(module: M, name: str, mask: Tensor) -> M:
    """Prunes the entries where ``mask``, of zeros and ones, is 0 (False); returns the module.

    Args:
        module: holds the tensor.
        name: of the parameter or buffer.
        mask: of its shape.

    Raises:
        ValueError, TypeError: ``name`` or ``mask`` is not possible.

    Source: :func:`torch.nn.utils.prune.custom_from_mask`.

    Example:
        >>> layer = fastparam.parametrizations.custom_from_mask(torch.nn.Linear(5, 3), name="bias", mask=torch.tensor([0, 1, 0]))
        >>> layer.parametrizations.bias[0].mask
        tensor([False,  True, False])
    """
    X, pruning = target("custom_from_mask", module, name)
    check_shape("custom_from_mask", "mask", mask, name, X)
    kept = as_bool("custom_from_mask", mask.to(X.device))
    write(module, name, kept if pruning is None else kept & pruning.kept.expand(X.shape), None)
    return module


def global_unstructured(
    parameters: Iterable[tuple[nn.Module, str]],
    pruning_method: Any,
    importance_scores: dict[tuple[nn.Module, str], Tensor] | None = None,
    **kwargs: Any,
) -> None:
    """Prunes several tensors together: their entries are compared as those of one.

    Same masks as :func:`torch.nn.utils.prune.global_unstructured`.

    Args:
        parameters: pairs of a module and a name.
        pruning_method: a class of ``torch.nn.utils.prune``, or one like them, of ``PRUNING_TYPE = "unstructured"``.
        importance_scores: by pair, compared in place of the tensor.
        kwargs: arguments of ``pruning_method``, as ``amount``.

    Raises:
        ValueError, TypeError: an argument is not possible; no module is changed.

    Example:
        >>> net = torch.nn.Sequential(torch.nn.Linear(10, 4), torch.nn.Linear(4, 1))
        >>> pairs = [(net[0], "weight"), (net[1], "weight")]
        >>> fastparam.parametrizations.global_unstructured(pairs, torch.nn.utils.prune.L1Unstructured, amount=10)
        >>> sum(int((layer.weight == 0).sum()) for layer in net)
        10
    """
    op = "global_unstructured"
    if not isinstance(parameters, Iterable):
        raise TypeError(f"{op}: expected parameters to be an iterable of (module, name), got {type(parameters).__name__}")
    if not isinstance(importance_scores, (dict, type(None))):
        raise TypeError(f"{op}: expected importance_scores to be a dict, got {type(importance_scores).__name__}")
    rule = pruning_method(**kwargs)
    if rule.PRUNING_TYPE != "unstructured":
        raise TypeError(f'{op}: expected a pruning_method of PRUNING_TYPE "unstructured", got {rule.PRUNING_TYPE}')
    pairs, scores, masks = list(parameters), [], []
    for module, name in pairs:
        X, pruning = target(op, module, name)
        scores.append((importance_scores or {}).get((module, name), X))
        check_shape(op, "importance_scores", scores[-1], name, X)
        masks.append(torch.ones_like(X, dtype=torch.bool) if pruning is None else pruning.kept.expand(X.shape))
    if pairs:
        flat = [nn.utils.parameters_to_vector(tensors) for tensors in (scores, masks)]
        kept = torch.split(select(rule, *flat), [mask.numel() for mask in masks])
        for (module, name), mask, part in zip(pairs, masks, kept, strict=True):
            write(module, name, part.view(mask.shape), None)


def remove(module: M, name: str) -> M:
    """Makes the pruned tensor the parameter again, the same object as before; what was pruned stays 0. Returns the module.

    Args:
        module: holds the tensor.
        name: of the tensor.

    Raises:
        ValueError: it is not pruned, or other parametrizations stand beside the pruning.

    Source: :func:`torch.nn.utils.prune.remove`.

    Example:
        >>> layer = fastparam.parametrizations.l1_unstructured(torch.nn.Linear(4, 4), "weight", amount=0.5)
        >>> layer = fastparam.parametrizations.remove(layer, "weight")
        >>> sorted(layer.state_dict()), int((layer.weight == 0).sum())
        (['bias', 'weight'], 8)
    """
    if pruning_of(module, name) is None:
        raise ValueError(f"remove: expected '{name}' of {type(module).__name__} to be pruned, by a parametrization applied last")
    if len(chain(module, name)) > 1:
        kinds = ", ".join(type(m).__name__ for m in chain(module, name))
        raise ValueError(f"remove: expected no parametrization of '{name}' but its pruning, got {kinds}")
    hide(module, name)
    parametrize.remove_parametrizations(module, name, leave_parametrized=True)
    return module


def is_pruned(module: nn.Module) -> bool:
    """Returns whether a tensor of the module, or of one inside it, is pruned by :class:`~fastparam.Pruning`.

    Source: :func:`torch.nn.utils.prune.is_pruned`.

    Example:
        >>> layer = torch.nn.Linear(5, 7)
        >>> fastparam.parametrizations.is_pruned(layer)
        False
        >>> fastparam.parametrizations.is_pruned(fastparam.parametrizations.random_unstructured(layer, "weight", amount=0.2))
        True
    """
    return any(isinstance(part, Pruning) for part in module.modules())


def from_torch(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Returns a ``state_dict`` of modules that ``torch.nn.utils.prune`` pruned with the keys of those pruned here.

    ``weight_orig`` becomes ``parametrizations.weight.original``, ``weight_mask`` the bool ``parametrizations.weight.0.mask``. All
    other entries stay, the same tensors.

    Args:
        state_dict: of a module, or of one that holds such modules.

    Raises:
        ValueError: a mask holds anything but zeros and ones.

    Example:
        >>> theirs = torch.nn.utils.prune.l1_unstructured(torch.nn.Linear(4, 4), "weight", amount=0.5)
        >>> ours = fastparam.parametrizations.l1_unstructured(torch.nn.Linear(4, 4), "weight", amount=0.5)
        >>> ours.load_state_dict(fastparam.parametrizations.from_torch(theirs.state_dict()))
        <All keys matched successfully>
        >>> torch.equal(ours.weight, theirs.weight)
        True
    """
    converted: dict[str, Tensor] = {}
    for key, value in state_dict.items():
        stem, _, kind = key.rpartition("_")
        prefix, dot, name = stem.rpartition(".")
        if kind not in ("orig", "mask") or not {f"{stem}_orig", f"{stem}_mask"} <= state_dict.keys():
            converted[key] = value
        elif kind == "orig":
            converted[f"{prefix}{dot}parametrizations.{name}.original"] = value
        else:
            converted[f"{prefix}{dot}parametrizations.{name}.0.mask"] = as_bool(f"from_torch: {key}", value)
    return converted


def _prune(op: str, module: M, name: str, rule: Rule, scores: Tensor | None = None) -> M:
    X, pruning = target(op, module, name)
    if scores is None:
        scores = X
    else:
        check_shape(op, "importance_scores", scores, name, X)
    previous = None if pruning is None else pruning.kept.expand(X.shape).to(scores.device)
    write(module, name, select(rule, scores, previous), by_magnitude(rule))
    return module
