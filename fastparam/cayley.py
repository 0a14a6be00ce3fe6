"""The Cayley map, skew-symmetric -> orthogonal, as functions."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.compiler import is_compiling
from torch.overrides import has_torch_function_unary

from . import _C
from ._arguments import check_flag, check_number, check_tensor


def cayley(A: Tensor, alpha: float = 1.0) -> Tensor:
    r"""Returns the Cayley map of ``A``: orthogonal where ``A`` is skew-symmetric.

    .. math:: Q = (I + \alpha A)^{-1} (I - \alpha A)

    One inversion forward, two matrix products backward, which keeps the result alone. Never singular for a skew-symmetric ``A``; a matrix
    that is not skew-symmetric is solved with pivoting. Conventions ``alpha`` and ``-alpha`` are transposes of each other.

    Args:
        A: tensor of shape :math:`(*, n, n)`, any strides; float32, float64, bfloat16 or float16 (computed in float32), or complex.
        alpha: 1 in the PyTorch tutorial, PEFT OFT and BOFT; -1 in LyCORIS and kohya; -1/2 in torch's ``orthogonal`` and geotorch.

    Raises:
        ValueError: ``A`` is not a batch of square matrices or has an integer dtype, or ``alpha`` is not finite.
        TypeError: ``A`` is not a tensor, or ``alpha`` not a number.
        torch.linalg.LinAlgError: :math:`I + \alpha A` is singular; on CUDA the result is not finite instead.

    Source: ``CayleyMap`` of the PyTorch parametrizations tutorial.

    Example:
        >>> fastparam.functional.cayley(torch.tensor([[0., 1.], [-1., 0.]]))
        tensor([[ 0., -1.],
                [ 1.,  0.]])
    """
    if is_compiling() or has_torch_function_unary(A):
        check_types("cayley", "A", A, alpha)
        Q: Tensor = torch.ops.fastparam.cayley.default(A, alpha)
        return Q
    try:
        return _C.cayley(A, alpha)
    except TypeError:  # of the many lines that pybind11 writes, one
        check_types("cayley", "A", A, alpha)
        raise


def skew_cayley(X: Tensor, alpha: float = 1.0, lower: bool = False) -> Tensor:
    r"""Returns the orthogonal matrices whose skew-symmetric :math:`A` is given by one strict triangle of ``X``.

    .. math:: Q = (I + \alpha A)^{-1} (I - \alpha A), \qquad A = \mathrm{triu}(X, 1) - \mathrm{triu}(X, 1)^T

    :func:`~fastparam.functional.skew` and :func:`~fastparam.functional.cayley` in one kernel. Half of ``X`` is never read. Complex:
    :math:`A = T - T^H` with :math:`T = \mathrm{triu}(X)`, skew-Hermitian, and ``Q`` is unitary.

    Args:
        X: tensor of shape :math:`(*, n, n)`, any strides; float32, float64, bfloat16 or float16 (computed in float32), or complex.
        alpha: the convention, see :func:`~fastparam.functional.cayley`.
        lower: read the lower triangle instead, as torch's ``orthogonal`` and geotorch do.

    Raises:
        ValueError: ``X`` is not a batch of square matrices or has an integer dtype, or ``alpha`` is not finite.
        TypeError: ``X`` is not a tensor, ``alpha`` not a number, or ``lower`` not a bool.

    Source: Cayley 1846; ``Skew`` and ``CayleyMap`` of the PyTorch parametrizations tutorial.

    Example:
        >>> fastparam.functional.skew_cayley(torch.tensor([[5., 1.], [7., 3.]]))
        tensor([[ 0., -1.],
                [ 1.,  0.]])
    """
    if is_compiling() or has_torch_function_unary(X) or (lower is not False and lower is not True):
        check_types("skew_cayley", "X", X, alpha, lower)
        Q: Tensor = torch.ops.fastparam.skew_cayley.default(X, alpha, lower)
        return Q
    try:
        return _C.skew_cayley(X, alpha, lower)
    except TypeError:
        check_types("skew_cayley", "X", X, alpha, lower)
        raise


def skew_cayley_packed(v: Tensor, alpha: float = 1.0) -> Tensor:
    r"""Returns the orthogonal matrices whose skew-symmetric :math:`A` has the entries ``v`` above the diagonal, row by row.

    .. math:: Q = (I + \alpha A)^{-1} (I - \alpha A), \qquad A_{ij} = -A_{ji} = v_{i n - i (i + 1) / 2 + j - i - 1} \quad (i < j)

    The layout of ``torch.triu_indices(n, n, 1)``, in which OFT and POET keep their parameters: half the memory of a square one. While
    compiling with dynamic shapes the length of ``v`` becomes a constant of the graph.

    Args:
        v: tensor of shape :math:`(*, n (n - 1) / 2)`, any strides; float32, float64, bfloat16 or float16 (computed in float32), or complex.
        alpha: the convention, see :func:`~fastparam.functional.cayley`.

    Returns:
        tensor of shape :math:`(*, n, n)`.

    Raises:
        ValueError: the last dimension of ``v`` is no :math:`n (n - 1) / 2`, its dtype is an integer one, or ``alpha`` is not finite.
        TypeError: ``v`` is not a tensor, or ``alpha`` not a number.

    Source: Qiu et al., Controlling Text-to-Image Diffusion by Orthogonal Finetuning (OFT), 2023.

    Example:
        >>> fastparam.functional.skew_cayley_packed(torch.tensor([1.]))
        tensor([[ 0., -1.],
                [ 1.,  0.]])
    """
    if is_compiling() or has_torch_function_unary(v):
        check_types("skew_cayley_packed", "v", v, alpha)
        Q: Tensor = torch.ops.fastparam.skew_cayley_packed.default(v, alpha)
        return Q
    try:
        return _C.skew_cayley_packed(v, alpha)
    except TypeError:
        check_types("skew_cayley_packed", "v", v, alpha)
        raise


def stiefel_cayley(X: Tensor, alpha: float = 1.0, lower: bool = False) -> Tensor:
    r"""Returns matrices with orthonormal columns (rows, where ``X`` is wide), in :math:`O(n k^2)` for :math:`n \times k`.

    .. math:: Q = \begin{pmatrix} 2 C^{-1} - I \\ -2 \alpha B C^{-1} \end{pmatrix}, \qquad
              C = I + \alpha A_1 + \alpha^2 B^T B

    with :math:`A_1` skew-symmetric from a triangle of the first k rows of ``X``, and B the others: the first k columns of the Cayley map of
    the n x n matrix :math:`(A_1, -B^T; B, 0)`, which torch and geotorch solve. Of a wide ``X`` the transpose is mapped. Square matrices
    are mapped as :func:`~fastparam.functional.skew_cayley` does. Computed in float64 whatever the dtype.

    Args:
        X: tensor of shape :math:`(*, n, k)`, any strides; float32, float64, bfloat16, float16 or complex (skew-Hermitian :math:`A_1`).
        alpha: the convention, see :func:`~fastparam.functional.cayley`.
        lower: read the lower triangle of the (tall) first k rows, as torch's ``orthogonal`` and geotorch do.

    Raises:
        ValueError: ``X`` has fewer than two dimensions or an integer dtype, or ``alpha`` is not finite.
        TypeError: ``X`` is not a tensor, ``alpha`` not a number, or ``lower`` not a bool.

    Source: Wen and Yin, A feasible method for optimization with orthogonality constraints, 2013 (lemma 4: the low-rank form).

    Example:
        >>> fastparam.functional.stiefel_cayley(torch.tensor([[7.], [1.]]))
        tensor([[ 0.],
                [-1.]])
    """
    if is_compiling() or has_torch_function_unary(X) or (lower is not False and lower is not True):
        check_types("stiefel_cayley", "X", X, alpha, lower)
        Q: Tensor = torch.ops.fastparam.stiefel_cayley.default(X, alpha, lower)
        return Q
    try:
        return _C.stiefel_cayley(X, alpha, lower)
    except TypeError:
        check_types("stiefel_cayley", "X", X, alpha, lower)
        raise


def check_types(op: str, argument: str, X: object, alpha: object, lower: object = False) -> None:
    """Raises TypeError unless X is a tensor, alpha a number and lower a bool."""
    check_tensor(op, argument, X)
    check_number(op, "alpha", alpha)
    check_flag(op, "lower", lower)
