"""Principal logarithms of orthogonal and of positive definite matrices, in double precision."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ._arguments import check_square, has_no_data
from ._orthogonality import checked_orthogonal, double_of, nearest_orthogonal


class NotPositiveDefiniteError(ValueError, NotImplementedError):
    r"""Raised if a matrix has no inverse under a map onto positive definite matrices.

    .. math:: \max |P - P^H| > \min(0.05, 100 \, \epsilon) \max |P| \quad \text{or} \quad
        \lambda_{\min}(P) \le 0

    On an assignment the user sees this error. On registration, torch takes its second base class as "start
    from this weight as the free parameter".

    Example:
        >>> try:
        ...     fastparam.PositiveDefinite().right_inverse(-torch.eye(3))
        ... except fastparam.NotPositiveDefiniteError as e:
        ...     print(e)
        PositiveDefinite: expected a positive definite matrix, got one with the eigenvalue -1
    """


class _Logarithm(torch.autograd.Function):
    @staticmethod
    def forward(op: str, rule: Callable[[str, Tensor], Tensor], X: Tensor) -> Tensor:
        return rule(op, X)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.op = inputs[0]

    @staticmethod
    def backward(ctx: Any, *G: Any) -> Any:
        raise NotImplementedError(f"{ctx.op}: the logarithm has no derivative; detach its argument")

    jvp = backward

    @staticmethod
    def vmap(info: Any, in_dims: Any, op: str, rule: Any, X: Tensor) -> Any:
        return _Logarithm.apply(op, rule, X.movedim(in_dims[2], 0)), 0  # type: ignore[no-untyped-call]


def log_orthogonal(Q: Tensor) -> Tensor:
    r"""Returns the principal logarithm of orthogonal matrices of determinant 1, or of unitary ones.

    .. math:: A = \log Q, \qquad A = -A^H, \quad \|A\|_2 \le \pi, \quad \exp(A) = Q

    Eigenvalues of -1 are allowed; several logarithms exist there, and one of them is returned. The result is
    skew-symmetric bit for bit. The function has no derivative.

    Args:
        Q: tensor of shape :math:`(*, n, n)`, of dtype float32, float64, bfloat16, float16 or complex. It is
            computed in double precision, one matrix after the other.

    Raises:
        NotOrthogonalError: If ``Q`` is not orthogonal or not finite.
        ValueError: If ``Q`` is not a batch of square matrices, has an integer dtype, or holds a matrix of
            determinant -1.
        TypeError: If ``Q`` is not a tensor.
        NotImplementedError: If a gradient is asked for.

    The function solves symmetric eigenproblems only, those of :math:`Q + Q^H` and of the square of the Cayley
    transform, so that equal angles do no harm.

    Example:
        >>> fastparam.functional.log_orthogonal(torch.tensor([[0., -1.], [1., 0.]]))
        tensor([[ 0.0000, -1.5708],
                [ 1.5708,  0.0000]])
    """
    check_square("log_orthogonal", Q, "Q")
    A: Tensor = _Logarithm.apply("log_orthogonal", _log_orthogonal, Q)  # type: ignore[no-untyped-call]
    return A


def log_positive_definite(P: Tensor) -> Tensor:
    r"""Returns the principal logarithm of symmetric (Hermitian) positive definite matrices.

    .. math:: A = V \, \mathrm{diag}(\log \lambda) \, V^H, \qquad P = V \, \mathrm{diag}(\lambda) \, V^H

    The result is symmetric bit for bit. The function has no derivative.

    Args:
        P: tensor of shape :math:`(*, n, n)`, of dtype float32, float64, bfloat16, float16 or complex. It is
            computed in double precision.

    Raises:
        NotPositiveDefiniteError: If ``P`` is not symmetric, not positive definite, or not finite.
        ValueError: If ``P`` is not a batch of square matrices, or has an integer dtype.
        TypeError: If ``P`` is not a tensor.
        NotImplementedError: If a gradient is asked for.

    Source: Higham, Functions of Matrices, 2008, chapter 11.

    Example:
        >>> fastparam.functional.log_positive_definite(torch.eye(2))
        tensor([[0., 0.],
                [0., 0.]])
    """
    check_square("log_positive_definite", P, "P")
    A: Tensor = _Logarithm.apply(  # type: ignore[no-untyped-call]
        "log_positive_definite", _log_positive_definite, P
    )
    return A


def _log_orthogonal(op: str, Q: Tensor) -> Tensor:
    precise = checked_orthogonal(op, Q.detach())
    if not has_no_data(Q) and not Q.is_complex() and bool((torch.linalg.det(precise) < 0).any()):
        raise ValueError(f"{op}: expected a matrix of determinant 1, got one of determinant -1")
    return skew_logarithm(precise).to(Q.dtype)


def _log_positive_definite(op: str, P: Tensor) -> Tensor:
    return symmetric_logarithm(op, P.detach()).to(P.dtype)


# ---- symmetric -------------------------------------------------------------------------------------------


def is_symmetric(P: Tensor) -> bool:
    """As far as the dtype tells, or 0.05; not where an entry is not finite."""
    size = P.abs().amax((-2, -1))
    return bool(((P - P.mH).abs().amax((-2, -1)) <= min(0.05, 100 * torch.finfo(P.dtype).eps) * size).all())


def asymmetry(P: Tensor) -> float:
    """max |P - P^H|."""
    return float((P - P.mH).abs().amax())


def symmetric_logarithm(op: str, P: Tensor) -> Tensor:
    """Of the matrices, in double precision; raises NotPositiveDefiniteError."""
    precise = P.to(double_of(P))
    if has_no_data(P):
        return precise
    if not is_symmetric(P):
        found = f"max |P - P^T| = {asymmetry(precise):.2g}" if precise.isfinite().all() else "nan or inf"
        raise NotPositiveDefiniteError(f"{op}: expected a symmetric matrix, got one with {found}")
    values, V = torch.linalg.eigh(precise / 2 + precise.mH / 2)
    smallest = float(values.amin())
    if not smallest > 0:
        raise NotPositiveDefiniteError(
            f"{op}: expected a positive definite matrix, got one with the eigenvalue {smallest:.2g}"
        )
    A = V * values.log()[..., None, :] @ V.mH
    result: Tensor = (A + A.mH) / 2
    return result


# ---- skew ------------------------------------------------------------------------------------------------


def skew_logarithm(Q: Tensor) -> Tensor:
    """Of orthogonal matrices of determinant 1, or unitary ones, in double precision."""
    if has_no_data(Q):
        return torch.zeros_like(Q)
    flat = nearest_orthogonal(Q).reshape(-1, *Q.shape[-2:])
    return torch.stack([_skew_logarithm(matrix) for matrix in flat]).view(Q.shape)


def _skew_logarithm(Q: Tensor) -> Tensor:
    """The eigenvalues of (Q + Q^H) / 2 are the cosines of the angles. Those near pi and all others are taken
    apart: invariant subspaces, on which -Q and Q are far from -1.
    """
    values, V = torch.linalg.eigh((Q + Q.mH) / 2)
    near = _widest_gap(values)
    V2, V1 = V[:, :near], V[:, near:]
    A = V1 @ _away_from_pi(V1.mH @ Q @ V1) @ V1.mH
    if near:
        B = _away_from_pi(-(V2.mH @ Q @ V2))
        if Q.is_complex():
            angles, W = torch.linalg.eigh(-1j * B)
            B = W * (1j * (angles - math.pi * torch.ones_like(angles).copysign(angles))) @ W.mH
        else:
            B = B - math.pi * _turn(B)
        A = A + V2 @ B @ V2.mH
    result: Tensor = (A - A.mH) / 2
    return result


def _widest_gap(cosines: Tensor) -> int:
    """How many of the ascending cosines lie below the widest gap between -0.95 and -0.3."""
    ends = cosines.new_tensor([-1.5]), cosines.new_tensor([1.5])
    clamped = torch.cat([ends[0], cosines, ends[1]]).clamp(-0.95, -0.3)
    return int(clamped.diff().argmax())


def _away_from_pi(Q: Tensor) -> Tensor:
    """A = (Q + I)^-1 (Q - I) is skew and has the singular values tan(angle / 2); the logarithm is A f(A^H A)
    with f(x^2) = 2 atan(x) / x. No eigenvector of Q is asked for, and so equal angles do no harm.
    """
    I = torch.eye(Q.shape[-1], dtype=Q.dtype, device=Q.device)
    A = torch.linalg.solve(Q + I, Q - I)
    A = (A - A.mH) / 2
    squares, V = torch.linalg.eigh(A.mH @ A)
    x = squares.clamp_min(0).sqrt()
    f = torch.where(x > 1e-4, 2 * x.atan() / x, 2 - 2 * squares / 3)
    result: Tensor = A @ (V * f) @ V.mH
    return result


def _turn(B: Tensor) -> Tensor:
    """Returns a skew and orthogonal matrix that commutes with the skew B and turns as it does; any, where B
    vanishes.
    """
    U, values, Vh = torch.linalg.svd(B)
    rank = int((values > 1e-13).sum()) // 2 * 2
    N = Vh[rank:].mT
    J = U[:, :rank] @ Vh[:rank] + N[:, ::2] @ N[:, 1::2].mT - N[:, 1::2] @ N[:, ::2].mT
    for _ in range(4):  # Newton and Schulz
        J = (J - J.mT) / 2
        J = 1.5 * J + 0.5 * J @ J @ J
    result: Tensor = (J - J.mT) / 2
    return result
