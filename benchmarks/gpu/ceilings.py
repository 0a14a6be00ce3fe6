"""Measures the limits of a device, its rates of copying memory and of multiplying matrices, and computes the
time that they allow for a case.
"""

from __future__ import annotations

import math
import statistics

import torch
from measure import DTYPE_NAMES, Case, clock
from torch import Tensor

COPIED = 2**30  # bytes per buffer, on a GPU: much larger than any cache
ORDER = 8192
RATES = {
    torch.float32: 1,
    torch.float64: 2,
    torch.bfloat16: 1,
}  # dtype: divisor of the order; some GPUs are slow in float64


def copy_rate(device: str, size: int = COPIED, rounds: int = 15) -> float:
    """Bytes per second of a copy within the device. Both the bytes read and the bytes written are counted."""
    buffers = [torch.randn(size // 4, device=device) for _ in range(4)]

    def copy(target: Tensor, source: Tensor) -> Tensor:
        return target.copy_(source)

    pairs = [(buffers[i], buffers[i + 1]) for i in (0, 2)]
    clock(copy, pairs)
    return 2 * 2 * buffers[0].nbytes / statistics.median(clock(copy, pairs) for _ in range(rounds))


def product_rate(device: str, dtype: torch.dtype, order: int = ORDER, rounds: int = 5) -> float:
    """Operations per second of one large matrix product, in the precision of its dtype."""
    A, B = (torch.randn(order, order, device=device).to(dtype) for _ in range(2))
    out = torch.empty_like(A)

    def multiply(A: Tensor, B: Tensor) -> Tensor:
        return torch.mm(A, B, out=out)

    clock(multiply, [(A, B)])
    return 2 * order**3 / statistics.median(clock(multiply, [(A, B)]) for _ in range(rounds))


def measured(device: str, size: int = COPIED, order: int = ORDER) -> dict[str, float]:
    """The ceilings by name: bytes per second, and operations per second of each dtype."""
    allowed = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = False  # the ops compute in full float32
    try:
        rates = {
            DTYPE_NAMES[dtype]: product_rate(device, dtype, order // divisor)
            for dtype, divisor in RATES.items()
        }
    finally:
        torch.backends.cuda.matmul.allow_tf32 = allowed
    return {"copy": copy_rate(device, size), **rates}


def floor_seconds(case: Case, rates: dict[str, float]) -> float:
    """The counted bytes at the rate of a copy, or the counted operations at the rate of a matrix product,
    whichever takes longer. NaN if they are not counted.

    Half precision is computed in float32.
    """
    arithmetic = rates["float64" if case.dtype == torch.float64 else "float32"]
    return math.nan if math.isnan(case.moved) else max(case.moved / rates["copy"], case.flops / arithmetic)
