"""Checkpoints of ``torch.nn.utils.prune``."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

from .._arguments import described
from .._prune_rules import as_bool


def from_torch(state_dict: Mapping[str, Any]) -> dict[str, Any]:
    """Converts a ``state_dict`` of layers that ``torch.nn.utils.prune`` has pruned for layers that a verb of
    this package has pruned.

    ``weight_orig`` becomes ``parametrizations.weight.original``, and ``weight_mask`` becomes the bool tensor
    ``parametrizations.weight.0.mask``. All other entries stay the same objects.

    Args:
        state_dict: the state of a pruned module, or of a module that holds pruned modules.

    Raises:
        ValueError: If a mask holds values other than zeros and ones.
        TypeError: If ``state_dict`` is not a mapping, or a mask is not a tensor.

    Example:
        >>> theirs = torch.nn.utils.prune.l1_unstructured(torch.nn.Linear(4, 4), "weight", amount=0.5)
        >>> ours = fastparam.parametrizations.l1_unstructured(torch.nn.Linear(4, 4), "weight", amount=0.5)
        >>> ours.load_state_dict(fastparam.parametrizations.from_torch(theirs.state_dict()))
        <All keys matched successfully>
        >>> torch.equal(ours.weight, theirs.weight)
        True
    """
    if not isinstance(state_dict, Mapping):
        raise TypeError(f"from_torch: expected state_dict to be a mapping, got {described(state_dict)}")
    converted: OrderedDict[str, Any] = OrderedDict()
    vars(converted).update(getattr(state_dict, "__dict__", {}))  # _metadata: the versions of the modules
    for key, value in state_dict.items():
        stem, _, kind = key.rpartition("_")
        prefix, dot, name = stem.rpartition(".")
        if kind not in ("orig", "mask") or not {f"{stem}_orig", f"{stem}_mask"} <= state_dict.keys():
            converted[key] = value
        elif kind == "orig":
            converted[f"{prefix}{dot}parametrizations.{name}.original"] = value
        else:
            converted[f"{prefix}{dot}parametrizations.{name}.0.mask"] = as_bool("from_torch", key, value)
    return converted
