"""Products that autocast would round."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.amp import is_autocast_available


def casts(X: object) -> bool:
    """Whether X is a tensor on whose device autocast is on."""
    if not isinstance(X, Tensor):
        return False
    device = X.device.type
    return is_autocast_available(device) and torch.is_autocast_enabled(device)


def without_autocast(X: Tensor) -> AbstractContextManager[Any]:
    """Returns a context in which nothing is cast on the device of X."""
    device = X.device.type
    return torch.autocast(device, enabled=False) if is_autocast_available(device) else nullcontext()
