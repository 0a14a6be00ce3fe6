"""Families of matrices, in float64, on which maps are tested. Each one is difficult in its own way."""

from __future__ import annotations

import math
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

F64 = torch.float64


def skew_of(X: Tensor) -> Tensor:
    """The skew matrix with the upper triangle of X."""
    return X.triu(1) - X.triu(1).mT


def scaled(X: Tensor, norm: float) -> Tensor:
    """X scaled to this 2-norm, or 0."""
    return X * (norm / torch.linalg.matrix_norm(X, 2).clamp_min(1e-300)[..., None, None])


# ---- skew ------------------------------------------------------------------------------------------------


def gaussian(n: int, batch: int = 3) -> Tensor:
    return skew_of(torch.randn(batch, n, n, dtype=F64))


def one_plane(n: int, batch: int = 3) -> Tensor:
    u, v = torch.randn(2, batch, n, 1, dtype=F64)
    return u @ v.mT - v @ u.mT + 1e-3 * gaussian(n, batch)


def planes(n: int, batch: int = 3) -> Tensor:
    """One significant entry per row and column, at a random position."""
    A, order = 1e-3 * gaussian(n, batch), torch.randperm(n)
    for i, j in zip(order[::2], order[1::2], strict=False):
        A[:, i, j] += 1
        A[:, j, i] -= 1
    return A


def halves(n: int, batch: int = 3) -> Tensor:
    A = gaussian(n, batch)
    A[:, : n // 2, n // 2 :] = A[:, n // 2 :, : n // 2] = 0
    return A


def graded(n: int, batch: int = 3) -> Tensor:
    scale = torch.logspace(0, -4, n, dtype=F64)
    return gaussian(n, batch) * scale[:, None] * scale


SKEW = (gaussian, one_plane, planes, halves, graded)
every_family = pytest.mark.parametrize("family", SKEW, ids=lambda family: family.__name__)


# ---- tall ------------------------------------------------------------------------------------------------


def gaussian_columns(n: int, k: int) -> Tensor:
    return torch.randn(n, k, dtype=F64)


def nearly_equal_columns(n: int, k: int) -> Tensor:
    below = torch.randn(n - k, 1, dtype=F64) + 1e-5 * torch.randn(n - k, k, dtype=F64)
    return torch.cat([torch.randn(k, k, dtype=F64), below])


def graded_columns(n: int, k: int) -> Tensor:
    return torch.randn(n, k, dtype=F64) * torch.logspace(0, -4, k, dtype=F64)


TALL = (gaussian_columns, nearly_equal_columns, graded_columns)
every_tall_family = pytest.mark.parametrize("family", TALL, ids=lambda family: family.__name__)


# ---- orthogonal ------------------------------------------------------------------------------------------


def haar(*shape: int, dtype: torch.dtype = F64, det: int | None = None) -> Tensor:
    """Orthonormal columns (rows, if wide), uniformly distributed up to signs. The matrix is unitary if
    complex, and has the determinant ``det`` if one is given.
    """
    n, k = shape[-2:]
    wide = torch.complex128 if dtype.is_complex else F64
    Q = torch.linalg.qr(torch.randn(*shape[:-2], max(n, k), min(n, k), dtype=wide)).Q
    if det is not None:
        Q[..., :1] *= (torch.linalg.det(Q) * det).sign()[..., None, None]
    return (Q if n >= k else Q.mT).to(dtype).contiguous()


def rotations(n: int, angle: float) -> Tensor:
    """Rotations by this angle in every plane of two axes."""
    D = torch.eye(n, dtype=F64)
    c, s = math.cos(angle), math.sin(angle)
    for i in range(0, n - 1, 2):
        D[i : i + 2, i : i + 2] = torch.tensor([[c, -s], [s, c]], dtype=F64)
    return D


def orthogonal_matrices(n: int) -> Iterator[tuple[str, Tensor]]:
    I, B, v = torch.eye(n, dtype=F64), haar(n, n), torch.randn(n, 1, dtype=F64)
    yield "Haar", haar(n, n)
    yield "identity", I
    yield "minus identity", -I
    yield "permutation", I[torch.randperm(n)]
    yield "cycle", I.roll(1, 0)
    yield "reflection", I - 2 * v @ v.mT / (v * v).sum()
    signs = torch.ones(n, dtype=F64)
    signs[: n // 2 * 2 : 2] = -1
    yield "eigenvalues 1 and -1", B * signs @ B.mT
    for missing in (0, 1e-4, 1e-8):
        yield f"rotations by pi - {missing}", B @ rotations(n, math.pi - missing) @ B.mT
    yield "Cayley of a large matrix", torch.ops.fastparam.skew_cayley(1e3 * torch.randn(n, n, dtype=F64))
