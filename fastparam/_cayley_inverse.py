"""The inverse of the Cayley map, for every orthogonal matrix: Q = cayley(A) D with D diagonal of signs."""

from __future__ import annotations

import math
from contextlib import suppress

import torch
from torch import Tensor

from ._arguments import has_no_data
from ._orthogonality import checked_orthogonal, double_of, tolerance

_LARGE = 128  # order from which double precision costs more than to try without
# What a matrix may lose on the way there and back before other signs are tried.
_LOSS = {torch.float32: 5e-6, torch.complex64: 5e-6, torch.float64: 5e-13, torch.complex128: 5e-13}
_LOST = 0.2  # a loss that no rounding explains, not even to bfloat16: X has no digits in its dtype
# Entries of alpha X from which the matrix, in its dtype, no longer tells them, and no gradient reaches them.
_FAR = {torch.float32: 1e4, torch.complex64: 1e4, torch.float64: 1e8, torch.complex128: 1e8}


def greedy_signs(Q: Tensor) -> Tensor:
    """Returns real signs D, of shape (..., k), such that every pivot in the elimination of the first k rows
    of Q + D has size 1 and more.

    Each sign is that of the pivot (of its real part) to which it is added. A Householder reflection chooses
    the opposite sign for R, and so D = -diag(R) in Q = H R; where it reflects nothing, R is the pivot itself
    (Ballard et al., Reconstructing Householder vectors from Tall-Skinny QR, 2014). Q D + I is then well
    conditioned in practice, for every determinant and all eigenvalues of Q.
    """
    R, tau = torch.geqrf(Q)
    return torch.where((R.diagonal(dim1=-2, dim2=-1).real < 0) == (tau == 0), -1.0, 1.0)


def inverse(Q: Tensor, alpha: float, lower: bool) -> Tensor:
    """Returns X with stiefel_cayley(X, alpha, lower) = Q for a tall or square Q. The entries that are not
    read are zero.

    The result is not finite if Q has the eigenvalue -1.
    """
    k = Q.shape[-1]
    A = _cayley(Q[..., :k, :])
    if k < Q.shape[-2]:
        B = (Q[..., k:, :] @ A + Q[..., k:, :]) / -2
        return torch.cat([_skew_part(A - B.mH @ B, lower), B], -2).div_(alpha)
    return _skew_part(A, lower).div_(alpha)


def _skew_part(A: Tensor, lower: bool) -> Tensor:
    """Returns the triangle T with T - T^H = (A - A^H) / 2."""
    T: Tensor
    if A.is_complex():
        T = A - A.mH
        T.diagonal(dim1=-2, dim2=-1).div_(2)  # counted twice by T - T^H
        T = T.tril() if lower else T.triu()
    else:
        T = torch.ops.fastparam.skew_adjoint.default(A, lower)
    return T.div_(2)


def _cayley(Q: Tensor) -> Tensor:
    """Returns (I + Q)^-1 (I - Q), which is not finite if Q has the eigenvalue -1."""
    A: Tensor
    if not Q.is_complex():
        with suppress(RuntimeError):  # LinAlgError, by a single matrix of the batch
            A = torch.ops.fastparam.cayley.default(Q)
            return A
    identity = torch.eye(Q.shape[-1], dtype=Q.dtype, device=Q.device)
    A = 2 * torch.linalg.inv_ex(Q + identity).inverse - identity
    return A


def inverse_with_signs(
    op: str, Q: Tensor, alpha: float, lower: bool, signs: Tensor | None, remedy: str
) -> tuple[Tensor, Tensor | None]:
    """Returns X with stiefel_cayley(X, alpha, lower, signs) = Q for a tall or square Q, and the signs if they
    have to change.

    Raises NotOrthogonalError unless the columns are orthonormal. If signs is None, a matrix that needs signs
    is refused, and the error names the remedy.
    """
    if has_no_data(Q):
        return torch.zeros_like(Q), None
    n, dtype = Q.shape[-2], Q.dtype
    kept = tried = greedy = (
        torch.ones((*Q.shape[:-2], Q.shape[-1]), device=Q.device)
        if signs is None
        else torch.where(signs.real < 0, -1.0, 1.0)
    )
    # A matrix that comes back is orthogonal, since the map has no other values, and is not checked again. If
    # its norm tells that it is not, the work is saved.
    proof = tolerance(dtype, n) / (3 * math.sqrt(n))
    promising = dtype in _LOSS and abs(float(torch.linalg.vector_norm(Q)) ** 2 * n / Q.numel() - 1) < 0.01
    for checked in (False, True) if promising else (True,):
        if checked:
            Q = checked_orthogonal(op, Q).to(dtype)
        if signs is not None:
            greedy = greedy_signs(Q.to(torch.promote_types(dtype, torch.float32)))
            if n == Q.shape[-1] and not Q.is_complex():
                # det Q is the product of the greedy signs, and Q D has the eigenvalue -1 where det Q D = -1
                tried = torch.where((greedy * kept).prod(-1, keepdim=True) < 0, greedy, kept)
        X, loss = _inverse_and_loss(Q, alpha, lower, tried)
        if (loss <= proof).all():
            break
    allowed, far = _allowed(dtype), _FAR.get(dtype, 100) / abs(alpha)

    def serves(X: Tensor, loss: Tensor) -> Tensor:
        return (loss <= allowed) & (X.abs().amax((-2, -1)) <= far)

    fails = ~serves(X, loss)
    if signs is None:
        if fails.any() and not (loss <= torch.finfo(dtype).eps ** 0.5).all():
            raise ValueError(
                f"{op}: expected a matrix without an eigenvalue near -1, "
                f"which the Cayley map does not reach without {remedy}"
            )
        return X, None
    if fails.any():
        Y, other_loss = _inverse_and_loss(Q, alpha, lower, greedy)
        better = fails & ((other_loss < loss) | (loss.isnan() & ~other_loss.isnan()) | serves(Y, other_loss))
        if not (torch.where(better, other_loss, loss) <= _LOST).all():
            name = str(dtype).removeprefix("torch.")
            raise ValueError(f"{op}: expected an alpha for which {name} can represent X, got {alpha:g}")
        X, tried = torch.where(better[..., None, None], Y, X), torch.where(better[..., None], greedy, tried)
    return X, None if torch.equal(tried, kept) else tried.to(signs.dtype)


def _inverse_and_loss(Q: Tensor, alpha: float, lower: bool, signs: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the inverse with these signs, and the loss of each matrix on the way there and back, which is
    NaN if there is no inverse.

    Large matrices are computed in the precision of the dtype, if they lose little or, with these signs,
    everything; all others in double precision.
    """
    double, single = double_of(Q), torch.promote_types(Q.dtype, torch.float32)
    QD = Q * signs.unsqueeze(-2).to(Q.dtype)
    for work in (single, double) if Q.shape[-1] >= _LARGE else (double,):
        X = inverse(QD.to(work), alpha, lower).to(Q.dtype)
        there = torch.ops.fastparam.stiefel_cayley.default(X, alpha, lower, signs)
        loss = (there - Q).abs().amax((-2, -1))
        if ((loss <= _allowed(Q.dtype)) | ~(loss <= 0.1)).all():
            break
    return X, loss


def _allowed(dtype: torch.dtype) -> float:
    return _LOSS.get(dtype, 4 * torch.finfo(dtype).eps)
