"""Products of Householder reflections."""
# mypy: disable-error-code="empty-body"
# `entry` takes the signature and the words; the body is in C++.

from __future__ import annotations

from torch import Tensor

from ._ops import entry


@entry
def householder(X: Tensor) -> Tensor:
    r"""Returns the first columns of products of reflections: orthonormal ones, for every ``X`` whose
    squares its dtype holds.

    .. math:: Q = H_1 H_2 \cdots H_k \begin{bmatrix} I \\ 0 \end{bmatrix}, \qquad H_j = I - 2 \frac{v_j
        v_j^H}{v_j^H v_j}, \qquad V = \begin{bmatrix} I \\ 0 \end{bmatrix} + \mathrm{tril}(X, -1)

    The values of :func:`torch.linalg.householder_product`. The derivative is a constant number of matrix
    products, where torch's goes column by column; backward keeps ``X`` alone. What of ``X`` is not below the
    diagonal is not read.

    Args:
        X: tensor of shape :math:`(*, n, k)` with :math:`n \ge k`; float32, float64, bfloat16 or float16
            (computed in float32), or complex.

    Raises:
        ValueError: ``X`` has fewer than two dimensions, is wide, or has an integer dtype.
        TypeError: ``X`` is not a tensor.

    Source: ``orthogonal`` of torch by ``"householder"``; the derivative by the compact form of Schreiber and
    Van Loan, A storage-efficient WY representation for products of Householder transformations, 1989.

    Example:
        >>> Q = fastparam.functional.householder(torch.randn(5, 3))
        >>> torch.allclose(Q.mT @ Q, torch.eye(3), atol=1e-6)
        True
    """
