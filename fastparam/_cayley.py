"""The Cayley map, skew-symmetric -> orthogonal: functions and modules."""
# mypy: disable-error-code="empty-body"
# `entry` takes the signature and the words; the body is in C++.

from __future__ import annotations

import math

import torch
from torch import Tensor

from ._arguments import (
    check_flag,
    check_integer,
    check_matrices,
    check_number,
    check_square,
    check_tensor,
)
from ._cayley_inverse import inverse_with_signs
from ._ops import entry
from ._sharding import beside, whole
from ._signed import Signed


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
    alpha = _nonzero("cayley_inverse", alpha)
    B = Q.to(torch.promote_types(Q.dtype, torch.float32))  # half types have no inverse
    I = torch.eye(Q.shape[-1], dtype=B.dtype, device=Q.device)
    A: Tensor = (2 * torch.linalg.inv(I + B) - I) / alpha
    return A.to(Q.dtype)


def _nonzero(op: str, alpha: float) -> float:
    alpha = check_number(op, "alpha", alpha)
    if not math.isfinite(alpha) or alpha == 0:
        raise ValueError(f"{op}: expected a finite alpha other than 0, got {alpha}")
    return alpha


# ---- modules ---------------------------------------------------------------------------------------------


class _CayleyMap(Signed):
    """Q = map(X) D by a Cayley map."""

    alpha: float

    def __init__(self, alpha: float, signs: bool) -> None:
        alpha = _nonzero(self.op, alpha)
        super().__init__(signs)
        self.alpha = alpha

    def _solved(self, Q: Tensor, dtype: torch.dtype, signs: Tensor | None) -> tuple[Tensor, Tensor | None]:
        return inverse_with_signs(self.op, Q, dtype, self.alpha, signs, self.remedy)

    def extra_repr(self) -> str:
        return f"alpha={self.alpha}"


class CayleyMap(_CayleyMap):
    r"""Maps skew-symmetric matrices to orthogonal ones: parametrization by
    :func:`~fastparam.functional.cayley`, after :class:`Skew`.

    .. math:: Q = (I + \alpha A)^{-1} (I - \alpha A) D

    A drop-in for ``CayleyMap`` of the PyTorch parametrizations tutorial: the same values and, both ways, the
    same ``state_dict``.

    Args:
        n: order of the matrices. With it there is the tutorial's identity, a buffer ``Id``; the map does not
            use it.
        alpha: the convention, see :func:`~fastparam.functional.cayley`.
        signs: keep the signs D as a buffer ``signs`` of shape (..., n), see :class:`SkewCayley`. Without it D
            = I, and matrices with an eigenvalue -1, among them all of determinant -1, cannot be assigned.

    Raises:
        ValueError, TypeError: ``alpha`` is 0 or not a finite number, ``n`` not a positive int, or ``signs``
        not a bool.

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
        """Makes all signs positive, and ``Id`` the identity."""
        super().reset_parameters()
        if self.n is not None:
            with torch.no_grad():
                self.get_buffer("Id").copy_(torch.eye(self.n))

    def forward(self, A: Tensor) -> Tensor:
        """Returns the Cayley map of ``A``, of shape (..., n, n), times the signs."""
        self._check_order("A", A)
        return cayley(A, self.alpha, beside(A, self.signs))

    def right_inverse(self, Q: Tensor) -> Tensor:
        r"""Returns the skew-symmetric ``A`` with :math:`\mathrm{forward}(A) = Q`, up to rounding.

        Exact for every orthogonal (unitary) ``Q``; without ``signs``, for those that have no eigenvalue near
        -1. Signs change as
        :meth:`SkewCayley.right_inverse` says.

        Raises:
            NotOrthogonalError: ``Q`` is not orthogonal, or not finite; a ValueError. Nothing is changed.
            ValueError, TypeError: as :func:`~fastparam.functional.cayley`; or ``Q`` needs signs, and there
            are none.
        """
        check_square("CayleyMap", Q, "Q")
        self._check_order("Q", Q)
        return self._inverse(Q).to(Q.dtype)

    def _check_order(self, argument: str, X: Tensor) -> None:
        check_tensor("CayleyMap", argument, X)
        if self.n is not None and X.shape[-1:] != (self.n,):
            raise ValueError(f"CayleyMap: expected {argument} of order n = {self.n}, got {tuple(X.shape)}")

    def extra_repr(self) -> str:
        order = "" if self.n is None else f"{self.n}, "
        return order + super().extra_repr() + ", signs=True" * self.with_signs


class SkewCayley(_CayleyMap):
    r"""Makes a weight orthogonal: parametrization by :func:`~fastparam.functional.skew_cayley`, :class:`Skew`
    and :class:`CayleyMap` fused.

    .. math:: Q = (I + \alpha A)^{-1} (I - \alpha A) D, \qquad A = \mathrm{triu}(X, 1) - \mathrm{triu}(X, 1)^T

    A tall weight gets orthonormal columns, a wide one orthonormal rows
    (:func:`~fastparam.functional.stiefel_cayley`). A weight that is orthogonal on registration is kept, as
    far as its dtype tells; any other becomes the free parameter ``X`` as it stands.

    The map alone reaches no matrix with an eigenvalue -1. The diagonal D of signs, a buffer ``signs`` of
    shape (..., k) with
    :math:`k = \min(n, k)` entries per matrix, reaches every orthogonal one. All signs are 1 until a matrix is
    assigned that needs others. They are a tensor of the dtype of the weight: what is negative counts as -1,
    all else as 1.

    Recurrent layers keep the kernels of their gates in one tensor: with ``blocks`` each of as many blocks of
    rows is mapped by itself.

    Args:
        alpha: the convention, see :func:`~fastparam.functional.cayley`.
        lower: keep the free parameters in the lower triangle instead of the upper.
        signs: without them D = I, the ``state_dict`` has the free parameter alone, and matrices with an
            eigenvalue -1 cannot be assigned.
        blocks: of rows, one above the other, that are orthogonal each: 3 for ``weight_hh_l0`` of
            :class:`torch.nn.GRU`, 4 for that of :class:`torch.nn.LSTM`, which read their weights several
            times per call: once, inside ``parametrize.cached()``. The signs of more than one block have the
            shape (..., blocks, k).

    Raises:
        ValueError, TypeError: ``alpha`` is 0 or not a finite number, ``lower`` or ``signs`` not a bool, or
            ``blocks`` not a positive int.

    .. note::
        An instance belongs to one weight. The signs are made when it is registered. Weights that are tied
        share the instance too: two instances on one raw tensor would keep signs of their own.

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

    lower: bool
    blocks: int = 1
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
        """Returns matrices of the shape of ``X`` with orthonormal columns, or rows where they are wide, times
        the signs.
        """
        check_tensor(self.op, "X", X)
        X = self._split("X", X)
        square = X.dim() < 2 or X.shape[-2] == X.shape[-1]
        signs = beside(X, self.signs)
        return self._joined((skew_cayley if square else stiefel_cayley)(X, self.alpha, self.lower, signs))

    def right_inverse(self, Q: Tensor) -> Tensor:
        r"""Returns ``X`` with :math:`\mathrm{forward}(X) = Q`, up to rounding, and zeros where it is not
        read.

        Exact for every ``Q`` with orthonormal columns (rows, if wide); without ``signs``, for those that have
        no eigenvalue near -1. A matrix whose present signs do not serve gets others. Where ``Q``, rounded to
        its dtype, no longer determines ``X`` (norms of 1e4 in float32, 100 in bfloat16) they may change
        although they would serve, also when torch tries the inverse while it registers a second
        parametrization.

        Raises:
            NotOrthogonalError: ``Q`` is not orthogonal, or not finite; a ValueError. Nothing is changed.
            ValueError, TypeError: as :func:`~fastparam.functional.stiefel_cayley`; or ``Q`` needs signs, and
            there are none.
        """
        check_matrices(self.op, Q, "Q")
        Q = self._split("Q", Q)
        wide = Q.shape[-2] < Q.shape[-1]
        X = self._inverse(Q.mT if wide else Q)
        X.diagonal(dim1=-2, dim2=-1).div_(2)  # counted twice by T - T^H
        k = X.shape[-1]
        X = X.tril() if self.lower else torch.cat([X[..., :k, :].triu(), X[..., k:, :]], -2)
        return self._joined((X.mT if wide else X).to(Q.dtype).contiguous())

    def _split(self, argument: str, X: Tensor) -> Tensor:
        if self.blocks == 1:
            return X
        check_matrices(self.op, X, argument)
        if X.shape[-2] % self.blocks:
            raise ValueError(
                f"{self.op}: expected {argument} of shape (..., {self.blocks} n, k), got {tuple(X.shape)}"
            )
        # torch does not split a dimension whose shards are not whole blocks.
        *batch, rows, columns = X.shape
        return whole(X).reshape(*batch, self.blocks, rows // self.blocks, columns)

    def _joined(self, Q: Tensor) -> Tensor:
        return Q if self.blocks == 1 else Q.flatten(-3, -2)

    def extra_repr(self) -> str:
        words = ", lower=True" * self.lower + ", signs=False" * (not self.with_signs)
        return super().extra_repr() + words + f", blocks={self.blocks}" * (self.blocks > 1)
