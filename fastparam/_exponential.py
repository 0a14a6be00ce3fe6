"""The matrix exponential: functions and modules."""
# mypy: disable-error-code="empty-body"
# `entry` takes the signature and the words; the body is in C++.

from __future__ import annotations

from torch import Tensor, nn

from ._arguments import check_square
from ._ops import entry


@entry
def matrix_exp(A: Tensor) -> Tensor:
    r"""Returns the exponential of ``A``.

    .. math:: \exp(A) = \sum_{i \ge 0} A^i / i!

    The values of :func:`torch.matrix_exp`, in half types too. Its derivative is :func:`exp_frechet`: backward
    keeps ``A`` alone. A matrix with an entry that is not finite becomes NaN, and no other of a batch.

    Args:
        A: tensor of shape :math:`(*, n, n)`, any strides; float32, float64, bfloat16 or float16 (computed in
            float32), or complex.

    Raises:
        ValueError: ``A`` is not a batch of square matrices or has an integer dtype.
        TypeError: ``A`` is not a tensor.

    Source: Higham, Functions of Matrices, 2008, chapter 10; polynomials of Bader, Blanes and Casas, Computing
    the matrix exponential with an optimized Taylor polynomial approximation, 2019.

    Example:
        >>> fastparam.functional.matrix_exp(torch.tensor([[0., 1.], [0., 0.]]))
        tensor([[1., 1.],
                [0., 1.]])
    """


@entry
def exp_frechet(A: Tensor, E: Tensor) -> Tensor:
    r"""Returns the derivative of the matrix exponential at ``A`` along ``E``.

    .. math:: L(A, E) = \int_0^1 \exp((1 - s) A) \, E \, \exp(s A) \, ds

    Its adjoint is :math:`L(A^H, \cdot)`. The values of ``scipy.linalg.expm_frechet``.

    Args:
        A: tensor of shape :math:`(*, n, n)`, any strides; float32, float64, bfloat16 or float16 (computed in
            float32), or complex.
        E: of the shape, dtype and device of ``A``.

    Raises:
        ValueError: ``A`` is not a batch of square matrices or has an integer dtype, or ``E`` has another
            shape, dtype or device.
        TypeError: ``A`` or ``E`` is not a tensor.

    Source: Higham, Functions of Matrices, 2008, section 10.6.

    Example:
        >>> A, E = torch.zeros(2, 2), torch.tensor([[1., 2.], [3., 4.]])
        >>> torch.equal(fastparam.functional.exp_frechet(A, E), E)
        True
    """


@entry
def skew_exp(X: Tensor, lower: bool = False) -> Tensor:
    r"""Returns the exponential of the skew-symmetric matrices whose upper triangle is that of ``X``:
    orthogonal matrices of determinant 1.

    .. math:: Q = \exp(A), \qquad A = \mathrm{triu}(X, 1) - \mathrm{triu}(X, 1)^T

    :func:`skew` and :func:`matrix_exp` fused, by polynomials for skew-symmetric matrices. On the CPU Q is
    orthogonal for every finite real ``X``. Complex matrices: :math:`A = \mathrm{triu}(X) -
    \mathrm{triu}(X)^H`, and Q is unitary.

    Args:
        X: tensor of shape :math:`(*, n, n)`, any strides; float32, float64, bfloat16 or float16 (computed in
            float32), or complex.
        lower: read the lower triangle instead, as torch's ``orthogonal`` and geotorch do.

    Raises:
        ValueError: ``X`` is not a batch of square matrices, or has an integer dtype.
        TypeError: ``X`` is not a tensor, or ``lower`` not a bool.

    Source: ``Skew`` and ``MatrixExponential`` of the PyTorch parametrizations tutorial.

    Example:
        >>> Q = fastparam.functional.skew_exp(torch.randn(8, 5, 5))
        >>> torch.allclose(Q.mT @ Q, torch.eye(5).expand(8, 5, 5), atol=1e-5)
        True
    """


@entry
def symmetric_exp(X: Tensor, lower: bool = False) -> Tensor:
    r"""Returns the exponential of the symmetric matrices whose upper triangle is that of ``X``: positive
    definite matrices.

    .. math:: P = \exp(A), \qquad A = \mathrm{triu}(X) + \mathrm{triu}(X, 1)^T

    :func:`symmetric` and :func:`matrix_exp` fused, by polynomials for symmetric matrices; on the CPU the
    result is symmetric bit for bit. It is positive definite in floating point while
    :math:`e^{2 \|A\|} < 1 / \epsilon`, that is for norms below 8 in float32 and 18 in float64, whatever
    computes it. Complex matrices are transposed without conjugation.

    Args:
        X: tensor of shape :math:`(*, n, n)`, any strides; float32, float64, bfloat16 or float16 (computed in
            float32), or complex.
        lower: read the lower triangle instead.

    Raises:
        ValueError: ``X`` is not a batch of square matrices, or has an integer dtype.
        TypeError: ``X`` is not a tensor, or ``lower`` not a bool.

    Source: ``Symmetric`` and ``MatrixExponential`` of the PyTorch parametrizations tutorial.

    Example:
        >>> P = fastparam.functional.symmetric_exp(torch.zeros(2, 2))
        >>> torch.equal(P, torch.eye(2))
        True
    """


class MatrixExponential(nn.Module):
    r"""The matrix exponential: skew-symmetric -> orthogonal of determinant 1, symmetric -> positive definite.

    .. math:: \exp(X) = \sum_{i \ge 0} X^i / i!

    Source: ``MatrixExponential`` of the PyTorch parametrizations tutorial: same values, same ``state_dict``.

    Example:
        >>> layer = torch.nn.Linear(4, 4)
        >>> _ = parametrize.register_parametrization(layer, "weight", fastparam.Skew())
        >>> _ = parametrize.register_parametrization(layer, "weight", fastparam.MatrixExponential())
        >>> torch.allclose(layer.weight.mT @ layer.weight, torch.eye(4), atol=1e-5)
        True
    """

    def forward(self, X: Tensor) -> Tensor:
        """Returns the exponential of ``X``, of shape (..., n, n)."""
        check_square("matrix_exp", X)
        return matrix_exp(X)
