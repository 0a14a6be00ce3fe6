"""The inverse of the Cayley map, for every orthogonal matrix: Q = cayley(A) D with D diagonal of signs."""

from __future__ import annotations

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

_PANEL = 32  # columns eliminated one by one before the rest is updated by products
# What a matrix may lose on the way there and back before signs are used.
_LOSS = {torch.float32: 5e-6, torch.complex64: 5e-6, torch.float64: 5e-13, torch.complex128: 5e-13}


class NotOrthogonalError(ValueError, NotImplementedError):
    r"""A matrix has no inverse under a map onto orthogonal matrices.

    .. math:: \max |Q^T Q - I| > \min(0.05, 1000 \sqrt{n} \, \epsilon)

    An assignment shows it to the user; on registration torch takes the second base class as "start from this weight as the free parameter".

    Example:
        >>> try:
        ...     fastparam.SkewCayley().right_inverse(2 * torch.eye(3))
        ... except fastparam.NotOrthogonalError as e:
        ...     print(e)
        SkewCayley: expected a matrix with orthonormal rows and columns, got one with max |Q^T Q - I| = 3
    """


def check_orthogonal(op: str, Q: Tensor) -> None:
    """Raises NotOrthogonalError unless the columns of every (tall) matrix are orthonormal, as far as its dtype tells."""
    if Q.is_meta or isinstance(Q, FakeTensor) or Q.numel() == 0:
        return
    wide = Q.to(double_of(Q))
    error = (wide.mH @ wide - torch.eye(Q.shape[-1], dtype=wide.dtype, device=Q.device)).abs().amax().item()
    if not error <= min(0.05, 1000 * Q.shape[-2] ** 0.5 * torch.finfo(Q.dtype).eps):  # written so that NaN fails
        which = "columns" if Q.shape[-2] > Q.shape[-1] else "rows and columns"
        raise NotOrthogonalError(f"{op}: expected a matrix with orthonormal {which}, got one with max |Q^T Q - I| = {error:.2g}")


def double_of(Q: Tensor) -> torch.dtype:
    """The double precision dtype of a real or complex tensor."""
    return torch.complex128 if Q.is_complex() else torch.float64


def greedy_signs(Q: Tensor) -> Tensor:
    """Returns signs D (phases, if complex), of shape (..., n), such that elimination of Q + D meets pivots of size 1 and more.

    Each sign is that of the pivot it is added to, as in LAPACK's orhr_col (Ballard et al., Reconstructing Householder vectors from
    Tall-Skinny QR, 2014). Then Q D^-1 + I is well conditioned in practice, whatever the determinant and eigenvalues of Q.
    """
    S, n = Q.clone(), Q.shape[-1]
    signs = torch.ones(Q.shape[:-1], dtype=Q.dtype, device=Q.device)
    for start in range(0, n, _PANEL):
        stop = min(start + _PANEL, n)
        for j in range(start, stop):
            pivot = S[..., j, j].clone()
            signs[..., j] = torch.where(pivot == 0, 1, pivot.sgn())
            S[..., j + 1 :, j] /= (pivot + signs[..., j])[..., None]
            S[..., j + 1 :, j + 1 : stop] -= S[..., j + 1 :, j, None] * S[..., j, None, j + 1 : stop]
        rows = torch.linalg.solve_triangular(S[..., start:stop, start:stop], S[..., start:stop, stop:], upper=False, unitriangular=True)
        S[..., stop:, stop:] -= S[..., stop:, start:stop] @ rows
    return signs


def inverse(Q: Tensor, alpha: float) -> Tensor:
    """Returns X of the shape of the tall or square Q in float64: A1 skew-symmetric over B, with stiefel_cayley(X, alpha) = Q."""
    k = Q.shape[-1]
    identity = torch.eye(k, dtype=Q.dtype, device=Q.device)
    C = 2 * torch.linalg.inv(Q[..., :k, :] + identity)
    B = Q[..., k:, :] @ C / -2
    A = C - identity - B.mH @ B
    return torch.cat([(A - A.mH) / 2, B], -2) / alpha


def inverse_with_signs(Q: Tensor, alpha: float) -> tuple[Tensor, Tensor | None]:
    """Returns X in float64 and D of shape (..., k), or None for all one, with stiefel_cayley(X, alpha) * D[..., None, :] = Q."""
    wide, signs = Q.to(double_of(Q)), None
    if Q.is_meta or isinstance(Q, FakeTensor) or Q.numel() == 0:
        return torch.zeros_like(wide), None
    X = _plain_inverse(wide, alpha, Q.dtype)
    if X is None:
        signs = greedy_signs(wide[..., : Q.shape[-1], :])
        X = inverse(wide * signs.conj()[..., None, :], alpha)
    return X, signs


def _plain_inverse(Q: Tensor, alpha: float, dtype: torch.dtype) -> Tensor | None:
    """The inverse without signs, or None where Q is too near to the eigenvalue -1 for it."""
    C, info = torch.linalg.inv_ex(Q[..., : Q.shape[-1], :] + torch.eye(Q.shape[-1], dtype=Q.dtype, device=Q.device))
    if info.any() or not C.isfinite().all():
        return None
    X = inverse(Q, alpha)
    there = torch.ops.fastparam.stiefel_cayley.default(X.tril().to(dtype), alpha, True).to(Q.dtype)
    loss = (there - Q).abs().amax().item()
    return X if loss <= _LOSS.get(dtype, 4 * torch.finfo(dtype).eps) else None
