"""The matrix exponential as modules for ``torch.nn.utils.parametrize``."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ._arguments import check_flag, check_matrices, check_square, has_no_data
from ._exponential import matrix_exp, stiefel_exp, symmetric_exp
from ._logarithm import (
    NotPositiveDefiniteError,
    asymmetry,
    is_symmetric,
    skew_logarithm,
    symmetric_logarithm,
)
from ._orthogonality import NotOrthogonalError, checked_orthogonal, orthogonality_defect
from ._sharding import beside
from ._signed import Signed


class MatrixExponential(nn.Module):
    r"""Maps skew-symmetric matrices to orthogonal ones of determinant 1, and symmetric matrices to positive
    definite ones, by the matrix exponential.

    .. math:: \exp(X) = \sum_{i \ge 0} X^i / i!

    It is registered after :class:`Skew` or :class:`Symmetric`; :class:`SkewExponential` and
    :class:`PositiveDefinite` are the two in one. After :class:`Skew`, assign only orthogonal matrices of
    determinant 1, and after :class:`Symmetric` only positive definite ones. The module cannot see which
    module precedes it and does not check this: a matrix of the other kind is projected without an error.
    :class:`SkewExponential` and :class:`PositiveDefinite` check every assigned matrix.

    Source: ``MatrixExponential`` of the PyTorch parametrizations tutorial, with the same values and the same
    ``state_dict``.

    Example:
        >>> layer = torch.nn.Linear(4, 4)
        >>> _ = parametrize.register_parametrization(layer, "weight", fastparam.Skew())
        >>> _ = parametrize.register_parametrization(layer, "weight", fastparam.MatrixExponential())
        >>> torch.allclose(layer.weight.mT @ layer.weight, torch.eye(4), atol=1e-5)
        True
    """

    def __init__(self) -> None:  # help() would show the *args, **kwargs of nn.Module
        super().__init__()

    def forward(self, X: Tensor) -> Tensor:
        """Returns the exponential of ``X``, of shape (..., n, n)."""
        return matrix_exp(X)

    def right_inverse(self, Y: Tensor) -> Tensor:
        """Returns the principal logarithm of ``Y``. It is skew-symmetric if ``Y`` is orthogonal of
        determinant 1, and symmetric if ``Y`` is positive definite. After :class:`Skew`, assign only the first
        kind, and after :class:`Symmetric` only the second; the other kind is projected by the module before.

        Raises:
            NotOrthogonalError: If ``Y`` is neither symmetric nor orthogonal, or has the determinant -1.
                Nothing is changed.
            NotPositiveDefiniteError: If ``Y`` is symmetric and not positive definite.
            ValueError, TypeError: As for :func:`~fastparam.functional.matrix_exp`.
        """
        check_square("MatrixExponential", Y, "Y")
        Y = Y.detach()
        # Near the identity both are possible, and the one that it is nearer to is meant.
        if not has_no_data(Y) and is_symmetric(Y) and asymmetry(Y) <= orthogonality_defect(Y):
            try:
                return symmetric_logarithm("MatrixExponential", Y).to(Y.dtype)
            except NotPositiveDefiniteError as error:
                try:  # rotations by pi are symmetric, too
                    Q = checked_orthogonal("MatrixExponential", Y)
                except NotOrthogonalError:
                    raise error from None
        else:
            Q = checked_orthogonal("MatrixExponential", Y)
        if not has_no_data(Y) and not Y.is_complex() and bool((torch.linalg.det(Q) < 0).any()):
            raise _determinant("MatrixExponential", "SkewExponential()")
        return skew_logarithm(Q).to(Y.dtype)


def _determinant(op: str, remedy: str) -> NotOrthogonalError:
    return NotOrthogonalError(
        f"{op}: expected a matrix of determinant 1, got one of determinant -1, "
        f"which the exponential does not reach without {remedy}"
    )


class SkewExponential(Signed):
    r"""Makes a weight orthogonal by :func:`~fastparam.functional.skew_exp`, which is :class:`Skew` and
    :class:`MatrixExponential` in one kernel.

    .. math:: Q = \exp(A) D, \qquad A = \mathrm{triu}(X, 1) - \mathrm{triu}(X, 1)^T

    A tall weight gets orthonormal columns, and a wide one orthonormal rows
    (:func:`~fastparam.functional.stiefel_exp`). A square weight that is orthogonal on registration, within
    the accuracy of its dtype, is kept. Any other weight becomes the free parameter ``X`` as it stands.

    The exponential alone has the determinant 1. With the diagonal D of signs, the module reaches the matrices
    of determinant -1 too. The signs are a buffer ``signs`` of shape (..., n), which square weights have; they
    are kept and read like those of :class:`SkewCayley`. Tall and wide weights cannot be assigned to;
    :class:`SkewCayley` and the trivialized ``orthogonal`` take them.

    Args:
        lower: whether to keep the free parameters in the lower triangle instead of the upper one.
        signs: whether to keep signs. Without them, D is the identity, and matrices of determinant -1 cannot
            be assigned.

    Raises:
        TypeError: If ``lower`` or ``signs`` is not a bool.

    Source: Lezcano-Casado and Martinez-Rubio, Cheap orthogonal constraints in neural networks, 2019.

    Example:
        >>> layer = torch.nn.Linear(4, 4)
        >>> _ = parametrize.register_parametrization(layer, "weight", fastparam.SkewExponential())
        >>> torch.allclose(layer.weight.mT @ layer.weight, torch.eye(4), atol=1e-6)
        True
        >>> layer.weight = -torch.eye(4)
    """

    lower: bool
    op: str = "SkewExponential"

    def __init__(self, lower: bool = False, signs: bool = True) -> None:
        lower = check_flag(self.op, "lower", lower)
        super().__init__(signs)
        self.lower = lower

    def forward(self, X: Tensor) -> Tensor:
        """Returns matrices of the shape of ``X`` with orthonormal columns (rows, if they are wide), times the
        signs.
        """
        Q = stiefel_exp(X, self.lower)
        signs = beside(X, self.signs)
        if signs is None:
            return Q
        negative = signs.real < 0
        return torch.where(negative.unsqueeze(-2), -Q, Q)

    def right_inverse(self, Q: Tensor) -> Tensor:
        r"""Returns ``X`` with :math:`\mathrm{forward}(X) = Q`, up to rounding, for a square ``Q``. It is a
        triangle of the principal logarithm; the entries that are not read are zero. If the present signs do
        not serve a matrix, it gets others.

        Raises:
            NotOrthogonalError: If ``Q`` is not orthogonal or not finite, or has the determinant -1 and there
                are no signs. Nothing is changed.
            NotImplementedError: If ``Q`` is not square.
            ValueError, TypeError: As for :func:`~fastparam.functional.skew_exp`.
        """
        check_matrices(self.op, Q, "Q")
        if Q.shape[-2] != Q.shape[-1]:
            raise NotImplementedError(
                f"{self.op}: only square weights can be assigned; SkewCayley and the orthogonal of "
                f"parametrizations take tall and wide ones, got {tuple(Q.shape)}"
            )
        X = self._inverse(Q, Q)
        X.diagonal(dim1=-2, dim2=-1).div_(2)  # of complex matrices counted twice by T - T^H
        return (X.tril() if self.lower else X.triu()).to(Q.dtype)

    def _solved(self, Q: Tensor, signs: Tensor | None) -> tuple[Tensor, Tensor | None]:
        Q = checked_orthogonal(self.op, Q)
        if has_no_data(Q):
            return torch.zeros_like(Q), None
        changed = None
        if signs is not None:
            kept = torch.where(signs.real < 0, -1.0, 1.0).to(Q.dtype)
            Q = Q * kept.unsqueeze(-2)
        if not Q.is_complex():
            mirrored = torch.linalg.det(Q) < 0
            if mirrored.any():
                if signs is None:
                    raise _determinant(self.op, self.remedy)
                # the column that has least to lose
                column = Q.diagonal(dim1=-2, dim2=-1).argmin(-1, keepdim=True)
                flips = torch.ones_like(kept).scatter(
                    -1, column, torch.where(mirrored, -1.0, 1.0).unsqueeze(-1).to(kept)
                )
                Q, changed = Q * flips.unsqueeze(-2), (kept * flips).to(signs.dtype)
        return skew_logarithm(Q), changed

    def extra_repr(self) -> str:
        return ", ".join(["lower=True"] * self.lower + ["signs=False"] * (not self.with_signs))


class PositiveDefinite(nn.Module):
    r"""Makes a weight symmetric positive definite by :func:`~fastparam.functional.symmetric_exp`, which is
    :class:`Symmetric` and :class:`MatrixExponential` in one kernel.

    .. math:: P = \exp(A), \qquad A = \mathrm{triu}(X) + \mathrm{triu}(X, 1)^T

    On the CPU the weight is symmetric bit for bit. With every algorithm, it is positive definite in floating
    point only while :math:`e^{2 \|A\|}` is far below :math:`1 / \epsilon`, that is, for norms below about 7
    in float32 and 17 in float64. A weight that is positive definite on registration is kept. Any other weight
    becomes the free parameter ``X`` as it stands.

    Args:
        lower: whether to keep the free parameters in the lower triangle instead of the upper one.

    Raises:
        TypeError: If ``lower`` is not a bool.

    Source: Arsigny et al., Geometric means in a novel vector space structure on symmetric positive-definite
    matrices, 2007.

    Example:
        >>> layer = torch.nn.Linear(4, 4)
        >>> _ = parametrize.register_parametrization(layer, "weight", fastparam.PositiveDefinite())
        >>> torch.linalg.eigvalsh(layer.weight).min() > 0
        tensor(True)
        >>> layer.weight = 2 * torch.eye(4)
    """

    lower: bool

    def __init__(self, lower: bool = False) -> None:
        super().__init__()
        self.lower = check_flag("PositiveDefinite", "lower", lower)

    def forward(self, X: Tensor) -> Tensor:
        """Returns the positive definite matrices given by one triangle of ``X``, of shape (..., n, n)."""
        return symmetric_exp(X, self.lower)

    def right_inverse(self, P: Tensor) -> Tensor:
        r"""Returns ``X`` with :math:`\mathrm{forward}(X) = P`, up to rounding. It is a triangle of the
        logarithm; the entries that are not read are zero.

        Raises:
            NotPositiveDefiniteError: If ``P`` is not symmetric, not positive definite, or not finite. Nothing
                is changed.
            ValueError, TypeError: As for :func:`~fastparam.functional.symmetric_exp`, or if ``P`` is complex.
        """
        check_square("PositiveDefinite", P, "P")
        if P.is_complex():
            raise ValueError("PositiveDefinite: expected a real weight, got a complex one")
        A = symmetric_logarithm("PositiveDefinite", P.detach())
        return (A.tril() if self.lower else A.triu()).to(P.dtype)

    def extra_repr(self) -> str:
        return "lower=True" if self.lower else ""
