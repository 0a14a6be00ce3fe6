"""The matrix exponential as a module."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ._arguments import check_square


class MatrixExponential(nn.Module):
    r"""The matrix exponential: skew-symmetric -> orthogonal of determinant 1, symmetric -> positive definite.
    By :func:`torch.matrix_exp`.

    .. math:: \exp(X) = \sum_{k \ge 0} X^k / k!

    Source: ``MatrixExponential`` of the PyTorch parametrizations tutorial: same values, same ``state_dict``.

    Example:
        >>> layer = torch.nn.Linear(4, 4)
        >>> _ = parametrize.register_parametrization(layer, "weight", fastparam.Skew())
        >>> _ = parametrize.register_parametrization(layer, "weight", fastparam.MatrixExponential())
        >>> torch.allclose(layer.weight.mT @ layer.weight, torch.eye(4), atol=1e-5)
        True
    """

    def forward(self, X: Tensor) -> Tensor:
        """Returns the exponential of ``X``, of shape (..., n, n); of half types computed in float32."""
        check_square("matrix_exp", X)
        return torch.matrix_exp(X.to(torch.promote_types(X.dtype, torch.float32))).to(X.dtype)
