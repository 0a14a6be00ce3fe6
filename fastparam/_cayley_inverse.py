"""The inverse of the Cayley map, for every orthogonal matrix: Q = cayley(A) D with D diagonal of signs."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ._arguments import has_no_data

_PANEL = 32  # columns eliminated one by one before the rest is updated by products
# What a matrix may lose on the way there and back before other signs are tried.
_LOSS = {torch.float32: 5e-6, torch.complex64: 5e-6, torch.float64: 5e-13, torch.complex128: 5e-13}
# Entries of alpha X from which the matrix, in its dtype, no longer tells them, and no gradient reaches them.
_FAR = {torch.float32: 1e4, torch.complex64: 1e4, torch.float64: 1e8, torch.complex128: 1e8}
# The dtypes that a matrix may have been rounded to before.
_HALF = (torch.float16, torch.bfloat16)
_LOWER = {torch.float32: _HALF, torch.float64: (torch.float32, *_HALF), torch.complex128: (torch.complex64,)}


class NotOrthogonalError(ValueError, NotImplementedError):
    r"""A matrix has no inverse under a map onto orthogonal matrices.

    .. math:: \max |Q^T Q - I| > \min(0.05, 1000 \sqrt{n} \, \epsilon)

    An assignment shows it to the user; on registration torch takes the second base class as "start from this
    weight as the free parameter".

    Example:
        >>> try:
        ...     fastparam.SkewCayley().right_inverse(2 * torch.eye(3))
        ... except fastparam.NotOrthogonalError as e:
        ...     print(e)
        SkewCayley: expected a matrix with orthonormal rows and columns, got one with max |Q^T Q - I| = 3
    """


def checked_orthogonal(op: str, Q: Tensor) -> Tensor:
    """Returns the (tall) matrices in double precision; raises NotOrthogonalError unless their columns are
    orthonormal.

    As far as the dtype tells: also of a matrix that was rounded to a lower one and is kept in this, whose
    nearest orthogonal matrix is returned.
    """
    precise = Q.to(double_of(Q))
    if has_no_data(Q):
        return precise
    error = _defect(precise)
    if error <= _tolerance(Q.dtype, Q.shape[-2]):
        return precise
    for lower in _LOWER.get(Q.dtype, ()):
        if error <= _tolerance(lower, Q.shape[-2]) and torch.equal(Q.to(lower).to(Q.dtype), Q):
            return nearest_orthogonal(precise)
    which = "columns" if Q.shape[-2] > Q.shape[-1] else "rows and columns"
    raise NotOrthogonalError(
        f"{op}: expected a matrix with orthonormal {which}, got one with max |Q^T Q - I| = {error:.2g}"
    )


def _defect(Q: Tensor) -> float:
    """max |Q^H Q - I|."""
    E = Q.mH @ Q - torch.eye(Q.shape[-1], dtype=Q.dtype, device=Q.device)
    return float(E.abs().amax())


def _tolerance(dtype: torch.dtype, n: int) -> float:
    return min(0.05, 1000 * math.sqrt(n) * torch.finfo(dtype).eps)


def nearest_orthogonal(Q: Tensor) -> Tensor:
    """Newton's iteration Q (3 I - Q^H Q) / 2 for the polar factor of a matrix near to it."""
    I = torch.eye(Q.shape[-1], dtype=Q.dtype, device=Q.device)
    for _ in range(8):
        E = Q.mH @ Q
        if (E - I).abs().amax() <= 4 * torch.finfo(Q.dtype).eps:
            break
        Q = Q @ (1.5 * I - 0.5 * E)
    return Q


def double_of(Q: Tensor) -> torch.dtype:
    """The double precision dtype of a real or complex tensor."""
    return torch.complex128 if Q.is_complex() else torch.float64


def greedy_signs(Q: Tensor) -> Tensor:
    """Returns signs D, of shape (..., n) and real, such that elimination of Q + D meets pivots of size 1 and
    more.

    Each sign is that of the pivot (of its real part) which it is added to, as in LAPACK's orhr_col (Ballard
    et al., Reconstructing Householder vectors from Tall-Skinny QR, 2014). Then Q D + I is well conditioned in
    practice, whatever the determinant and eigenvalues of Q.
    """
    S, n = Q.clone(), Q.shape[-1]
    signs = torch.ones(Q.shape[:-1], dtype=torch.float64, device=Q.device)
    for start in range(0, n, _PANEL):
        stop = min(start + _PANEL, n)
        for j in range(start, stop):
            pivot = S[..., j, j].clone()
            signs[..., j] = torch.where(pivot.real < 0, -1.0, 1.0)
            S[..., j + 1 :, j] /= (pivot + signs[..., j])[..., None]
            S[..., j + 1 :, j + 1 : stop] -= S[..., j + 1 :, j, None] * S[..., j, None, j + 1 : stop]
        rows = torch.linalg.solve_triangular(
            S[..., start:stop, start:stop], S[..., start:stop, stop:], upper=False, unitriangular=True
        )
        S[..., stop:, stop:] -= S[..., stop:, start:stop] @ rows
    return signs


def inverse(Q: Tensor, alpha: float) -> Tensor:
    """Returns X of the shape of the tall or square Q in double precision: A1 skew-symmetric over B, with
    stiefel_cayley(X, alpha) = Q.

    Not finite where Q has the eigenvalue -1.
    """
    k = Q.shape[-1]
    identity = torch.eye(k, dtype=Q.dtype, device=Q.device)
    C = 2 * torch.linalg.inv_ex(Q[..., :k, :] + identity).inverse
    B = Q[..., k:, :] @ C / -2
    A = C - identity - B.mH @ B
    return torch.cat([(A - A.mH) / 2, B], -2) / alpha


def inverse_with_signs(
    op: str, Q: Tensor, dtype: torch.dtype, alpha: float, signs: Tensor | None, remedy: str
) -> tuple[Tensor, Tensor | None]:
    """Returns X of the tall Q, both in double precision, with stiefel_cayley(X, alpha, signs) = Q, and the
    signs if they are to change.

    Where they are None, and so are to be, a matrix that would need them is refused, and the remedy named.
    """
    if has_no_data(Q):
        return torch.zeros_like(Q), None
    ones = torch.ones((*Q.shape[:-2], Q.shape[-1]), dtype=torch.float64, device=Q.device)
    kept = ones if signs is None else torch.where(signs.real < 0, -ones, ones)
    X, loss = _inverse_and_loss(Q, dtype, alpha, kept)
    allowed, far = _LOSS.get(dtype, 4 * torch.finfo(dtype).eps), _FAR.get(dtype, 100) / abs(alpha)

    def serves(X: Tensor, loss: Tensor) -> Tensor:
        return (loss <= allowed) & (X.abs().amax((-2, -1)) <= far)

    fails = ~serves(X, loss)
    if not fails.any():
        return X, None
    if signs is None:
        if not (loss <= torch.finfo(dtype).eps ** 0.5).all():
            raise ValueError(
                f"{op}: expected a matrix without an eigenvalue near -1, "
                f"which the Cayley map does not reach without {remedy}"
            )
        return X, None
    greedy = greedy_signs(Q[..., : Q.shape[-1], :])
    Y, other_loss = _inverse_and_loss(Q, dtype, alpha, greedy)
    better = fails & ((other_loss < loss) | (loss.isnan() & ~other_loss.isnan()) | serves(Y, other_loss))
    if torch.where(better, other_loss, loss).isnan().any():
        name = str(dtype).removeprefix("torch.")
        raise ValueError(f"{op}: expected a matrix whose X is finite in {name} with alpha = {alpha:g}")
    if not better.any():
        return X, None
    return torch.where(better[..., None, None], Y, X), torch.where(better[..., None], greedy, kept).to(
        signs.dtype
    )


def _inverse_and_loss(Q: Tensor, dtype: torch.dtype, alpha: float, signs: Tensor) -> tuple[Tensor, Tensor]:
    """The inverse with these signs, and what each matrix loses on the way there and back; NaN where there is
    none.
    """
    X = inverse(Q * signs[..., None, :], alpha)
    T = X.tril().to(dtype)
    T.diagonal(dim1=-2, dim2=-1).div_(2)  # counted twice by T - T^H
    there = torch.ops.fastparam.stiefel_cayley.default(T, alpha, True, signs)
    return X, (there.to(Q.dtype) - Q).abs().amax((-2, -1))
