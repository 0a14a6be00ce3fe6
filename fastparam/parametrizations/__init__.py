"""Functions that parametrize a tensor of a layer, which these pages call verbs. They have the signatures of
``torch.nn.utils.parametrizations``, of ``torch.nn.utils.prune``, and, for linear maps, of geotorch.
"""

from ._checkpoints import from_torch
from .orthogonal import orthogonal, positive_definite, skew, symmetric
from .prune import (
    custom_from_mask,
    global_unstructured,
    is_pruned,
    l1_unstructured,
    ln_structured,
    random_structured,
    random_unstructured,
    remove,
)

__all__ = [
    "custom_from_mask",
    "from_torch",
    "global_unstructured",
    "is_pruned",
    "l1_unstructured",
    "ln_structured",
    "orthogonal",
    "positive_definite",
    "random_structured",
    "random_unstructured",
    "remove",
    "skew",
    "symmetric",
]
