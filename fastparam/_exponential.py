"""The matrix exponential as functions."""
# mypy: disable-error-code="empty-body"
# `entry` takes the signature and the words; the body is in C++.

from __future__ import annotations

import torch
from torch import Tensor, nn

from ._arguments import check_flag, check_matrices
from ._ops import entry
from ._orthogonality import double_of
from ._sharding import whole
from ._without_autocast import without_autocast


@entry
def matrix_exp(A: Tensor) -> Tensor:
    r"""Returns the exponential of ``A``.

    .. math:: \exp(A) = \sum_{i \ge 0} A^i / i!

    The values are those of :func:`torch.matrix_exp`, and half types are supported too. The derivative is
    :func:`exp_frechet`, so that backward saves only ``A``. A matrix with an entry that is not finite becomes
    NaN, and no other matrix of the batch does.

    Args:
        A: tensor of shape :math:`(*, n, n)` with any strides, of dtype float32, float64, bfloat16, float16 or
            complex. Half types are computed in float32.

    Raises:
        ValueError: If ``A`` is not a batch of square matrices, or has an integer dtype.
        TypeError: If ``A`` is not a tensor.

    Source: Higham, Functions of Matrices, 2008, chapter 10. The polynomials are those of Bader, Blanes and
    Casas, Computing the matrix exponential with an optimized Taylor polynomial approximation, 2019.

    Example:
        >>> fastparam.functional.matrix_exp(torch.tensor([[0., 1.], [0., 0.]]))
        tensor([[1., 1.],
                [0., 1.]])
    """


@entry
def exp_frechet(A: Tensor, E: Tensor) -> Tensor:
    r"""Returns the derivative of the matrix exponential at ``A`` along ``E``.

    .. math:: L(A, E) = \int_0^1 \exp((1 - s) A) \, E \, \exp(s A) \, ds

    Its adjoint is :math:`L(A^H, \cdot)`. The values are those of ``scipy.linalg.expm_frechet``.

    Args:
        A: tensor of shape :math:`(*, n, n)` with any strides, of dtype float32, float64, bfloat16, float16 or
            complex. Half types are computed in float32.
        E: tensor of the shape, dtype and device of ``A``.

    Raises:
        ValueError: If ``A`` is not a batch of square matrices or has an integer dtype, or if ``E`` has
            another shape, dtype or device.
        TypeError: If ``A`` or ``E`` is not a tensor.

    Source: Higham, Functions of Matrices, 2008, section 10.6.

    Example:
        >>> A, E = torch.zeros(2, 2), torch.tensor([[1., 2.], [3., 4.]])
        >>> torch.equal(fastparam.functional.exp_frechet(A, E), E)
        True
    """


@entry
def skew_exp(X: Tensor, lower: bool = False) -> Tensor:
    r"""Returns the exponential of the skew-symmetric matrices whose upper triangle is that of ``X``. The
    results are orthogonal matrices of determinant 1.

    .. math:: Q = \exp(A), \qquad A = \mathrm{triu}(X, 1) - \mathrm{triu}(X, 1)^T

    This is :func:`skew` followed by :func:`matrix_exp` in one kernel, by polynomials for skew-symmetric
    matrices. On the CPU Q is orthogonal for every finite real ``X``. For a complex ``X`` the matrix is
    :math:`A = \mathrm{triu}(X) - \mathrm{triu}(X)^H`, and Q is unitary up to rounding that grows with the
    norm of A.

    Args:
        X: tensor of shape :math:`(*, n, n)` with any strides, of dtype float32, float64, bfloat16, float16 or
            complex. Half types are computed in float32.
        lower: whether to read the lower triangle instead, as torch's ``orthogonal`` and geotorch do.

    Raises:
        ValueError: If ``X`` is not a batch of square matrices, or has an integer dtype.
        TypeError: If ``X`` is not a tensor, or ``lower`` is not a bool.

    Source: ``Skew`` and ``MatrixExponential`` of the PyTorch parametrizations tutorial.

    Example:
        >>> Q = fastparam.functional.skew_exp(torch.randn(8, 5, 5))
        >>> torch.allclose(Q.mT @ Q, torch.eye(5).expand(8, 5, 5), atol=1e-5)
        True
    """


@entry
def symmetric_exp(X: Tensor, lower: bool = False) -> Tensor:
    r"""Returns the exponential of the symmetric matrices whose upper triangle is that of ``X``. The results
    are positive definite matrices.

    .. math:: P = \exp(A), \qquad A = \mathrm{triu}(X) + \mathrm{triu}(X, 1)^T

    This is :func:`symmetric` followed by :func:`matrix_exp` in one kernel, by polynomials for symmetric
    matrices. On the CPU the result of a real ``X`` is symmetric bit for bit. With every algorithm, it is
    positive definite in floating point only while :math:`e^{2 \|A\|}` is far below :math:`1 / \epsilon`, that
    is, for norms below about 7 in float32 and 17 in float64. Complex matrices are transposed without
    conjugation.

    Args:
        X: tensor of shape :math:`(*, n, n)` with any strides, of dtype float32, float64, bfloat16, float16 or
            complex. Half types are computed in float32.
        lower: whether to read the lower triangle instead.

    Raises:
        ValueError: If ``X`` is not a batch of square matrices, or has an integer dtype.
        TypeError: If ``X`` is not a tensor, or ``lower`` is not a bool.

    Source: ``Symmetric`` and ``MatrixExponential`` of the PyTorch parametrizations tutorial.

    Example:
        >>> P = fastparam.functional.symmetric_exp(torch.zeros(2, 2))
        >>> torch.equal(P, torch.eye(2))
        True
    """


def _has_closed_form(n: int, k: int, dtype: torch.dtype) -> bool:
    """Whether an n x n matrix, in the dtype, costs more than one of order 2k in double precision."""
    return n > 96 and k <= (0.4 if dtype in (torch.float64, torch.complex128) else 0.3) * n


def stiefel_exp(X: Tensor, lower: bool = False) -> Tensor:
    r"""Returns tall matrices with orthonormal columns, or wide ones with orthonormal rows. They are columns
    (rows) of the exponential of a skew-symmetric matrix.

    .. math:: Q = \exp(A) \begin{bmatrix} I \\ 0 \end{bmatrix}, \qquad A = \begin{bmatrix} A_1 & -B^H \\ B & 0
        \end{bmatrix}

    A1 comes from a triangle of the first k rows of the n x k matrix X, and B is the other rows. No n x n
    matrix is made if n is above 96 and k is at most 0.3 n (in double precision 0.4 n). With the matrix Z =
    [[A1, -B^H B / b], [b I, 0]] of order 2k and any positive b, Q is then the upper left block of exp(Z)
    above B times its lower left block, divided by b. This is computed in double precision, and the result is
    orthonormal up to norms of 5e4, or 1e8 if the columns of B are far from parallel. Square matrices are
    handled by :func:`skew_exp`. The function is made of differentiable operations.

    Args:
        X: tensor of shape :math:`(*, n, k)`, of dtype float32, float64, bfloat16, float16 or complex. Half
            types are computed in float32. A wide matrix is treated as its transpose.
        lower: whether A1 comes from the lower triangle, as in torch's ``orthogonal`` and geotorch.

    Raises:
        ValueError: If ``X`` has fewer than two dimensions, or an integer dtype.
        TypeError: If ``X`` is not a tensor, or ``lower`` is not a bool.

    Source: Edelman, Arias and Smith, The geometry of algorithms with orthogonality constraints, 1998.

    Example:
        >>> Q = fastparam.functional.stiefel_exp(torch.randn(5, 3))
        >>> torch.allclose(Q.mT @ Q, torch.eye(3), atol=1e-6)
        True
    """
    check_matrices("stiefel_exp", X, "X")
    lower = check_flag("stiefel_exp", "lower", lower)
    if X.shape[-2] == X.shape[-1]:
        return skew_exp(X, lower)
    wide = X.shape[-2] < X.shape[-1]
    with without_autocast(X):
        tall = whole(X.mT if wide else X).to(torch.promote_types(X.dtype, torch.float32))
        Q = _tall(tall, lower).to(X.dtype)
    return (Q.mT if wide else Q).contiguous()


def _tall(X: Tensor, lower: bool) -> Tensor:
    n, k = X.shape[-2:]
    T, B, diagonal = X[..., :k, :], X[..., k:, :], 0 if X.is_complex() else 1
    T = T.tril(-diagonal) if lower else -T.triu(diagonal).mH
    if not _has_closed_form(n, k, X.dtype):
        padded = nn.functional.pad(torch.cat([T, B], -2), (0, n - k))
        return skew_exp(padded, True)[..., :k]
    double = double_of(X)
    T, C = T.to(double), B.to(double)
    S = C.mH @ C
    size = torch.linalg.matrix_norm(S.detach(), keepdim=True).sqrt()
    b = torch.where(size > 1e-150, size.clamp_min(1e-150).log2().round().exp2(), 1).to(double)
    I = torch.eye(k, dtype=double, device=X.device)
    left = torch.cat([T - T.mH, b * I], -2)
    E = matrix_exp(torch.cat([left, torch.cat([-S / b, torch.zeros_like(S)], -2)], -1))[..., :k]
    Q = torch.cat([E[..., :k, :], C @ (E[..., k:, :] / b)], -2)
    if X.dtype == double:  # Z is not skew: squaring it leaves what one step of Newton and Schulz takes away
        P = Q.detach()
        Q = Q - P @ (P.mH @ P - I) / 2
    return Q.to(X.dtype)
