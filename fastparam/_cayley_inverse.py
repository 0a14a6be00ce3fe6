"""The inverse of the Cayley map, for every orthogonal matrix: Q = cayley(A) D with D diagonal of signs."""

from __future__ import annotations

import math
from contextlib import suppress

import torch
from torch import Tensor

from . import _C
from ._arguments import has_no_data, in_memory
from ._orthogonality import checked_orthogonal, double_of, tolerance

_LARGE = 96  # order from which an estimate of the loss costs less than the way back
# What a matrix may lose on the way there and back before other signs are tried.
_LOSS = {torch.float32: 5e-6, torch.complex64: 5e-6, torch.float64: 5e-13, torch.complex128: 5e-13}
_LOST = 0.2  # a loss that no rounding explains, not even to bfloat16: X has no digits in its dtype
# Entries of alpha X from which the matrix, in its dtype, no longer tells them, and no gradient reaches them.
_FAR = {torch.float32: 1e4, torch.complex64: 1e4, torch.float64: 1e8, torch.complex128: 1e8}


def greedy_signs(Q: Tensor) -> Tensor:
    """Returns real signs D, of shape (..., k), such that every pivot in the elimination of the first k rows
    of Q + D has size 1 and more.

    Each sign is that of the pivot (of its real part) to which it is added. Q D + I is then well conditioned
    in practice, for every determinant and all eigenvalues of Q.
    """
    if _has_kernel(Q):
        return _C.eliminate(Q[..., : Q.shape[-1], :], None, math.inf, True)[1]
    # A Householder reflection chooses the opposite sign for R, and so D = -diag(R) in Q = H R; where it
    # reflects nothing, R is the pivot itself (Ballard et al., Reconstructing Householder vectors from
    # Tall-Skinny QR, 2014).
    R, tau = torch.geqrf(Q.to(torch.promote_types(Q.dtype, torch.float32)))
    return torch.where((R.diagonal(dim1=-2, dim2=-1).real < 0) ^ tau.bool(), -1.0, 1.0)


def _has_kernel(Q: Tensor) -> bool:
    """Whether the kernel can read the matrices. It is no op, so that nothing unwraps a tensor for it."""
    return Q.is_cpu and not Q.is_complex() and in_memory(Q)


def _cayley(Q: Tensor, signs: Tensor, work: torch.dtype) -> Tensor:
    """Returns (I + Q D)^-1 (I - Q D), which is not finite if Q D has the eigenvalue -1."""
    QD = Q.to(work) * signs.unsqueeze(-2)
    if not Q.is_complex():
        with suppress(RuntimeError):  # LinAlgError, by a single matrix of the batch
            return _C.cayley(QD)
    identity = torch.eye(Q.shape[-1], dtype=work, device=Q.device)
    A: Tensor = 2 * torch.linalg.inv_ex(QD + identity).inverse - identity
    return A


def inverse_with_signs(
    op: str, Q: Tensor, alpha: float, lower: bool, signs: Tensor | None, remedy: str
) -> tuple[Tensor, Tensor | None]:
    """Returns X with stiefel_cayley(X, alpha, lower, signs) = Q for a tall or square Q, and the signs if they
    have to change. The entries that are not read are zero.

    Raises NotOrthogonalError unless the columns are orthonormal. If signs is None, a matrix that needs signs
    is refused, and the error names the remedy.
    """
    if has_no_data(Q):
        return torch.zeros_like(Q), None
    n, k, dtype = *Q.shape[-2:], Q.dtype
    allowed, far = _allowed(dtype), _FAR.get(dtype, 100) / abs(alpha)
    given = torch.ones((*Q.shape[:-2], k), device=Q.device) if signs is None else signs
    # A matrix that comes back is orthogonal, since the map has no other values, and is not checked again. If
    # its norm tells that it is not, the work is saved.
    proof = tolerance(dtype, n) / (3 * math.sqrt(n))
    promising = dtype in _LOSS and abs(float(torch.linalg.vector_norm(Q)) ** 2 * n / Q.numel() - 1) < 0.01
    for checked in (False, True) if promising else (True,):
        if checked:
            Q = checked_orthogonal(op, Q).to(dtype)
        X, size, loss, D, changed = _inverse_and_loss(Q, alpha, lower, given, signs is not None)
        most = _largest(loss)
        if most <= proof:
            break
    if most <= allowed and size <= far:
        return X, D.to(given.dtype) if changed else None

    def near(X: Tensor) -> Tensor:
        return X.abs().amax((-2, -1)) <= far

    def serves(X: Tensor, loss: Tensor) -> Tensor:
        return (loss <= allowed) & near(X)

    # A lost eigenvalue changes the entries of a large matrix by less than the root of bfloat16's rounding.
    limit = min(torch.finfo(dtype).eps ** 0.5, 2**-5)
    enough = loss <= limit if signs is None else serves(X, loss)
    if signs is None and enough.all():
        return X, None
    Y, _, other_loss, greedy, _ = _inverse_and_loss(Q, alpha, lower, None)
    # What a matrix loses because it is not quite orthogonal, it loses with all signs.
    better = torch.where(near(X), 2, 0.5) * other_loss < loss
    better = ~enough & (better | (loss.isnan() & ~other_loss.isnan()) | serves(Y, other_loss))
    if signs is None and better.any():
        raise ValueError(
            f"{op}: expected a matrix without an eigenvalue near -1, "
            f"which the Cayley map does not reach without {remedy}"
        )
    if not (torch.where(better, other_loss, loss) <= _LOST).all():
        name = str(dtype).removeprefix("torch.")
        raise ValueError(f"{op}: expected an alpha for which {name} can represent X, got {alpha:g}")
    if signs is None:
        return X, None
    X, D = torch.where(better[..., None, None], Y, X), torch.where(better[..., None], greedy, D)
    return X, None if torch.equal(D < 0, signs.real < 0) else D.to(signs.dtype)


def _inverse_and_loss(
    Q: Tensor, alpha: float, lower: bool, signs: Tensor | None, free: bool = False
) -> tuple[Tensor, float, Tensor, Tensor, bool]:
    """Returns the inverse with these signs, or with greedy ones if there are none, its largest entry, and the
    loss of each matrix on the way there and back, which is NaN if there is no inverse; then the signs, and
    whether they are not those that were given. If they are free, the kernel chooses greedy ones where it
    finds no inverse within reach.

    The precision of the dtype, and double precision if that loses too much. Where an estimate tells that a
    large matrix loses little, the way back is saved.
    """
    n, k = Q.shape[-2:]
    allowed = _allowed(Q.dtype)
    single, double = torch.promote_types(Q.dtype, torch.float32), double_of(Q)
    changed = signs is None
    for work in (single, double) if single != double else (double,):
        far = _FAR.get(Q.dtype, 100) if free else math.inf
        if n == k and _has_kernel(Q):
            X, size, loss, D, changed = _C.inverse_of_square(
                Q, signs, alpha, lower, far, work == single, allowed, n >= _LARGE
            )
        else:
            top = Q[..., :k, :]
            if _has_kernel(Q):
                A, D, changed = _C.eliminate(top, signs, far, work == single)
            else:
                D = greedy_signs(Q) if signs is None else torch.where(signs.real < 0, -1.0, 1.0)
                A = _cayley(top, D, work)
            X = _parameter(A, Q, D, lower).div_(2 * alpha).to(Q.dtype)
            size = _largest(X.abs())
            loss = (_C.stiefel_cayley(X, alpha, lower, D) - Q).abs().amax((-2, -1))
        if work == double or _largest(loss) <= allowed:
            break
    return X, size, loss, D, changed


def _parameter(A: Tensor, Q: Tensor, signs: Tensor, lower: bool) -> Tensor:
    """Returns 2 alpha X for the Cayley map A of the first rows of Q D: a triangle above B."""
    n, k = Q.shape[-2:]
    if k < n:
        below = (Q[..., k:, :] * signs.unsqueeze(-2).to(Q.dtype)).to(A.dtype)
        B = (below @ A + below) / -2
        return torch.cat([_triangle(A - B.mH @ B, lower), 2 * B], -2)
    return _triangle(A, lower)


def _triangle(A: Tensor, lower: bool) -> Tensor:
    """Returns the triangle T with T - T^H = A - A^H."""
    T: Tensor
    if not A.is_complex():
        T = torch.ops.fastparam.skew_adjoint.default(A, lower)
        return T
    T = A - A.mH
    T.diagonal(dim1=-2, dim2=-1).div_(2)  # counted twice by T - T^H
    return T.tril() if lower else T.triu()


def _largest(x: Tensor) -> float:
    return float(x.amax() if x.dim() else x)


def _allowed(dtype: torch.dtype) -> float:
    return _LOSS.get(dtype, 4 * torch.finfo(dtype).eps)
