"""The verb ``orthogonal`` of ``torch.nn.utils.parametrizations``, and geotorch's ``symmetric`` and
``skew``.
"""

from __future__ import annotations

from typing import Any, Literal, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations as torch_parametrizations
from torch.nn.utils import parametrize

from .._arguments import check_flag, check_matrices, has_no_data, ordinary
from .._cayley import SkewCayley, plain, trivialized_cayley
from .._sharding import beside
from .._triangular import Skew, Symmetric
from ._layers import check_held

M = TypeVar("M", bound=nn.Module)


def symmetric(module: M, name: str = "weight", lower: bool = False) -> M:
    r"""Makes ``module.<name>`` symmetric; returns the module.

    .. math:: S(X) = \mathrm{triu}(X) + \mathrm{triu}(X, 1)^T

    Args:
        module: holds the tensor.
        name: of the parameter or buffer.
        lower: keep the free parameters in the lower triangle instead of the upper, as geotorch does.

    Raises:
        ValueError: the module has no such tensor, or it is not a batch of square matrices.
        TypeError: ``module`` is not a module, or ``lower`` not a bool.

    Source: ``geotorch.symmetric``; :class:`fastparam.Symmetric`.

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
        module: holds the tensor.
        name: of the parameter or buffer.
        lower: keep the free parameters in the lower triangle instead of the upper, as geotorch does.

    Raises:
        ValueError: the module has no such tensor, or it is not a batch of square matrices.
        TypeError: ``module`` is not a module, or ``lower`` not a bool.

    Source: ``geotorch.skew``; :class:`fastparam.Skew`.

    Example:
        >>> layer = fastparam.parametrizations.skew(torch.nn.Linear(4, 4))
        >>> torch.equal(layer.weight, -layer.weight.mT)
        True
    """
    check_held("skew", module, name)
    parametrize.register_parametrization(module, name, Skew(lower))
    return module


class _AroundBase(nn.Module):
    """base Cayley(X): what torch's ``orthogonal`` does with ``use_trivialization=True``."""

    base: Tensor
    shape: torch.Size

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.shape = weight.shape
        self.register_buffer("base", None)

    def forward(self, X: Tensor) -> Tensor:
        return trivialized_cayley(X, beside(X, self.base), -0.5, True)

    @torch.no_grad()
    def right_inverse(self, Q: Tensor) -> Tensor:
        """Returns -I, which the map takes to I, and makes base the matrix: the nearest in QR's sense if it is
        not orthogonal.
        """
        check_matrices("orthogonal", Q, "Q")
        if Q.shape != self.shape:
            raise ValueError(
                f"orthogonal: expected a matrix or batch of matrices of shape {tuple(self.shape)}, "
                f"got {tuple(Q.shape)}"
            )
        if self.base is not None:
            base = self.base
            for of, theirs, ours in (("of dtype", Q.dtype, base.dtype), ("on", Q.device, base.device)):
                if theirs != ours:
                    raise ValueError(
                        f"orthogonal: expected a matrix {of} {plain(ours)}, as its base is, "
                        f"got {plain(theirs)}"
                    )
            if not has_no_data(Q) and not Q.isfinite().all():
                raise ValueError("orthogonal: expected a finite matrix, got one with nan or inf")
        tall = (Q.mT if Q.shape[-2] < Q.shape[-1] else Q).to(torch.promote_types(Q.dtype, torch.float32))
        if tall.numel():  # by a power of two, where the norm of a column could leave the range of the dtype
            size = tall.abs().amax((-2, -1), keepdim=True)
            tall = tall * torch.where(size > 1e18, 2.0**-64, torch.where(size < 1e-18, 2.0**64, 1.0)).to(size)
        base, R = torch.linalg.qr(tall, mode="complete")
        signs = R.diagonal(dim1=-2, dim2=-1).sgn()
        base[..., : R.shape[-1]] *= torch.where(signs == 0, 1, signs)[..., None, :]
        self.base = ordinary(base.to(Q.dtype).contiguous())
        X = torch.zeros_like(Q, memory_format=torch.contiguous_format)
        X.diagonal(dim1=-2, dim2=-1).fill_(-1)
        return X

    def extra_repr(self) -> str:
        return f"{tuple(self.shape)}, orthogonal_map=cayley"


class _FromRaw(SkewCayley):
    """A SkewCayley that, as torch's ``orthogonal`` without trivialization, takes the weight on registration
    for the raw X.
    """

    op: str = "orthogonal"
    remedy: str = "use_trivialization=True"
    registered = False

    def right_inverse(self, Q: Tensor) -> Tensor:
        if not self.registered:
            raise NotImplementedError
        return super().right_inverse(Q)


def orthogonal(
    module: M,
    name: str = "weight",
    orthogonal_map: Literal["matrix_exp", "cayley", "householder"] | None = None,
    *,
    use_trivialization: bool = True,
) -> M:
    r"""Makes ``module.<name>`` orthogonal, its columns (rows, if it is wide) orthonormal; returns the module.

    .. math:: Q = Q_0 (I - A / 2)^{-1} (I + A / 2), \qquad A = \mathrm{tril}(X) - \mathrm{tril}(X)^H \qquad
    \text{("cayley")}

    The signature, ``state_dict`` and values of :func:`torch.nn.utils.parametrizations.orthogonal`. With
    ``"cayley"`` the matrix runs on fastparam's kernels and, without trivialization, is a
    :class:`~fastparam.SkewCayley`, which can be assigned to; the n x n matrix
    :math:`Q_0` is completed without random numbers. The other maps are torch's own.

    Args:
        module: holds the tensor.
        name: of the parameter or buffer.
        orthogonal_map: ``"matrix_exp"``, ``"cayley"``, ``"householder"``, or None: ``"matrix_exp"`` for
            square or complex tensors, else ``"householder"``.
        use_trivialization: parametrize around the tensor that is there, or was assigned last: :math:`Q_0`, a
            buffer ``base``. Without it :math:`Q_0 = I`, and no n x n matrix is made for an n x k tensor.

    Raises:
        ValueError: the module has no such tensor, it has fewer than two dimensions, ``orthogonal_map`` is
            not one of the three, or it is ``"householder"``, whose free parameter keeps signs on its
            diagonal, and the tensor is parametrized already.
        TypeError: ``module`` is not a module, or ``use_trivialization`` not a bool.

    Source: Casado, Trivializations for gradient-based optimization on manifolds, 2019.

    Example:
        >>> layer = fastparam.parametrizations.orthogonal(torch.nn.Linear(20, 40), orthogonal_map="cayley")
        >>> torch.dist(layer.weight.mT @ layer.weight, torch.eye(20)) < 1e-4
        tensor(True)
    """
    check_held("orthogonal", module, name)
    use_trivialization = check_flag("orthogonal", "use_trivialization", use_trivialization)
    weight = getattr(module, name, None)
    before = parametrize.is_parametrized(module, name)
    if before and isinstance(weight, Tensor) and weight.dim() >= 2:
        square = weight.shape[-2] == weight.shape[-1] or weight.is_complex()
        if orthogonal_map == "householder" or (orthogonal_map is None and not square):
            raise ValueError(
                f"orthogonal: expected orthogonal_map 'cayley' or 'matrix_exp' for a '{name}' that is "
                f"parametrized already, got {orthogonal_map!r}"
            )
    if orthogonal_map != "cayley" or not isinstance(weight, Tensor) or weight.dim() < 2:
        torch_parametrizations.orthogonal(module, name, orthogonal_map, use_trivialization=use_trivialization)
    else:
        made = _AroundBase(weight) if use_trivialization else _FromRaw(alpha=-0.5, lower=True, signs=False)
        parametrize.register_parametrization(module, name, made, unsafe=True)
        made.registered = True
    if before and use_trivialization:  # torch calls no inverse then, and Q_0 is the identity
        assert weight is not None
        n = max(weight.shape[-2:])
        identity = torch.eye(n, dtype=weight.dtype, device=weight.device)
        last: Any = module.parametrizations[name][-1]  # type: ignore[index]
        last.base = identity.expand(*weight.shape[:-2], n, n).contiguous()
    return module
