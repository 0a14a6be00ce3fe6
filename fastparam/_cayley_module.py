"""The Cayley map as modules for ``torch.nn.utils.parametrize``."""

from __future__ import annotations

import torch
from torch import Tensor

from ._arguments import check_flag, check_integer, check_matrices, check_square, check_tensor
from ._cayley import cayley, nonzero, skew_cayley, stiefel_cayley
from ._cayley_inverse import inverse_with_signs
from ._sharding import beside, whole
from ._signed import Signed


class _CayleyMap(Signed):
    """Q = map(X) D by a Cayley map."""

    alpha: float
    lower: bool = False  # the triangle of X that the inverse returns

    def __init__(self, alpha: float, signs: bool) -> None:
        alpha = nonzero(self.op, alpha)
        super().__init__(signs)
        self.alpha = alpha

    def _solved(self, Q: Tensor, signs: Tensor | None) -> tuple[Tensor, Tensor | None]:
        return inverse_with_signs(self.op, Q, self.alpha, self.lower, signs, self.remedy)

    def extra_repr(self) -> str:
        return f"alpha={self.alpha}"


class CayleyMap(_CayleyMap):
    r"""Maps skew-symmetric matrices to orthogonal ones by :func:`~fastparam.functional.cayley`. It is
    registered after :class:`Skew`.

    .. math:: Q = (I + \alpha A)^{-1} (I - \alpha A) D

    This is a drop-in for ``CayleyMap`` of the PyTorch parametrizations tutorial. The values are the same, and
    with ``n`` a ``state_dict`` loads in both directions.

    Args:
        n: order of the matrices. If it is given, the module has the tutorial's identity matrix as a buffer
            ``Id``, which the map does not use.
        alpha: the convention; see :func:`~fastparam.functional.cayley`.
        signs: whether to keep the signs D as a buffer ``signs`` of shape (..., n); see :class:`SkewCayley`.
            Without signs, D is the identity, and matrices with the eigenvalue -1 cannot be assigned. Every
            matrix of determinant -1 is among them.

    Raises:
        ValueError, TypeError: If ``alpha`` is 0 or not a finite number, ``n`` is not a positive int, or
            ``signs`` is not a bool.

    Example:
        >>> layer = torch.nn.Linear(4, 4)
        >>> _ = parametrize.register_parametrization(layer, "weight", fastparam.Skew())
        >>> _ = parametrize.register_parametrization(layer, "weight", fastparam.CayleyMap())
        >>> torch.allclose(layer.weight.mT @ layer.weight, torch.eye(4), atol=1e-6)
        True
    """

    Id: Tensor
    n: int | None
    op: str = "CayleyMap"

    def __init__(self, n: int | None = None, *, alpha: float = 1.0, signs: bool = False) -> None:
        super().__init__(alpha, signs)
        if n is not None:
            n = check_integer("CayleyMap", "n", n)
            if n < 1:
                raise ValueError(f"CayleyMap: expected n to be positive, got {n}")
            self.register_buffer("Id", torch.eye(n))
        self.n = n

    def reset_parameters(self) -> None:
        """Makes all signs positive, and sets ``Id`` to the identity."""
        super().reset_parameters()
        if self.n is not None:
            with torch.no_grad():
                Id = self.get_buffer("Id")
                Id.copy_(torch.eye(self.n, device=Id.device))

    def forward(self, A: Tensor) -> Tensor:
        """Returns the Cayley map of ``A``, of shape (..., n, n), times the signs."""
        self._check_order("A", A)
        return cayley(A, self.alpha, beside(A, self.signs))

    def right_inverse(self, Q: Tensor) -> Tensor:
        r"""Returns the skew-symmetric ``A`` with :math:`\mathrm{forward}(A) = Q`, up to rounding.

        The inverse is exact for every orthogonal (unitary) ``Q``; without ``signs``, for those that have no
        eigenvalue near -1. Signs change as described for :meth:`SkewCayley.right_inverse`.

        Raises:
            NotOrthogonalError: If ``Q`` is not orthogonal or not finite. Nothing is changed.
            ValueError, TypeError: As for :func:`~fastparam.functional.cayley`, or if ``Q`` needs signs and
                there are none.
        """
        check_square("CayleyMap", Q, "Q")
        self._check_order("Q", Q)
        X = self._inverse(Q, Q)
        return X - X.mH

    def _check_order(self, argument: str, X: Tensor) -> None:
        check_tensor("CayleyMap", argument, X)
        if self.n is not None and X.shape[-1:] != (self.n,):
            raise ValueError(f"CayleyMap: expected {argument} of order n = {self.n}, got {tuple(X.shape)}")

    def extra_repr(self) -> str:
        order = "" if self.n is None else f"{self.n}, "
        return order + super().extra_repr() + ", signs=True" * self.with_signs


class SkewCayley(_CayleyMap):
    r"""Makes a weight orthogonal by :func:`~fastparam.functional.skew_cayley`, which is :class:`Skew` and
    :class:`CayleyMap` in one kernel.

    .. math:: Q = (I + \alpha A)^{-1} (I - \alpha A) D, \qquad A = \mathrm{triu}(X, 1) - \mathrm{triu}(X, 1)^T

    A tall weight gets orthonormal columns, and a wide one orthonormal rows
    (:func:`~fastparam.functional.stiefel_cayley`). A weight that is orthogonal on registration, within the
    accuracy of its dtype, is kept. Any other weight becomes the free parameter ``X`` as it stands.

    The map alone reaches no matrix with the eigenvalue -1. With the diagonal D of signs it reaches every
    orthogonal matrix. The signs are a buffer ``signs`` of shape (..., k), with one entry per column (per row,
    if the weight is wide), in the dtype of the weight. A negative entry counts as -1, and every other entry
    as 1. All signs are 1 until a matrix is assigned that needs others.

    Recurrent layers keep the weights of their gates in one tensor. With ``blocks``, the tensor is split into
    that many blocks of rows, and each block is mapped by itself.

    Args:
        alpha: the convention; see :func:`~fastparam.functional.cayley`. The order of the matrices is taken
            from the weight and is no argument: ``SkewCayley(64)`` sets ``alpha`` to 64, whereas 64 in the
            tutorial's ``CayleyMap(64)`` is the order.
        lower: whether to keep the free parameters in the lower triangle instead of the upper one.
        signs: whether to keep signs. Without them, D is the identity, the ``state_dict`` has no entry but the
            free parameter, and matrices with the eigenvalue -1 cannot be assigned.
        blocks: number of blocks of rows, one above the other, each of which is orthogonal. It is 3 for
            ``weight_hh_l0`` of :class:`torch.nn.GRU` and 4 for that of :class:`torch.nn.LSTM`. These layers
            read their weights several times per call; ``parametrize.cached()`` computes them once. With more
            than one block the signs have the shape (..., blocks, k).

    Raises:
        ValueError, TypeError: If ``alpha`` is 0 or not a finite number, ``lower`` or ``signs`` is not a bool,
            or ``blocks`` is not a positive int.

    .. note::
        An instance belongs to one weight, and its signs are made when it is registered. Weights that are tied
        must share the instance too, because two instances on one raw tensor would keep signs of their own.

    Example:
        >>> layer = torch.nn.Linear(3, 5)
        >>> _ = parametrize.register_parametrization(layer, "weight", fastparam.SkewCayley())
        >>> torch.allclose(layer.weight.mT @ layer.weight, torch.eye(3), atol=1e-6)
        True
        >>> layer.weight = -layer.weight
        >>> gru = torch.nn.GRU(8, 4)
        >>> _ = parametrize.register_parametrization(gru, "weight_hh_l0", fastparam.SkewCayley(blocks=3))
        >>> reset, update, new = gru.weight_hh_l0.split(4)
        >>> torch.allclose(new.mT @ new, torch.eye(4), atol=1e-6)
        True
    """

    op: str = "SkewCayley"

    def __init__(
        self, alpha: float = 1.0, lower: bool = False, signs: bool = True, *, blocks: int = 1
    ) -> None:
        blocks = check_integer(self.op, "blocks", blocks)
        if blocks < 1:
            raise ValueError(f"{self.op}: expected blocks to be positive, got {blocks}")
        super().__init__(alpha, signs)
        self.lower, self.blocks = check_flag(self.op, "lower", lower), blocks

    def forward(self, X: Tensor) -> Tensor:
        """Returns matrices of the shape of ``X`` with orthonormal columns (rows, if they are wide), times the
        signs.
        """
        check_tensor(self.op, "X", X)
        X = self._split("X", X)
        square = X.dim() < 2 or X.shape[-2] == X.shape[-1]
        signs = beside(X, self.signs)
        return self._joined((skew_cayley if square else stiefel_cayley)(X, self.alpha, self.lower, signs))

    def right_inverse(self, Q: Tensor) -> Tensor:
        r"""Returns ``X`` with :math:`\mathrm{forward}(X) = Q`, up to rounding. The entries that are not read
        are zero.

        The inverse is exact for every ``Q`` with orthonormal columns (rows, if it is wide); without
        ``signs``, for those that have no eigenvalue near -1. If the present signs do not serve a matrix, it
        gets others. If ``Q``, rounded to its dtype, no longer determines ``X`` (norms of 1e4 in float32, of
        100 in bfloat16), the signs may change although the present ones would serve. This includes the trial
        of the inverse that torch makes when it registers a second parametrization.

        Raises:
            NotOrthogonalError: If ``Q`` is not orthogonal or not finite. Nothing is changed.
            ValueError, TypeError: As for :func:`~fastparam.functional.stiefel_cayley`, or if ``Q`` needs
                signs and there are none.
        """
        check_matrices(self.op, Q, "Q")
        given, Q = Q, self._split("Q", Q)
        wide = Q.shape[-2] < Q.shape[-1]
        X = self._inverse(Q.mT if wide else Q, given)
        return self._joined((X.mT if wide else X).contiguous())

    def _split(self, argument: str, X: Tensor) -> Tensor:
        if self.blocks == 1:
            return X
        check_matrices(self.op, X, argument)
        if X.shape[-2] % self.blocks:
            reason = f"{X.shape[-2]} is not divisible by {self.blocks}"
            raise ValueError(
                f"{self.op}: expected {argument} of shape (..., {self.blocks} n, k) for "
                f"blocks={self.blocks}, got {tuple(X.shape)}, and {reason}"
            )
        # torch does not split a dimension whose shards are not whole blocks.
        *batch, rows, columns = X.shape
        return whole(X).reshape(*batch, self.blocks, rows // self.blocks, columns)

    def _joined(self, Q: Tensor) -> Tensor:
        return Q if self.blocks == 1 else Q.flatten(-3, -2)

    def extra_repr(self) -> str:
        words = ", lower=True" * self.lower + ", signs=False" * (not self.with_signs)
        return super().extra_repr() + words + f", blocks={self.blocks}" * (self.blocks > 1)
