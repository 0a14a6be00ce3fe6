"""The distance of a matrix from orthogonality."""

import digits
import torch
from torch import Tensor


def spectral(E: Tensor) -> float:
    """The largest 2-norm of a batch, or nan if an entry is not finite."""
    if E.numel() == 0:
        return 0.0
    return torch.linalg.matrix_norm(E, 2).max().item() if E.isfinite().all() else torch.nan


def defect(Q: Tensor) -> float:
    """The 2-norm of Q^H Q - I, or of Q Q^H - I for wide matrices: the largest one of a batch, or nan if an
    entry is not finite.

    The product has more digits than float64, so that it adds nothing to the defect of a matrix in float64.
    """
    precise = Q.dtype in (torch.float64, torch.complex128)
    Q = Q.detach().to(torch.complex128 if Q.is_complex() else torch.float64)
    Q = Q if Q.shape[-2] >= Q.shape[-1] else Q.mH
    high, low = digits.product(Q.mH, Q) if precise else (Q.mH @ Q, 0)
    return spectral(high - digits.identity(high) + low)
