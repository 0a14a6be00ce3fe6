"""Modules onto orthogonal matrices, and the verb ``orthogonal`` of ``torch.nn.utils.parametrizations``."""

from __future__ import annotations

import math
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations as torch_parametrizations
from torch.nn.utils import parametrize

from ._arguments import check_flag, check_number, check_square, check_tensor
from ._cayley_inverse import check_orthogonal, double_of, inverse_with_signs
from .cayley import cayley, skew_cayley, stiefel_cayley

M = TypeVar("M", bound=nn.Module)


class _Signed(nn.Module):
    """Q = map(X) D: the diagonal D of signs makes every orthogonal matrix an image. It is None, and in no checkpoint, where all are one."""

    signs: Tensor | None

    def __init__(self, alpha: float) -> None:
        op = type(self).__name__
        check_number(op, "alpha", alpha)
        if not math.isfinite(alpha) or alpha == 0:
            raise ValueError(f"{op}: expected a finite alpha other than 0, got {alpha}")
        super().__init__()
        self.alpha = float(alpha)
        self.register_buffer("signs", None)

    def _signed(self, Q: Tensor) -> Tensor:
        if self.signs is None:
            return Q
        return Q * self.signs.to(Q).unsqueeze(-1 if Q.shape[-2] < Q.shape[-1] else -2)

    def _inverse(self, Q: Tensor) -> Tensor:
        """Sets the signs of the tall Q, and returns its A1 over B."""
        check_orthogonal(type(self).__name__, Q)
        X, signs = inverse_with_signs(Q.detach(), self.alpha)
        # A second parametrization is tried on the output of the map before it is registered: that must change nothing. What is assigned
        # comes without grad mode.
        if not (torch.is_grad_enabled() and Q.requires_grad):
            self.signs = None if signs is None else signs.to(Q.dtype)
        return X

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        loaded = state_dict.get(prefix + "signs")
        if loaded is None or self.signs is None or self.signs.shape != loaded.shape:
            self.signs = None if loaded is None else torch.ones_like(loaded)
        super()._load_from_state_dict(state_dict, prefix, *args)


class CayleyMap(_Signed):
    r"""Maps skew-symmetric matrices to orthogonal ones: parametrization by :func:`~fastparam.functional.cayley`, after :class:`Skew`.

    .. math:: Q = (I + \alpha A)^{-1} (I - \alpha A) D

    with signs D, all one until a matrix is assigned that needs others (determinant -1, or an eigenvalue near -1); then they are in the
    ``state_dict``. A drop-in for ``CayleyMap`` of the PyTorch parametrizations tutorial: same values, and its checkpoints load.

    Args:
        n: order of the matrices. Only to accept the tutorial's argument: with it the ``state_dict`` has the tutorial's identity ``Id``.
        alpha: the convention, see :func:`~fastparam.functional.cayley`.

    Raises:
        ValueError, TypeError: ``alpha`` is 0 or not a finite number, or ``n`` not a positive int.

    Example:
        >>> layer = torch.nn.Linear(4, 4)
        >>> _ = parametrize.register_parametrization(layer, "weight", fastparam.Skew())
        >>> _ = parametrize.register_parametrization(layer, "weight", fastparam.CayleyMap())
        >>> torch.allclose(layer.weight.mT @ layer.weight, torch.eye(4), atol=1e-6)
        True
    """

    def __init__(self, n: int | None = None, *, alpha: float = 1.0) -> None:
        super().__init__(alpha)
        if n is not None and (not isinstance(n, int) or n < 1):
            raise (ValueError if isinstance(n, int) else TypeError)(f"CayleyMap: expected n to be a positive int, got {n!r}")
        self.n = n

    def forward(self, A: Tensor) -> Tensor:
        """Returns the Cayley map of ``A``, of shape (..., n, n), times the signs."""
        if self.n is not None and A.shape[-1] != self.n:
            raise ValueError(f"CayleyMap: expected A of order n = {self.n}, got {tuple(A.shape)}")
        return self._signed(cayley(A, self.alpha))

    def right_inverse(self, Q: Tensor) -> Tensor:
        r"""Returns the skew-symmetric ``A`` with :math:`\mathrm{forward}(A) = Q`, and sets the signs.

        Exact for every orthogonal (unitary) ``Q``, up to rounding.

        Raises:
            NotOrthogonalError: ``Q`` is not orthogonal, or not finite; a ValueError. Nothing is changed.
            ValueError, TypeError: as :func:`~fastparam.functional.cayley`.
        """
        check_square("cayley", Q, "Q")
        return self._inverse(Q).to(Q.dtype)

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        if self.n is not None:
            destination[prefix + "Id"] = torch.eye(self.n)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        state_dict.pop(prefix + "Id", None)
        super()._load_from_state_dict(state_dict, prefix, *args)

    def extra_repr(self) -> str:
        return f"alpha={self.alpha}"


class SkewCayley(_Signed):
    r"""Makes a weight orthogonal: parametrization by :func:`~fastparam.functional.skew_cayley`, :class:`Skew` and :class:`CayleyMap` fused.

    .. math:: Q = (I + \alpha A)^{-1} (I - \alpha A) D, \qquad A = \mathrm{triu}(X, 1) - \mathrm{triu}(X, 1)^T

    A tall weight gets orthonormal columns, a wide one orthonormal rows (:func:`~fastparam.functional.stiefel_cayley`). Signs D as in
    :class:`CayleyMap`. A weight that is orthogonal on registration is kept; any other becomes the free parameter ``X`` as it stands.

    Args:
        alpha: the convention, see :func:`~fastparam.functional.cayley`.
        lower: keep the free parameters in the lower triangle instead of the upper.

    Raises:
        ValueError, TypeError: ``alpha`` is 0 or not a finite number, or ``lower`` not a bool.

    Example:
        >>> layer = torch.nn.Linear(3, 5)
        >>> _ = parametrize.register_parametrization(layer, "weight", fastparam.SkewCayley())
        >>> torch.allclose(layer.weight.mT @ layer.weight, torch.eye(3), atol=1e-6)
        True
        >>> layer.weight = -layer.weight
    """

    def __init__(self, alpha: float = 1.0, lower: bool = False) -> None:
        check_flag(type(self).__name__, "lower", lower)
        super().__init__(alpha)
        self.lower = lower

    def forward(self, X: Tensor) -> Tensor:
        """Returns matrices of the shape of ``X`` with orthonormal columns, or rows where they are wide, times the signs."""
        square = X.shape[-2] == X.shape[-1]
        return self._signed((skew_cayley if square else stiefel_cayley)(X, self.alpha, self.lower))

    def right_inverse(self, Q: Tensor) -> Tensor:
        r"""Returns ``X`` with :math:`\mathrm{forward}(X) = Q`, zeros where it is not read, and sets the signs.

        Exact for every ``Q`` with orthonormal columns (rows, if wide), up to rounding.

        Raises:
            NotOrthogonalError: ``Q`` is not orthogonal, or not finite; a ValueError. Nothing is changed.
            ValueError, TypeError: as :func:`~fastparam.functional.stiefel_cayley`.
        """
        check_tensor("SkewCayley", "Q", Q)
        if Q.dim() < 2:
            raise ValueError(f"SkewCayley: expected Q of shape (..., n, k), got {tuple(Q.shape)}")
        wide = Q.shape[-2] < Q.shape[-1]
        X = self._inverse(Q.mT if wide else Q)
        X.diagonal(dim1=-2, dim2=-1).div_(2)  # counted twice by T - T^H
        k = X.shape[-1]
        X = X.tril() if self.lower else torch.cat([X[..., :k, :].triu(), X[..., k:, :]], -2)
        return (X.mT if wide else X).to(Q.dtype).contiguous()

    def extra_repr(self) -> str:
        return f"alpha={self.alpha}" + ", lower=True" * self.lower


class _AroundBase(nn.Module):
    """base Cayley(X): what torch's ``orthogonal`` does with ``use_trivialization=True``."""

    base: Tensor

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.shape = weight.shape
        self.register_buffer("base", None)

    def forward(self, X: Tensor) -> Tensor:
        wide = X.shape[-2] < X.shape[-1]
        Q = self.base @ stiefel_cayley(X.mT if wide else X, -0.5, True)
        return Q.mT if wide else Q

    def right_inverse(self, Q: Tensor) -> Tensor:
        """Returns -I, which the map takes to I, and makes base the matrix: the nearest in QR's sense if it is not orthogonal."""
        if Q.shape != self.shape:
            raise ValueError(f"orthogonal: expected a matrix or batch of matrices of shape {tuple(self.shape)}, got {tuple(Q.shape)}")
        tall = (Q.mT if Q.shape[-2] < Q.shape[-1] else Q).to(double_of(Q))
        base, R = torch.linalg.qr(tall, mode="complete")
        signs = R.diagonal(dim1=-2, dim2=-1).sgn()
        base[..., : R.shape[-1]] *= torch.where(signs == 0, 1, signs)[..., None, :]
        self.base = base.to(Q.dtype)
        X = torch.zeros_like(Q, memory_format=torch.contiguous_format)
        X.diagonal(dim1=-2, dim2=-1).fill_(-1)
        return X


def orthogonal(module: M, name: str = "weight", orthogonal_map: str | None = None, *, use_trivialization: bool = True) -> M:
    r"""Makes ``module.<name>`` orthogonal, its columns (rows, if it is wide) orthonormal; returns the module.

    .. math:: Q = Q_0 (I - A / 2)^{-1} (I + A / 2), \qquad A = \mathrm{tril}(X) - \mathrm{tril}(X)^H \qquad \text{("cayley")}

    The signature, ``state_dict`` and values of :func:`torch.nn.utils.parametrizations.orthogonal`. With ``"cayley"`` the matrix runs on
    fastparam's kernels and, without trivialization, is a :class:`~fastparam.SkewCayley`, which can be assigned to; the n x n matrix
    :math:`Q_0` is completed without random numbers. The other maps are torch's own.

    Args:
        module: holds the tensor.
        name: of the parameter or buffer.
        orthogonal_map: ``"matrix_exp"``, ``"cayley"``, ``"householder"``, or None: ``"matrix_exp"`` for square or complex tensors,
            else ``"householder"``.
        use_trivialization: parametrize around the tensor that is there, or was assigned last: :math:`Q_0`, a buffer ``base``.
            Without it :math:`Q_0 = I`, and no n x n matrix is made for an n x k tensor.

    Raises:
        ValueError: the module has no such tensor, it has fewer than two dimensions, or ``orthogonal_map`` is not one of the three.

    Source: Casado, Trivializations for gradient-based optimization on manifolds, 2019.

    Example:
        >>> layer = fastparam.parametrizations.orthogonal(torch.nn.Linear(20, 40), orthogonal_map="cayley")
        >>> torch.dist(layer.weight.mT @ layer.weight, torch.eye(20)) < 1e-4
        tensor(True)
    """
    weight = getattr(module, name, None)
    if orthogonal_map != "cayley" or not isinstance(weight, Tensor) or weight.dim() < 2:
        torch_parametrizations.orthogonal(module, name, orthogonal_map, use_trivialization=use_trivialization)
        return module
    made = _AroundBase(weight) if use_trivialization else SkewCayley(alpha=-0.5, lower=True)
    parametrize.register_parametrization(module, name, made, unsafe=True)
    return module
