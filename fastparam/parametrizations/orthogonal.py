"""The verb ``orthogonal`` of ``torch.nn.utils.parametrizations``, and geotorch's ``symmetric`` and
``skew``.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from typing import Literal, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations as torch_parametrizations
from torch.nn.utils import parametrize

from .. import _C
from .._arguments import check_flag, check_matrices, has_no_data, ordinary
from .._cayley import trivialized_cayley
from .._cayley_module import SkewCayley
from .._exponential import stiefel_exp
from .._exponential_module import PositiveDefinite, SkewExponential
from .._householder import householder
from .._sharding import beside
from .._signed import plain
from .._triangular import Skew, Symmetric
from .._without_autocast import casts, without_autocast
from ._layers import check_held

M = TypeVar("M", bound=nn.Module)


def symmetric(module: M, name: str = "weight", lower: bool = False) -> M:
    r"""Makes ``module.<name>`` symmetric; returns the module.

    .. math:: S(X) = \mathrm{triu}(X) + \mathrm{triu}(X, 1)^T

    Args:
        module: module that holds the tensor.
        name: name of the parameter or buffer.
        lower: whether to keep the free parameters in the lower triangle instead of the upper one, as geotorch
            does.

    Raises:
        ValueError: If the module has no such tensor, or it is not a batch of square matrices.
        TypeError: If ``module`` is not a module, or ``lower`` is not a bool.

    The parametrization is :class:`fastparam.Symmetric`.

    Source: ``geotorch.symmetric``.

    Example:
        >>> layer = fastparam.parametrizations.symmetric(torch.nn.Linear(4, 4))
        >>> torch.equal(layer.weight, layer.weight.mT)
        True
    """
    check_held("symmetric", module, name)
    parametrize.register_parametrization(module, name, Symmetric(lower))
    return module


def skew(module: M, name: str = "weight", lower: bool = False) -> M:
    r"""Makes ``module.<name>`` skew-symmetric; returns the module.

    .. math:: K(X) = \mathrm{triu}(X, 1) - \mathrm{triu}(X, 1)^T

    Args:
        module: module that holds the tensor.
        name: name of the parameter or buffer.
        lower: whether to keep the free parameters in the lower triangle instead of the upper one, as geotorch
            does.

    Raises:
        ValueError: If the module has no such tensor, or it is not a batch of square matrices.
        TypeError: If ``module`` is not a module, or ``lower`` is not a bool.

    The parametrization is :class:`fastparam.Skew`.

    Source: ``geotorch.skew``.

    Example:
        >>> layer = fastparam.parametrizations.skew(torch.nn.Linear(4, 4))
        >>> torch.equal(layer.weight, -layer.weight.mT)
        True
    """
    check_held("skew", module, name)
    parametrize.register_parametrization(module, name, Skew(lower))
    return module


def positive_definite(module: M, name: str = "weight", lower: bool = False) -> M:
    r"""Makes ``module.<name>`` symmetric positive definite; returns the module.

    .. math:: P = \exp(\mathrm{triu}(X) + \mathrm{triu}(X, 1)^T)

    Args:
        module: module that holds the tensor.
        name: name of the parameter or buffer. A tensor that is positive definite already is kept.
        lower: whether to keep the free parameters in the lower triangle instead of the upper one.

    Raises:
        ValueError: If the module has no such tensor, or it is not a batch of square matrices.
        TypeError: If ``module`` is not a module, or ``lower`` is not a bool.

    The parametrization is :class:`fastparam.PositiveDefinite`.

    Example:
        >>> layer = fastparam.parametrizations.positive_definite(torch.nn.Linear(4, 4))
        >>> torch.linalg.eigvalsh(layer.weight).min() > 0
        tensor(True)
    """
    check_held("positive_definite", module, name)
    parametrize.register_parametrization(module, name, PositiveDefinite(lower))
    return module


def _householder(X: Tensor) -> Tensor:
    # Any number has a sign. torch takes the integer part, which is 0 once a weight has decayed.
    signs = torch.where(X.diagonal(dim1=-2, dim2=-1) < 0, -1, 1)
    return householder(X) * signs[..., None, :]


_MAPS: dict[str, Callable[[Tensor], Tensor]] = {
    "matrix_exp": partial(stiefel_exp, lower=True),
    "householder": _householder,
}


class _Orthogonal(nn.Module):
    """The map of torch's ``orthogonal``: base map(X), or map(X)."""

    base: Tensor | None
    shape: torch.Size | None = None  # of the weight, once the map is registered
    orthogonal_map: str

    def __init__(self, orthogonal_map: str, use_trivialization: bool) -> None:
        super().__init__()
        self.orthogonal_map = orthogonal_map
        self.use_trivialization = use_trivialization
        if use_trivialization:
            self.register_buffer("base", None)

    def forward(self, X: Tensor) -> Tensor:
        base = beside(X, self.base) if self.use_trivialization else None
        if self.orthogonal_map == "cayley":
            assert base is not None
            with without_autocast(X) if casts(X) else nullcontext():  # torch.func casts inside the op, too
                return trivialized_cayley(X, base, -0.5, True)
        check_matrices("orthogonal", X, "X")
        wide, dtype = X.shape[-2] < X.shape[-1], torch.promote_types(X.dtype, torch.float32)
        with without_autocast(X):
            Q = _MAPS[self.orthogonal_map]((X.mT if wide else X).to(dtype))
            Q = Q if base is None else base.to(dtype) @ Q
        return (Q.mT if wide else Q).to(X.dtype).contiguous()

    def right_inverse(self, Q: Tensor) -> Tensor:
        """Returns -I, which the map takes to I, and sets base to the matrix, or, if it is not orthogonal, to
        the orthogonal factor of its QR decomposition. Without a base, returns the reflections of that matrix,
        or its logarithm.
        """
        if self.orthogonal_map == "matrix_exp" and not self.use_trivialization:
            if self.shape is None or self.shape[-2] != self.shape[-1]:
                raise NotImplementedError(
                    "orthogonal: the matrix exponential of a weight that is not square cannot be assigned to "
                    "without use_trivialization=True"
                )
            _check_shape(Q, self.shape)
            return _Logarithm(lower=True, signs=False).right_inverse(Q)
        _check_shape(Q, self.shape)
        Q = Q.detach()
        wide, no_data = Q.shape[-2] < Q.shape[-1], has_no_data(Q)
        base = self._buffers.get("base")
        if base is not None:
            for of, theirs, ours in (("of dtype", Q.dtype, base.dtype), ("on", Q.device, base.device)):
                if theirs != ours:
                    raise ValueError(
                        f"orthogonal: expected a matrix {of} {plain(ours)}, as its base is, "
                        f"got {plain(theirs)}"
                    )
        if self.shape is not None and not no_data and not Q.isfinite().all():
            raise ValueError("orthogonal: expected a finite matrix, got one with nan or inf")
        if self.orthogonal_map == "householder" and Q.is_complex():
            raise ValueError(f"orthogonal: expected a real matrix, got one of dtype {plain(Q.dtype)}")
        tall = (Q.mT if wide else Q).to(torch.promote_types(Q.dtype, torch.float32))
        low = high = 0.0
        if not no_data:
            norms = torch.linalg.vector_norm(tall, dim=(-2, -1))
            low, high = map(float, norms.aminmax() if norms.dim() else (norms, norms))
            if not 1e-14 < low <= high < 1e18:  # the norm of a column could leave the range of the dtype
                size = tall.abs().amax((-2, -1), keepdim=True)
                power = torch.where(size > 1e18, 2.0**-64, torch.where(size < 1e-18, 2.0**64, 1.0))
                tall = tall * power.to(size)
        if not self.use_trivialization:
            if no_data:  # geqrf has no rule for the shape of its result
                return torch.zeros_like(Q, memory_format=torch.contiguous_format)
            V, tau = torch.geqrf(tall)
            signs = V.diagonal(dim1=-2, dim2=-1)
            signs.copy_(torch.where((signs < 0) ^ tau.bool(), 1.0, -1.0))
            return (V.mT if wide else V).to(Q.dtype).contiguous()
        n = Q.shape[-1]  # the square of the norm of an orthogonal matrix
        if 0.9 * n < low * low <= high * high < 1.1 * n and _is_orthogonal(Q):
            base = Q.clone(memory_format=torch.contiguous_format)
        else:
            base = _C.orthogonal_factor(tall, Q.dtype)
        self._buffers["base"] = ordinary(base)
        X = torch.zeros_like(Q, memory_format=torch.contiguous_format)
        X.diagonal(0, -2, -1).fill_(-1)
        return X

    def extra_repr(self) -> str:
        return f"{tuple(self.shape or ())}, orthogonal_map={self.orthogonal_map}"


def _check_shape(Q: Tensor, shape: torch.Size | None) -> None:
    if shape is None:
        return  # on registration; `orthogonal` has checked it
    check_matrices("orthogonal", Q, "Q")
    if Q.shape != shape:
        wanted = f"a matrix or batch of matrices of shape {tuple(shape)}"
        raise ValueError(f"orthogonal: expected {wanted}, got {tuple(Q.shape)}")


def _is_orthogonal(Q: Tensor) -> bool:
    """Whether the matrices are square, and orthogonal within the accuracy of their dtype. If so, they are
    kept as they are.
    """
    n = Q.shape[-1]
    if Q.shape[-2] != n:
        return False
    precise = Q.to(torch.promote_types(Q.dtype, torch.float32))
    with without_autocast(Q):
        E = precise.mH @ precise
    E.diagonal(dim1=-2, dim2=-1).sub_(1)
    return bool(E.abs().amax() <= min(0.05, 10 * n * torch.finfo(Q.dtype).eps))


class _Logarithm(SkewExponential):
    """The inverse of the exponential without trivialization."""

    op: str = "orthogonal"
    remedy: str = "use_trivialization=True"


class _FromRaw(SkewCayley):
    """A SkewCayley that takes the weight on registration for the raw X, as torch's ``orthogonal`` without
    trivialization does.
    """

    op: str = "orthogonal"
    remedy: str = "use_trivialization=True"
    shape: torch.Size | None = None  # of the weight, once the map is registered
    alpha, lower, with_signs, signs = -0.5, True, False, None

    def __init__(self) -> None:
        nn.Module.__init__(self)  # there is nothing to check, and no buffer

    def _get_name(self) -> str:
        return "SkewCayley"

    def right_inverse(self, Q: Tensor) -> Tensor:
        if self.shape is None:
            raise NotImplementedError
        _check_shape(Q, self.shape)
        return super().right_inverse(Q)


def orthogonal(
    module: M,
    name: str = "weight",
    orthogonal_map: Literal["matrix_exp", "cayley", "householder"] | None = None,
    *,
    use_trivialization: bool = True,
) -> M:
    r"""Makes the columns (rows, if it is wide) of ``module.<name>`` orthonormal; returns the module.

    .. math:: Q = Q_0 (I - A / 2)^{-1} (I + A / 2) \quad \text{("cayley")}, \qquad
              Q = Q_0 \exp(A) \quad \text{("matrix\_exp")}, \qquad
              A = \mathrm{tril}(X) - \mathrm{tril}(X)^H

    The signature, the ``state_dict`` and the values are those of
    :func:`torch.nn.utils.parametrizations.orthogonal`. The maps ``"cayley"`` and ``"matrix_exp"`` run on
    fastparam's kernels, and ``"householder"`` is a product of reflections
    (:func:`~fastparam.functional.householder`). The n x n matrix :math:`Q_0` is completed without random
    numbers, and half types are computed in float32.

    Without trivialization, ``"cayley"`` and ``"matrix_exp"`` take the tensor that is there for the raw
    parameter, even if it is orthogonal, as torch does. The weight can then be assigned to. ``"cayley"`` is a
    :class:`~fastparam.SkewCayley` without signs, which takes only matrices without an eigenvalue near -1. A
    square ``"matrix_exp"`` takes every matrix of determinant 1.

    The matrices are the last two dimensions of the tensor. In the weight of a convolution these are its
    kernels, each of which becomes orthonormal by itself; flatten the weight in a parametrization of your own
    to make its rows orthonormal. The ``weight_hh_l0`` of a GRU or an LSTM becomes orthonormal as a whole;
    :class:`~fastparam.SkewCayley` with ``blocks=3`` or ``blocks=4`` makes the weight of each gate orthogonal.

    The diagonal of a ``"householder"`` parameter is read as signs: a negative number counts as -1, and every
    other number as 1. torch takes the integer part instead, so that its weight is zero once weight decay has
    made a 1 smaller. This includes a decayed parameter that was saved here and is loaded there.

    Args:
        module: module that holds the tensor.
        name: name of the parameter or buffer.
        orthogonal_map: ``"matrix_exp"``, ``"cayley"`` or ``"householder"``. None stands for ``"matrix_exp"``
            if the tensor is square or complex, and for ``"householder"`` otherwise.
        use_trivialization: whether to parametrize around a matrix :math:`Q_0`, the buffer ``base``. It is
            made of the tensor that is there, or of the one that was assigned last. A matrix that is not
            orthogonal is orthogonalized first, as torch does; ``"householder"`` does so without
            trivialization too. Without trivialization :math:`Q_0 = I`, and no n x n matrix is made for an
            n x k tensor.

    Raises:
        ValueError: If the module has no such tensor, if it has fewer than two dimensions, if
            ``orthogonal_map`` is not one of the three, or if it is ``"householder"`` and the tensor is
            complex.
        TypeError: If ``module`` is not a module, or ``use_trivialization`` is not a bool.

    Source: Casado, Trivializations for gradient-based optimization on manifolds, 2019.

    Example:
        >>> layer = fastparam.parametrizations.orthogonal(torch.nn.Linear(20, 40), orthogonal_map="cayley")
        >>> torch.dist(layer.weight.mT @ layer.weight, torch.eye(20)) < 1e-4
        tensor(True)
    """
    weight = check_held("orthogonal", module, name)
    use_trivialization = check_flag("orthogonal", "use_trivialization", use_trivialization)
    chosen = _chosen(weight, orthogonal_map)
    if chosen is None:  # raises
        torch_parametrizations.orthogonal(module, name, orthogonal_map, use_trivialization=use_trivialization)
    assert chosen is not None and weight is not None
    check_matrices("orthogonal", weight, name)
    made: _Orthogonal | _FromRaw
    raw = chosen == "cayley" and not use_trivialization
    made = _FromRaw() if raw else _Orthogonal(chosen, use_trivialization)
    parametrize.register_parametrization(module, name, made, unsafe=True)
    vars(made)["shape"] = weight.shape  # without torch's search for a parameter of this name
    if use_trivialization and made._buffers["base"] is None:  # torch calls no inverse of a second map
        n = max(weight.shape[-2:])
        identity = torch.eye(n, dtype=weight.dtype, device=weight.device)
        made._buffers["base"] = ordinary(identity.expand(*weight.shape[:-2], n, n).contiguous())
    return module


def _chosen(weight: object, orthogonal_map: str | None) -> str | None:
    """Returns the map, or None if torch's verb raises an error."""
    if not isinstance(weight, Tensor) or weight.dim() < 2:
        return None
    if orthogonal_map is None:
        square = weight.shape[-2] == weight.shape[-1]
        orthogonal_map = "matrix_exp" if square or weight.is_complex() else "householder"
    if orthogonal_map == "householder" and weight.is_complex():
        return None
    return orthogonal_map if orthogonal_map in ("cayley", *_MAPS) else None
