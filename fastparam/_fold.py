"""``fold``: parametrized tensors become plain ones, for inference and export."""

from __future__ import annotations

import warnings
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from ._arguments import described
from .parametrizations._layers import own_class

M = TypeVar("M", bound=nn.Module)


def fold(model: M) -> M:
    r"""Replaces every parameter and buffer that is parametrized by this package with its value, bit for bit;
    returns the model.

    .. math:: W = f_m(\ldots f_1(X)) \quad \text{in place of } X, f_1, \ldots, f_m

    A folded model computes the same results from plain tensors. Its ``state_dict`` has the keys of a model
    that was never parametrized, and neither loading nor running nor exporting it needs this package. Buffers
    become persistent, because torch makes those persistent that it parametrizes.

    Nothing is constrained any more in a folded model. Its tensors are new ones, which an optimizer that was
    made before does not know. A fold cannot be undone: fold a copy (``copy.deepcopy``) of a model that is to
    be trained further. Fold before tracing, exporting, or merging an adapter.

    A tensor is left as it is, and a warning names it, if one of its parametrizations is a class of another
    package. All values are computed before any tensor is replaced, so that raw tensors may be tied. Modules
    that share their parametrizations share the value.

    Args:
        model: the module whose tensors, and those of its submodules, are replaced.

    Raises:
        TypeError: If ``model`` is not a module.

    Example:
        >>> layer = fastparam.parametrizations.symmetric(torch.nn.Linear(4, 4))
        >>> sorted(fastparam.fold(layer).state_dict())
        ['bias', 'weight']
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"fold: expected model to be a torch.nn.Module, got {described(model)}")
    places, values, left = [], {}, []
    for path, module in model.named_modules():
        # In _modules, since a wrapper may answer for the module inside it.
        if "parametrizations" not in module._modules or not parametrize.is_parametrized(module):
            continue
        for name, applied in module.parametrizations.items():
            foreign = [type(made) for made in applied if type(made).__module__.split(".")[0] != __package__]
            if foreign:
                cls, place = foreign[0], f"{path}.{name}".removeprefix(".")
                left.append(
                    f"'{place}' is left as it is, because its parametrization "
                    f"({cls.__module__}.{cls.__qualname__}) is not from {__package__}"
                )
                continue
            places.append((module, name))
            if applied not in values:
                values[applied] = _value(applied)
    if left:
        warnings.warn(f"fold: {'; '.join(left)}", stacklevel=2)
    for module, name in places:
        value = values[module.parametrizations[name]]
        own_class(module)  # of deep copies, from which the name is removed for this one alone
        parametrize.remove_parametrizations(module, name, leave_parametrized=False)
        (module._parameters if isinstance(value, nn.Parameter) else module._buffers)[name] = value
    return model


def _value(applied: parametrize.ParametrizationList) -> Tensor:
    original = applied.original
    with torch.inference_mode(original.is_inference()), torch.no_grad():
        value: Tensor = applied().detach()
    return nn.Parameter(value, original.requires_grad) if isinstance(original, nn.Parameter) else value
