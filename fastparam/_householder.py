"""Products of Householder reflections."""
# mypy: disable-error-code="empty-body"
# `entry` takes the signature and the words; the body is in C++.

from __future__ import annotations

from torch import Tensor

from ._ops import entry


@entry
def householder(X: Tensor) -> Tensor:
    r"""Returns the first columns of products of reflections. They are orthonormal for every ``X`` whose
    sums of squares are in the range of its dtype.

    .. math:: Q = H_1 H_2 \cdots H_k \begin{bmatrix} I \\ 0 \end{bmatrix}, \qquad H_j = I - 2 \frac{v_j
        v_j^H}{v_j^H v_j}, \qquad V = \begin{bmatrix} I \\ 0 \end{bmatrix} + \mathrm{tril}(X, -1)

    The values are those of :func:`torch.linalg.householder_product`. The derivative is a constant number of
    matrix products, whereas torch's goes column by column. Backward saves only ``X``. The entries of ``X`` on
    the diagonal and above it are not read; the verb :func:`~fastparam.parametrizations.orthogonal` reads its
    diagonal as signs.

    Args:
        X: tensor of shape :math:`(*, n, k)` with :math:`n \ge k`, of dtype float32, float64, bfloat16,
            float16 or complex. Half types are computed in float32.

    Raises:
        ValueError: If ``X`` has fewer than two dimensions, is wide, or has an integer dtype.
        TypeError: If ``X`` is not a tensor.

    Source: torch's ``orthogonal`` by ``"householder"``. The derivative follows the compact form of Schreiber
    and Van Loan, A storage-efficient WY representation for products of Householder transformations, 1989.

    Example:
        >>> Q = fastparam.functional.householder(torch.randn(5, 3))
        >>> torch.allclose(Q.mT @ Q, torch.eye(3), atol=1e-6)
        True
    """
