"""The verbs of ``torch.nn.utils.prune``, with their signatures and masks, on :class:`~fastparam.Pruning`.

A verb that is called again prunes further. It chooses among the entries that are still kept, as
``PruningContainer`` does. The mask and the raw tensor can be read under the names of
``torch.nn.utils.prune``, ``weight_mask`` and ``weight_orig``. After any error the module is unchanged.

Example:
    >>> layer = fastparam.parametrizations.l1_unstructured(torch.nn.Linear(4, 4), "weight", amount=0.5)
    >>> layer = fastparam.parametrizations.random_unstructured(layer, "weight", amount=3)
    >>> int((layer.weight == 0).sum()), int((layer.weight_orig == 0).sum())
    (11, 0)
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from .._arguments import check_integer, described
from .._prune_module import Pruning
from .._prune_rules import Rule, as_bool, by_magnitude, number, select, torch_rule
from ._layers import chain, check_module, like, own_class, pruning_of, setting, target, write

M = TypeVar("M", bound=nn.Module)


def random_unstructured(module: M, name: str, amount: float) -> M:
    """Prunes entries chosen at random; returns the module.

    The masks are those of :func:`torch.nn.utils.prune.random_unstructured` for the same seed.

    Args:
        module: module that holds the tensor.
        name: name of the parameter or buffer.
        amount: number (int) or fraction (float) of the entries to prune, among those still kept.

    Raises:
        ValueError, TypeError: If ``module``, ``name`` or ``amount`` is not valid.

    Example:
        >>> layer = fastparam.parametrizations.random_unstructured(torch.nn.Linear(3, 2), "weight", amount=1)
        >>> int((layer.weight == 0).sum())
        1
    """
    return _prune("random_unstructured", module, name, torch_rule("RandomUnstructured", amount))


def l1_unstructured(module: M, name: str, amount: float, importance_scores: Tensor | None = None) -> M:
    """Prunes the entries of least absolute value; returns the module.

    The masks are those of :func:`torch.nn.utils.prune.l1_unstructured`.

    Args:
        module: module that holds the tensor.
        name: name of the parameter or buffer.
        amount: number (int) or fraction (float) of the entries to prune, among those still kept.
        importance_scores: tensor of the same shape that is compared in place of the parameter or buffer.

    Raises:
        ValueError, TypeError: If ``module``, ``name``, ``amount`` or ``importance_scores`` is not valid.

    Example:
        >>> layer = torch.nn.Linear(3, 1)
        >>> layer.weight = torch.nn.Parameter(torch.tensor([[1., -3., 2.]]))
        >>> fastparam.parametrizations.l1_unstructured(layer, "weight", amount=1).weight.tolist()
        [[0.0, -3.0, 2.0]]
    """
    return _prune("l1_unstructured", module, name, torch_rule("L1Unstructured", amount), importance_scores)


def random_structured(module: M, name: str, amount: float, dim: int) -> M:
    """Prunes slices along a dimension, chosen at random; returns the module.

    The masks are those of :func:`torch.nn.utils.prune.random_structured` for the same seed.

    Args:
        module: module that holds the tensor.
        name: name of the parameter or buffer, of two or more dimensions.
        amount: number (int) or fraction (float) of the slices to prune, among those not pruned entirely.
        dim: dimension along which slices are counted.

    Raises:
        ValueError, TypeError, IndexError: If ``module``, ``name``, ``amount`` or ``dim`` is not valid.

    Example:
        >>> layer = torch.nn.Linear(5, 3)
        >>> layer = fastparam.parametrizations.random_structured(layer, "weight", amount=3, dim=1)
        >>> int((layer.weight == 0).all(0).sum())
        3
    """
    dim = check_integer("random_structured", "dim", dim)
    return _prune("random_structured", module, name, torch_rule("RandomStructured", amount, dim))


def ln_structured(
    module: M, name: str, amount: float, n: float | str, dim: int, importance_scores: Tensor | None = None
) -> M:
    """Prunes the slices of least norm along a dimension; returns the module.

    The masks are those of :func:`torch.nn.utils.prune.ln_structured`.

    Args:
        module: module that holds the tensor.
        name: name of the parameter or buffer, of two or more dimensions.
        amount: number (int) or fraction (float) of the slices to prune, among those not pruned entirely.
        n: order of the norm, as in :func:`torch.norm`.
        dim: dimension along which slices are counted.
        importance_scores: tensor of the same shape that is compared in place of the parameter or buffer.

    Raises:
        ValueError, TypeError, IndexError: If ``module``, ``name``, ``amount``, ``dim`` or
            ``importance_scores`` is not valid.

    Example:
        >>> layer = torch.nn.Conv2d(5, 3, 2)
        >>> layer = fastparam.parametrizations.ln_structured(layer, "weight", amount=0.4, n=2, dim=1)
        >>> int((layer.weight == 0).all(0).all(-1).all(-1).sum())
        2
    """
    dim = check_integer("ln_structured", "dim", dim)
    return _prune(
        "ln_structured", module, name, torch_rule("LnStructured", amount, n, dim), importance_scores
    )


def custom_from_mask(module: M, name: str, mask: Tensor) -> M:
    """Prunes the entries where the mask is 0 (False); returns the module.

    Args:
        module: module that holds the tensor.
        name: name of the parameter or buffer.
        mask: tensor of the same shape that holds zeros and ones (or bools).

    Raises:
        ValueError, TypeError: If ``module``, ``name`` or ``mask`` is not valid. A soft mask, with values
            other than zeros and ones, is refused, because :class:`~fastparam.Pruning` either keeps or drops
            an entry.

    Source: :func:`torch.nn.utils.prune.custom_from_mask`.

    Example:
        >>> layer, mask = torch.nn.Linear(5, 3), torch.tensor([0, 1, 0])
        >>> fastparam.parametrizations.custom_from_mask(layer, name="bias", mask=mask).bias_mask
        tensor([False,  True, False])
    """
    X, previous = target("custom_from_mask", module, name)
    kept = as_bool("custom_from_mask", "mask", like("custom_from_mask", "mask", mask, name, X))
    write(module, name, kept if previous is None else kept & previous, None)
    return module


def global_unstructured(
    parameters: Iterable[tuple[nn.Module, str]],
    pruning_method: Any,
    importance_scores: dict[tuple[nn.Module, str], Tensor] | None = None,
    **kwargs: Any,
) -> None:
    """Prunes several tensors together. Their entries are compared as if they were those of one tensor.

    The masks are those of :func:`torch.nn.utils.prune.global_unstructured`.

    Args:
        parameters: pairs of a module and a name.
        pruning_method: class of ``torch.nn.utils.prune``, or a similar class, with ``PRUNING_TYPE =
            "unstructured"`` and masks of zeros and ones.
        importance_scores: tensors by pair that are compared in place of the parameters or buffers.
        kwargs: arguments of ``pruning_method``, such as ``amount``.

    Raises:
        ValueError, TypeError: If an argument is not valid. No module is changed.

    Example:
        >>> net = torch.nn.Sequential(torch.nn.Linear(10, 4), torch.nn.Linear(4, 1))
        >>> pairs, method = [(layer, "weight") for layer in net], torch.nn.utils.prune.L1Unstructured
        >>> fastparam.parametrizations.global_unstructured(pairs, method, amount=10)
        >>> sum(int((layer.weight == 0).sum()) for layer in net)
        10
    """
    op = "global_unstructured"
    if not isinstance(parameters, Iterable) or isinstance(parameters, Tensor):
        raise TypeError(
            f"{op}: expected parameters to be an iterable of (module, name), got {described(parameters)}"
        )
    if not isinstance(importance_scores, (dict, type(None))):
        raise TypeError(f"{op}: expected importance_scores to be a dict, got {described(importance_scores)}")
    if not callable(pruning_method) or (
        isinstance(pruning_method, type) and not issubclass(pruning_method, Rule)
    ):
        raise TypeError(
            f"{op}: expected pruning_method to be a BasePruningMethod, got {described(pruning_method)}"
        )
    rule = pruning_method(**kwargs)
    if hasattr(rule, "amount"):
        rule.amount = number(rule.amount)
    kind = getattr(rule, "PRUNING_TYPE", None)
    if kind != "unstructured":
        raise TypeError(f'{op}: expected a pruning_method of PRUNING_TYPE "unstructured", got {kind}')
    pairs, scores, masks = list(parameters), [], []
    for pair in pairs:
        if not isinstance(pair, (tuple, list)) or len(pair) != 2:
            raise TypeError(f"{op}: expected parameters to hold pairs (module, name), got {described(pair)}")
        X, previous = target(op, *pair)
        scores.append(
            like(op, "importance_scores", (importance_scores or {}).get((pair[0], pair[1]), X), pair[1], X)
        )
        masks.append(torch.ones_like(X, dtype=torch.bool) if previous is None else previous)
    if pairs:
        flat = [nn.utils.parameters_to_vector(tensors) for tensors in (scores, masks)]
        kept = torch.split(select(rule, *flat), [mask.numel() for mask in masks])
        for (module, name), mask, part in zip(pairs, masks, kept, strict=True):
            custom_from_mask(module, name, part.view(mask.shape))


def remove(module: M, name: str) -> M:
    """Makes the pruned tensor a parameter again; returns the module.

    The parameter is the same object as before, and the pruned entries stay 0.

    Args:
        module: module that holds the tensor.
        name: name of the tensor.

    Raises:
        ValueError: If the tensor is not pruned, or has other parametrizations beside the pruning.
        TypeError: If ``module`` is not a module.

    Source: :func:`torch.nn.utils.prune.remove`.

    Example:
        >>> layer = fastparam.parametrizations.l1_unstructured(torch.nn.Linear(4, 4), "weight", amount=0.5)
        >>> layer = fastparam.parametrizations.remove(layer, "weight")
        >>> sorted(layer.state_dict()), int((layer.weight == 0).sum())
        (['bias', 'weight'], 8)
    """
    check_module("remove", module)
    if pruning_of(module, name) is None:
        held = f"'{name}' of {type(module).__name__}"
        raise ValueError(f"remove: expected the last parametrization of {held} to be a pruning")
    if len(chain(module, name)) > 1:
        kinds = ", ".join(type(m).__name__ for m in chain(module, name))
        raise ValueError(f"remove: expected '{name}' to have no parametrization but its pruning, got {kinds}")
    own_class(module)
    with setting(module.parametrizations[name].original):  # type: ignore[index, union-attr]
        parametrize.remove_parametrizations(module, name, leave_parametrized=True)
    return module


def is_pruned(module: nn.Module) -> bool:
    """Returns whether :class:`~fastparam.Pruning` prunes a tensor of the module or of a submodule.

    Raises:
        TypeError: If ``module`` is not a module.

    Source: :func:`torch.nn.utils.prune.is_pruned`.

    Example:
        >>> layer = torch.nn.Linear(5, 7)
        >>> fastparam.parametrizations.is_pruned(layer)
        False
        >>> layer = fastparam.parametrizations.random_unstructured(layer, "weight", amount=0.2)
        >>> fastparam.parametrizations.is_pruned(layer)
        True
    """
    check_module("is_pruned", module)
    return any(isinstance(part, Pruning) for part in module.modules())


def _prune(op: str, module: M, name: str, rule: Rule, scores: Tensor | None = None) -> M:
    X, previous = target(op, module, name)
    scores = X if scores is None else like(op, "importance_scores", scores, name, X)
    write(module, name, select(rule, scores, previous), by_magnitude(rule))
    return module
