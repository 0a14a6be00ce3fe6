"""Whether matrices are orthogonal, within the accuracy of their dtype."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ._arguments import has_no_data
from ._without_autocast import without_autocast

# The dtypes that a matrix may have been rounded to before.
_HALF = (torch.float16, torch.bfloat16)
_LOWER = {torch.float32: _HALF, torch.float64: (torch.float32, *_HALF), torch.complex128: (torch.complex64,)}


class NotOrthogonalError(ValueError, NotImplementedError):
    r"""Raised if a matrix has no inverse under a map onto orthogonal matrices.

    .. math:: \max |Q^T Q - I| > \min(0.05, 1000 \sqrt{n} \, \epsilon)

    In float16 and bfloat16, whose rounding alone would allow a column of norm 2, also if the Frobenius norm
    of :math:`Q^T Q - I` is larger than :math:`\min(0.5, 8 \sqrt{k} \, \epsilon)` for k columns.

    On an assignment the user sees this error. On registration, torch takes its second base class as "start
    from this weight as the free parameter".

    Example:
        >>> try:
        ...     fastparam.SkewCayley().right_inverse(2 * torch.eye(3))
        ... except fastparam.NotOrthogonalError as e:
        ...     print(e)
        SkewCayley: expected a matrix with orthonormal rows and columns, got one with max |Q^T Q - I| = 3
    """


def checked_orthogonal(op: str, Q: Tensor) -> Tensor:
    """Returns the (tall) matrices in double precision. Raises NotOrthogonalError unless their columns are
    orthonormal within the accuracy of the dtype.

    A matrix that was rounded to a lower dtype before is accepted within the accuracy of that one, and its
    nearest orthogonal matrix is returned.
    """
    precise = Q.to(double_of(Q))
    if has_no_data(Q):
        return precise
    allowed = tolerance(Q.dtype, Q.shape[-2])
    # At half the cost, where the dtype is enough.
    if Q.dtype in (torch.float32, torch.complex64) and orthogonality_defect(Q) <= allowed:
        return precise
    E = _gram_error(precise)
    error = float(E.abs().amax())
    norm = float(torch.linalg.vector_norm(E, dim=(-2, -1)).amax())

    def rounded_to(dtype: torch.dtype) -> bool:
        near = dtype not in _HALF or norm <= min(0.5, 8 * math.sqrt(Q.shape[-1]) * torch.finfo(dtype).eps)
        return near and error <= tolerance(dtype, Q.shape[-2])

    if rounded_to(Q.dtype):
        return precise
    for lower in _LOWER.get(Q.dtype, ()):
        if rounded_to(lower) and torch.equal(Q.to(lower).to(Q.dtype), Q):
            return nearest_orthogonal(precise)
    which = "columns (rows, if it is wide)" if Q.shape[-2] > Q.shape[-1] else "rows and columns"
    found = f"max |Q^T Q - I| = {error:.2g}" if precise.isfinite().all() else "nan or inf"
    if error <= allowed:
        found += f" and a Frobenius norm of {norm:.2g} of Q^T Q - I"
    raise NotOrthogonalError(f"{op}: expected a matrix with orthonormal {which}, got one with {found}")


def orthogonality_defect(Q: Tensor) -> float:
    """Returns max |Q^H Q - I|."""
    return float(_gram_error(Q).abs().amax())


def _gram_error(Q: Tensor) -> Tensor:
    with without_autocast(Q):
        E = Q.mH @ Q
    return E - torch.eye(Q.shape[-1], dtype=Q.dtype, device=Q.device)


def tolerance(dtype: torch.dtype, n: int) -> float:
    """Returns the largest max |Q^H Q - I| of what counts as orthogonal, for columns of length n."""
    return min(0.05, 1000 * math.sqrt(n) * torch.finfo(dtype).eps)


def nearest_orthogonal(Q: Tensor) -> Tensor:
    """Returns the polar factor of a matrix near to it, by Newton's iteration Q (3 I - Q^H Q) / 2."""
    I = torch.eye(Q.shape[-1], dtype=Q.dtype, device=Q.device)
    for _ in range(8):
        E = Q.mH @ Q
        if (E - I).abs().amax() <= 4 * torch.finfo(Q.dtype).eps:
            break
        Q = Q @ (1.5 * I - 0.5 * E)
    return Q


def double_of(Q: Tensor) -> torch.dtype:
    """Returns the double precision dtype, real or complex, for a tensor."""
    return torch.complex128 if Q.is_complex() else torch.float64
