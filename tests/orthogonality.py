"""How far a matrix is from orthogonal."""

import digits
import torch
from torch import Tensor


def defect(Q: Tensor) -> float:
    """|Q^H Q - I|, of wide matrices |Q Q^H - I|, in the Frobenius norm: the largest of a batch, nan if an
    entry is not finite.

    The product has more digits than float64, so that it adds nothing to the defect of a matrix in float64.
    """
    if Q.numel() == 0:
        return 0.0
    Q = Q.detach().to(torch.complex128 if Q.is_complex() else torch.float64)
    Q = Q if Q.shape[-2] >= Q.shape[-1] else Q.mH
    high, low = digits.product(Q.mH, Q)
    return torch.linalg.matrix_norm(high - digits.identity(high) + low).max().item()
