"""Symmetric and skew-symmetric matrices: linear maps of one triangle of a square matrix."""
# `entry` takes the signature and the words; the body is in C++.

from __future__ import annotations

from torch import Tensor, nn

from ._arguments import check_flag, check_square
from ._ops import entry


@entry
def symmetric(X: Tensor, lower: bool = False) -> Tensor:
    r"""Returns the symmetric matrices whose upper triangle is that of ``X``.

    .. math:: S(X) = \mathrm{triu}(X) + \mathrm{triu}(X, 1)^T

    The forward and the backward pass each go over memory once, and half of ``X`` is never read. The result is
    contiguous and exactly symmetric. Complex matrices are transposed without conjugation.

    Args:
        X: tensor of shape :math:`(*, n, n)` with any strides, of dtype float32, float64, bfloat16, float16 or
            complex.
        lower: whether to read the lower triangle instead (:math:`\mathrm{tril}(X) + \mathrm{tril}(X, -1)^T`).

    Raises:
        ValueError: If ``X`` is not a batch of square matrices, or has an integer dtype.
        TypeError: If ``X`` is not a tensor, or ``lower`` is not a bool.

    Source: ``Symmetric`` of the PyTorch parametrizations tutorial.

    Example:
        >>> fastparam.functional.symmetric(torch.tensor([[1., 2.], [9., 3.]]))
        tensor([[1., 2.],
                [2., 3.]])
    """


@entry
def skew(X: Tensor, lower: bool = False) -> Tensor:
    r"""Returns the skew-symmetric matrices whose strict upper triangle is that of ``X``.

    .. math:: K(X) = \mathrm{triu}(X, 1) - \mathrm{triu}(X, 1)^T

    The forward and the backward pass each go over memory once, and half of ``X`` is never read. The result is
    contiguous, its diagonal is zero, and ``skew(X) == -skew(X).mT`` holds bit for bit. Complex matrices are
    transposed without conjugation.

    Args:
        X: tensor of shape :math:`(*, n, n)` with any strides, of dtype float32, float64, bfloat16, float16 or
            complex.
        lower: whether to read the lower triangle instead (:math:`\mathrm{tril}(X, -1) - \mathrm{tril}(X,
            -1)^T`), as torch's ``orthogonal`` and geotorch do.

    Raises:
        ValueError: If ``X`` is not a batch of square matrices, or has an integer dtype.
        TypeError: If ``X`` is not a tensor, or ``lower`` is not a bool.

    Source: ``Skew`` of the PyTorch parametrizations tutorial.

    Example:
        >>> fastparam.functional.skew(torch.tensor([[1., 2.], [9., 3.]]))
        tensor([[ 0.,  2.],
                [-2.,  0.]])
    """


class _Triangular(nn.Module):
    """A map of one triangle of a square matrix. Its inverse on the image keeps that triangle."""

    lower: bool

    def __init__(self, lower: bool = False) -> None:
        super().__init__()
        self.lower = check_flag(type(self).__name__, "lower", lower)

    def extra_repr(self) -> str:
        return "lower=True" if self.lower else ""


class Symmetric(_Triangular):
    r"""Makes a weight symmetric by :func:`~fastparam.functional.symmetric`.

    .. math:: S(X) = \mathrm{triu}(X) + \mathrm{triu}(X, 1)^T

    This is a drop-in for ``Symmetric`` of the PyTorch parametrizations tutorial, with the same values and the
    same ``state_dict``.

    Args:
        lower: whether to keep the free parameters in the lower triangle instead of the upper one.

    Example:
        >>> layer = torch.nn.Linear(4, 4)
        >>> _ = parametrize.register_parametrization(layer, "weight", fastparam.Symmetric())
        >>> torch.equal(layer.weight, layer.weight.mT)
        True
    """

    def forward(self, X: Tensor) -> Tensor:
        """Returns the symmetric matrices given by one triangle of ``X``, of shape (..., n, n)."""
        return symmetric(X, self.lower)

    def right_inverse(self, A: Tensor) -> Tensor:
        """Returns the triangle of ``A`` that is read, with zeros in the other one.

        The inverse is exact if ``A`` is symmetric. Any other ``A`` is projected: the other triangle is
        forgotten.

        Raises:
            ValueError, TypeError: As for :func:`~fastparam.functional.symmetric`. The layer is unchanged.
        """
        check_square("symmetric", A)
        return A.tril() if self.lower else A.triu()


class Skew(_Triangular):
    r"""Makes a weight skew-symmetric by :func:`~fastparam.functional.skew`.

    .. math:: K(X) = \mathrm{triu}(X, 1) - \mathrm{triu}(X, 1)^T

    This is a drop-in for ``Skew`` of the PyTorch parametrizations tutorial, with the same values and the same
    ``state_dict``.

    Args:
        lower: whether to keep the free parameters in the lower triangle instead of the upper one.

    Example:
        >>> layer = torch.nn.Linear(4, 4)
        >>> _ = parametrize.register_parametrization(layer, "weight", fastparam.Skew())
        >>> torch.equal(layer.weight, -layer.weight.mT)
        True
    """

    def forward(self, X: Tensor) -> Tensor:
        """Returns the skew-symmetric matrices given by one strict triangle of ``X``, of shape (..., n, n)."""
        return skew(X, self.lower)

    def right_inverse(self, A: Tensor) -> Tensor:
        """Returns the strict triangle of ``A`` that is read, with zeros elsewhere.

        The inverse is exact if ``A`` is skew-symmetric. Any other ``A`` is projected: the other triangle and
        the diagonal are forgotten.

        Raises:
            ValueError, TypeError: As for :func:`~fastparam.functional.skew`. The layer is unchanged.
        """
        check_square("skew", A)
        return A.tril(-1) if self.lower else A.triu(1)
