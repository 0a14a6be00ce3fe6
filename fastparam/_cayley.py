"""The Cayley map, skew-symmetric -> orthogonal, as functions."""
# mypy: disable-error-code="empty-body"
# `entry` takes the signature and the words; the body is in C++.

from __future__ import annotations

import math

import torch
from torch import Tensor

from ._arguments import check_number, check_square
from ._ops import entry


@entry
def cayley(A: Tensor, alpha: float = 1.0, signs: Tensor | None = None) -> Tensor:
    r"""Returns the Cayley map of ``A``: orthogonal where ``A`` is skew-symmetric.

    .. math:: Q = (I + \alpha A)^{-1} (I - \alpha A)

    One inversion forward, two matrix products backward, which keeps the result alone. Never singular for a
    skew-symmetric ``A``; a matrix that is not skew-symmetric is solved with pivoting. Conventions ``alpha``
    and ``-alpha`` are transposes of each other.

    Args:
        A: tensor of shape :math:`(*, n, n)`, any strides; float32, float64, bfloat16 or float16 (computed in
            float32), or complex.
        alpha: 1 in the PyTorch tutorial, PEFT OFT and BOFT; -1 in LyCORIS and kohya; -1/2 in torch's
            ``orthogonal`` and geotorch.
        signs: of shape :math:`(*, n)`, or None for all positive; a column of ``Q`` is negated where its sign
            is negative.

    Raises:
        ValueError: ``A`` is not a batch of square matrices or has an integer dtype, ``alpha`` is not finite,
            or ``signs`` have another shape, device or an integer dtype.
        TypeError: ``A`` is not a tensor, or ``alpha`` not a number.
        torch.linalg.LinAlgError: :math:`I + \alpha A` is singular; on CUDA the result is not finite instead.

    Source: ``CayleyMap`` of the PyTorch parametrizations tutorial.

    Example:
        >>> fastparam.functional.cayley(torch.tensor([[0., 1.], [-1., 0.]]))
        tensor([[ 0., -1.],
                [ 1.,  0.]])
    """


@entry
def skew_cayley(X: Tensor, alpha: float = 1.0, lower: bool = False, signs: Tensor | None = None) -> Tensor:
    r"""Returns the orthogonal matrices whose skew-symmetric :math:`A` is given by one strict triangle of
    ``X``.

    .. math:: Q = (I + \alpha A)^{-1} (I - \alpha A), \qquad A = \mathrm{triu}(X, 1) - \mathrm{triu}(X, 1)^T

    :func:`~fastparam.functional.skew` and :func:`~fastparam.functional.cayley` in one kernel. Half of ``X``
    is never read. Complex:
    :math:`A = T - T^H` with :math:`T = \mathrm{triu}(X)`, skew-Hermitian, and ``Q`` is unitary.

    Args:
        X: tensor of shape :math:`(*, n, n)`, any strides; float32, float64, bfloat16 or float16 (computed in
            float32), or complex.
        alpha: the convention, see :func:`~fastparam.functional.cayley`.
        lower: read the lower triangle instead, as torch's ``orthogonal`` and geotorch do.
        signs: of shape :math:`(*, n)`, or None for all positive; a column of ``Q`` is negated where its sign
            is negative.

    Raises:
        ValueError: ``X`` is not a batch of square matrices or has an integer dtype, ``alpha`` is not finite,
            or ``signs`` have another shape, device or an integer dtype.
        TypeError: ``X`` is not a tensor, ``alpha`` not a number, or ``lower`` not a bool.

    Source: Cayley 1846; ``Skew`` and ``CayleyMap`` of the PyTorch parametrizations tutorial.

    Example:
        >>> fastparam.functional.skew_cayley(torch.tensor([[5., 1.], [7., 3.]]))
        tensor([[ 0., -1.],
                [ 1.,  0.]])
    """


@entry
def skew_cayley_packed(v: Tensor, alpha: float = 1.0) -> Tensor:
    r"""Returns the orthogonal matrices whose skew-symmetric :math:`A` has the entries ``v`` above the
    diagonal, row by row.

    .. math:: Q = (I + \alpha A)^{-1} (I - \alpha A), \qquad
              A_{ij} = -A_{ji} = v_{i n - i (i + 1) / 2 + j - i - 1} \quad (i < j)

    The layout of ``torch.triu_indices(n, n, 1)``, in which OFT and POET keep their parameters: half the
    memory of a square one. While compiling with dynamic shapes the length of ``v`` becomes a constant of the
    graph.

    Args:
        v: tensor of shape :math:`(*, n (n - 1) / 2)`, any strides; float32, float64, bfloat16 or float16
            (computed in float32), or complex.
        alpha: the convention, see :func:`~fastparam.functional.cayley`.

    Returns:
        tensor of shape :math:`(*, n, n)`.

    Raises:
        ValueError: the last dimension of ``v`` is no :math:`n (n - 1) / 2`, its dtype is an integer one, or
            ``alpha`` is not finite.
        TypeError: ``v`` is not a tensor, or ``alpha`` not a number.

    Source: Qiu et al., Controlling Text-to-Image Diffusion by Orthogonal Finetuning (OFT), 2023.

    Example:
        >>> fastparam.functional.skew_cayley_packed(torch.tensor([1.]))
        tensor([[ 0., -1.],
                [ 1.,  0.]])
    """


@entry
def stiefel_cayley(X: Tensor, alpha: float = 1.0, lower: bool = False, signs: Tensor | None = None) -> Tensor:
    r"""Returns matrices with orthonormal columns (rows, where ``X`` is wide), in :math:`O(n k^2)` for
    :math:`n \times k`.

    .. math:: Q = \begin{pmatrix} 2 C^{-1} - I \\ -2 \alpha B C^{-1} \end{pmatrix}, \qquad
              C = I + \alpha A_1 + \alpha^2 B^T B

    with :math:`A_1` skew-symmetric from a triangle of the first k rows of ``X``, and B the others: the first
    k columns of the Cayley map of the n x n matrix :math:`(A_1, -B^T; B, 0)`, which torch and geotorch solve.
    Of a wide ``X`` the transpose is mapped. Square matrices are mapped as
    :func:`~fastparam.functional.skew_cayley` does. On CPU the map is computed in the dtype of
    ``X`` where ``X`` is small (half types in float32), else in float64; elsewhere in float64.

    Args:
        X: tensor of shape :math:`(*, n, k)`, any strides; float32, float64, bfloat16, float16 or complex
            (skew-Hermitian :math:`A_1`).
        alpha: the convention, see :func:`~fastparam.functional.cayley`.
        lower: read the lower triangle of the (tall) first k rows, as torch's ``orthogonal`` and geotorch do.
        signs: of shape :math:`(*, \min(n, k))`, or None for all positive; a column of ``Q`` (a row, where it
            is wide) is negated where its sign is negative.

    Raises:
        ValueError: ``X`` has fewer than two dimensions or an integer dtype, ``alpha`` is not finite,
            or ``signs`` have another shape, device or an integer dtype.
        TypeError: ``X`` is not a tensor, ``alpha`` not a number, or ``lower`` not a bool.

    Source: Wen and Yin, A feasible method for optimization with orthogonality constraints, 2013 (lemma 4: the
        low-rank form).

    Example:
        >>> fastparam.functional.stiefel_cayley(torch.tensor([[7.], [1.]]))
        tensor([[ 0.],
                [-1.]])
    """


@entry
def trivialized_cayley(X: Tensor, base: Tensor, alpha: float = 1.0, lower: bool = False) -> Tensor:
    """Returns ``base @ stiefel_cayley(X, alpha, lower)``, of a wide ``X`` the transpose of that of ``X.mT``;
    outside of autocast.
    """


def cayley_inverse(Q: Tensor, alpha: float = 1.0) -> Tensor:
    r"""Returns the ``A`` with :math:`\mathrm{cayley}(A) = Q`, skew-symmetric (up to rounding) where ``Q`` is
    orthogonal.

    .. math:: A = \frac{1}{\alpha} (I + Q)^{-1} (I - Q)

    Exact for every matrix without the eigenvalue -1, orthogonal or not; near that eigenvalue digits are lost.
    Made of PyTorch's own operations: differentiable, and every transform works.
    :meth:`fastparam.SkewCayley.right_inverse` takes every orthogonal matrix.

    Args:
        Q: tensor of shape :math:`(*, n, n)`; float32, float64, bfloat16 or float16 (computed in float32), or
            complex.
        alpha: the convention, see :func:`~fastparam.functional.cayley`; not 0.

    Raises:
        ValueError: ``Q`` is not a batch of square matrices or has an integer dtype, or ``alpha`` is 0 or not
            finite.
        TypeError: ``Q`` is not a tensor, or ``alpha`` not a number.
        torch.linalg.LinAlgError: ``Q`` has the eigenvalue -1.

    Source: Cayley 1846.

    Example:
        >>> fastparam.functional.cayley_inverse(torch.tensor([[0., -1.], [1., 0.]]))
        tensor([[ 0.,  1.],
                [-1.,  0.]])
    """
    check_square("cayley_inverse", Q, "Q")
    alpha = nonzero("cayley_inverse", alpha)
    B = Q.to(torch.promote_types(Q.dtype, torch.float32))  # half types have no inverse
    I = torch.eye(Q.shape[-1], dtype=B.dtype, device=Q.device)
    A: Tensor = (2 * torch.linalg.inv(I + B) - I) / alpha
    return A.to(Q.dtype)


def nonzero(op: str, alpha: float) -> float:
    alpha = check_number(op, "alpha", alpha)
    if not math.isfinite(alpha) or alpha == 0:
        raise ValueError(f"{op}: expected a finite alpha other than 0, got {alpha}")
    return alpha
