"""The Cayley map, skew-symmetric -> orthogonal, as functions."""
# mypy: disable-error-code="empty-body"
# `entry` takes the signature and the words; the body is in C++.

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.linalg import LinAlgError  # type: ignore[attr-defined]

from ._arguments import check_number, check_square
from ._ops import entry


@entry
def cayley(A: Tensor, alpha: float = 1.0, signs: Tensor | None = None) -> Tensor:
    r"""Returns the Cayley map of ``A``, which is orthogonal if ``A`` is skew-symmetric.

    .. math:: Q = (I + \alpha A)^{-1} (I - \alpha A)

    The forward pass inverts one matrix. The backward pass needs two matrix products and saves only the
    result. The system is never singular for a skew-symmetric ``A``; a matrix that is not skew-symmetric is
    solved with pivoting. The maps of ``alpha`` and ``-alpha`` are transposes of each other.

    Args:
        A: tensor of shape :math:`(*, n, n)` with any strides, of dtype float32, float64, bfloat16, float16 or
            complex. Half types are computed in float32.
        alpha: the convention. It is 1 in the PyTorch tutorial, PEFT OFT and BOFT, -1 in LyCORIS and kohya,
            and -1/2 in torch's ``orthogonal`` and geotorch.
        signs: tensor of shape :math:`(*, n)`; a column of ``Q`` is negated where its sign is negative. None
            means that all signs are positive.

    Raises:
        ValueError: If ``A`` is not a batch of square matrices or has an integer dtype, if ``alpha`` is not
            finite, or if ``signs`` has another shape, another device or an integer dtype.
        TypeError: If ``A`` is not a tensor, or ``alpha`` is not a number.
        torch.linalg.LinAlgError: If :math:`I + \alpha A` is singular. On CUDA the result is not finite
            instead.

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

    This is :func:`~fastparam.functional.skew` followed by :func:`~fastparam.functional.cayley`, in one
    kernel. Half of ``X`` is never read. For a complex ``X`` the matrix :math:`A = T - T^H` with :math:`T =
    \mathrm{triu}(X)` is skew-Hermitian, and ``Q`` is unitary.

    Args:
        X: tensor of shape :math:`(*, n, n)` with any strides, of dtype float32, float64, bfloat16, float16 or
            complex. Half types are computed in float32.
        alpha: the convention; see :func:`~fastparam.functional.cayley`.
        lower: whether to read the lower triangle instead, as torch's ``orthogonal`` and geotorch do.
        signs: tensor of shape :math:`(*, n)`; a column of ``Q`` is negated where its sign is negative. None
            means that all signs are positive.

    Raises:
        ValueError: If ``X`` is not a batch of square matrices or has an integer dtype, if ``alpha`` is not
            finite, or if ``signs`` has another shape, another device or an integer dtype.
        TypeError: If ``X`` is not a tensor, ``alpha`` is not a number, or ``lower`` is not a bool.

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

    The layout is that of ``torch.triu_indices(n, n, 1)``, in which OFT and POET keep their parameters. It
    takes half the memory of a square matrix. While compiling with dynamic shapes, the length of ``v`` becomes
    a constant of the graph.

    Args:
        v: tensor of shape :math:`(*, n (n - 1) / 2)` with any strides, of dtype float32, float64, bfloat16,
            float16 or complex. Half types are computed in float32.
        alpha: the convention; see :func:`~fastparam.functional.cayley`.

    Returns:
        Tensor of shape :math:`(*, n, n)`.

    Raises:
        ValueError: If the last dimension of ``v`` is not of the form :math:`n (n - 1) / 2`, if ``v`` has an
            integer dtype, or if ``alpha`` is not finite.
        TypeError: If ``v`` is not a tensor, or ``alpha`` is not a number.

    Source: Qiu et al., Controlling Text-to-Image Diffusion by Orthogonal Finetuning (OFT), 2023.

    Example:
        >>> fastparam.functional.skew_cayley_packed(torch.tensor([1.]))
        tensor([[ 0., -1.],
                [ 1.,  0.]])
    """


@entry
def stiefel_cayley(X: Tensor, alpha: float = 1.0, lower: bool = False, signs: Tensor | None = None) -> Tensor:
    r"""Returns matrices with orthonormal columns (rows, if ``X`` is wide), in :math:`O(n k^2)` operations
    for :math:`n \times k` matrices.

    .. math:: Q = \begin{pmatrix} 2 C^{-1} - I \\ -2 \alpha B C^{-1} \end{pmatrix}, \qquad
              C = I + \alpha A_1 + \alpha^2 B^T B

    The skew-symmetric :math:`A_1` comes from a triangle of the first k rows of ``X``, and B is the other
    rows. ``Q`` is the first k columns of the Cayley map of the n x n matrix :math:`(A_1, -B^T; B, 0)`, which
    torch and geotorch solve. If ``X`` is wide, the map is applied to its transpose. Square matrices are
    handled by :func:`~fastparam.functional.skew_cayley`. On the CPU the map is computed in the dtype of ``X``
    if ``X`` is small (in float32 for half types), and otherwise in float64. Other devices always compute in
    float64.

    Args:
        X: tensor of shape :math:`(*, n, k)` with any strides, of dtype float32, float64, bfloat16, float16 or
            complex. :math:`A_1` is skew-Hermitian if ``X`` is complex.
        alpha: the convention; see :func:`~fastparam.functional.cayley`.
        lower: whether to read the lower triangle of the first k rows (columns, if ``X`` is wide), as torch's
            ``orthogonal`` and geotorch do.
        signs: tensor of shape :math:`(*, \min(n, k))`; a column of ``Q`` (a row, if it is wide) is negated
            where its sign is negative. None means that all signs are positive.

    Raises:
        ValueError: If ``X`` has fewer than two dimensions or an integer dtype, if ``alpha`` is not finite, or
            if ``signs`` has another shape, another device or an integer dtype.
        TypeError: If ``X`` is not a tensor, ``alpha`` is not a number, or ``lower`` is not a bool.

    Source: Wen and Yin, A feasible method for optimization with orthogonality constraints, 2013, lemma 4 (the
    low-rank form).

    Example:
        >>> fastparam.functional.stiefel_cayley(torch.tensor([[7.], [1.]]))
        tensor([[ 0.],
                [-1.]])
    """


@entry
def trivialized_cayley(X: Tensor, base: Tensor, alpha: float = 1.0, lower: bool = False) -> Tensor:
    """Returns ``base @ stiefel_cayley(X, alpha, lower)``; if ``X`` is wide, the transpose of the same for
    ``X.mT``. Autocast has no effect on it outside of ``torch.func``.
    """


def cayley_inverse(Q: Tensor, alpha: float = 1.0) -> Tensor:
    r"""Returns the ``A`` with :math:`\mathrm{cayley}(A) = Q`. It is skew-symmetric (up to rounding) if ``Q``
    is orthogonal.

    .. math:: A = \frac{1}{\alpha} (I + Q)^{-1} (I - Q)

    The inverse is exact for every matrix without the eigenvalue -1, whether it is orthogonal or not; digits
    are lost near that eigenvalue. It is made of PyTorch's own operations, so it is differentiable and works
    under every transform. :meth:`fastparam.SkewCayley.right_inverse` takes every orthogonal matrix.

    Args:
        Q: tensor of shape :math:`(*, n, n)`, of dtype float32, float64, bfloat16, float16 or complex. Half
            types are computed in float32.
        alpha: the convention, which must not be 0; see :func:`~fastparam.functional.cayley`.

    Raises:
        ValueError: If ``Q`` is not a batch of square matrices or has an integer dtype, or if ``alpha`` is 0
            or not finite.
        TypeError: If ``Q`` is not a tensor, or ``alpha`` is not a number.
        torch.linalg.LinAlgError: If ``Q`` has the eigenvalue -1.

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
    try:
        M = torch.linalg.inv(I + B)
    except LinAlgError as error:
        raise LinAlgError(
            "cayley_inverse: expected a matrix without the eigenvalue -1; SkewCayley reaches it with signs"
        ) from error
    A: Tensor = (2 * M - I) / alpha
    return A.to(Q.dtype)


def nonzero(op: str, alpha: float) -> float:
    alpha = check_number(op, "alpha", alpha)
    if not math.isfinite(alpha) or alpha == 0:
        raise ValueError(f"{op}: expected a finite alpha other than 0, got {alpha}")
    return alpha
