"""Every op in plain torch: the specification, the judge of the tests, the baseline of the benchmarks, and the
decomposition for programs that run elsewhere.

The library itself never calls these.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn


def symmetric(X: Tensor, lower: bool = False) -> Tensor:
    return X.tril() + X.tril(-1).mT if lower else X.triu() + X.triu(1).mT


def symmetric_adjoint(G: Tensor, lower: bool = False) -> Tensor:
    return G.tril() + G.mT.tril(-1) if lower else G.triu() + G.mT.triu(1)


def skew(X: Tensor, lower: bool = False) -> Tensor:
    A = X.tril(-1) if lower else X.triu(1)
    return A - A.mT


def skew_adjoint(G: Tensor, lower: bool = False) -> Tensor:
    D = G - G.mT
    return D.tril(-1) if lower else D.triu(1)


def signed(Q: Tensor, signs: Tensor | None) -> Tensor:
    return Q if signs is None else Q * torch.where(signs.real < 0, -1, 1)[..., None, :]


def cayley(A: Tensor, alpha: float = 1.0, signs: Tensor | None = None) -> Tensor:
    # By the inverse, not by torch.linalg.solve, whose forward derivative is wrong at nested levels. Half
    # types in float32.
    precise = A.float() if A.dtype in (torch.float16, torch.bfloat16) else A
    I = torch.eye(A.shape[-1], dtype=precise.dtype, device=A.device)
    Q: Tensor = 2 * torch.linalg.inv(I + alpha * precise) - I
    return signed(Q, signs).to(A.dtype)


def cayley_backward(G: Tensor, Q: Tensor, alpha: float = 1.0, signs: Tensor | None = None) -> Tensor:
    G, Q = signed(G, signs), signed(Q, signs)
    PH: Tensor = (Q + torch.eye(Q.shape[-1], dtype=Q.dtype, device=Q.device)).mH
    return PH @ G @ PH * (-alpha / 2)


def cayley_gradient(G: Tensor, A: Tensor, alpha: float) -> Tensor:
    MH: Tensor = torch.linalg.inv(torch.eye(A.shape[-1], dtype=A.dtype, device=A.device) + alpha * A).mH
    return (-2 * alpha) * (MH @ G @ MH)


def skew_cayley(X: Tensor, alpha: float = 1.0, lower: bool = False, signs: Tensor | None = None) -> Tensor:
    return cayley(_skew(X, lower), alpha, signs)


def skew_cayley_backward(
    G: Tensor, Q: Tensor, alpha: float = 1.0, lower: bool = False, signs: Tensor | None = None
) -> Tensor:
    return _skew_adjoint(cayley_backward(G, Q, alpha, signs), lower)


def skew_cayley_packed(v: Tensor, alpha: float = 1.0) -> Tensor:
    n = (1 + math.isqrt(1 + 8 * v.shape[-1])) // 2
    rows, columns = torch.triu_indices(n, n, 1, device=v.device)
    T = v.new_zeros(*v.shape[:-1], n * n).index_add(-1, rows * n + columns, v).view(*v.shape[:-1], n, n)
    return cayley(T - T.mH, alpha)


def skew_cayley_packed_backward(G: Tensor, Q: Tensor, alpha: float = 1.0) -> Tensor:
    D, n = cayley_backward(G, Q, alpha), Q.shape[-1]
    rows, columns = torch.triu_indices(n, n, 1, device=Q.device)
    return (D - D.mH).flatten(-2).index_select(-1, rows * n + columns)


def stiefel_cayley(X: Tensor, alpha: float = 1.0, lower: bool = False, signs: Tensor | None = None) -> Tensor:
    if X.shape[-2] < X.shape[-1]:
        return stiefel_cayley(X.mT, alpha, lower, signs).mT
    n, k = X.shape[-2:]
    T = X.tril() if lower else torch.cat([X[..., :k, :].triu(), X[..., k:, :]], -2)
    T = nn.functional.pad(T, (0, n - k))
    return signed(cayley(T - T.mH, alpha)[..., :k], signs)


def stiefel_cayley_backward(
    G: Tensor, X: Tensor, Q: Tensor, alpha: float = 1.0, lower: bool = False, signs: Tensor | None = None
) -> Tensor:
    if X.shape[-2] < X.shape[-1]:
        return stiefel_cayley_backward(G.mT, X.mT, Q.mT, alpha, lower, signs).mT
    n, k = X.shape[-2:]
    T = X.tril() if lower else torch.cat([X[..., :k, :].triu(), X[..., k:, :]], -2)
    T = nn.functional.pad(T, (0, n - k)).to(torch.promote_types(X.dtype, torch.float32))
    dA = cayley_gradient(nn.functional.pad(signed(G.to(T.dtype), signs), (0, n - k)), T - T.mH, alpha)
    D = (dA - dA.mH)[..., :k]
    rule, diagonal = (torch.tril if lower else torch.triu), 0 if X.is_complex() else -1 if lower else 1
    return torch.cat([rule(D[..., :k, :], diagonal), D[..., k:, :]], -2).to(X.dtype)


def trivialized_cayley(X: Tensor, base: Tensor, alpha: float = 1.0, lower: bool = False) -> Tensor:
    if X.shape[-2] < X.shape[-1]:
        return trivialized_cayley(X.mT, base, alpha, lower).mT
    return matrix_product(base.to(X.dtype), stiefel_cayley(X, alpha, lower))


def trivialized_cayley_backward(
    G: Tensor, base: Tensor, Q: Tensor, M: Tensor, alpha: float = 1.0, lower: bool = False
) -> Tensor:
    return skew_cayley_backward(matrix_product(base.mH, G), Q, alpha, lower)


_SQUARINGS = 32  # of matrices of norm 2^31


def matrix_exp(A: Tensor) -> Tensor:
    # torch.linalg.matrix_exp loses digits, in float64 some 40 times those of the kernels, and its derivative
    # more. Nothing here asks for a value, so that it can be traced: a matrix is squared where it is due, and
    # one of a larger norm is NaN.
    A, dtype = A.to(torch.promote_types(A.dtype, torch.float32)), A.dtype
    norm = A.detach().abs().sum(-1, keepdim=True).amax(-2, keepdim=True) if A.shape[-1] else A.real
    squarings = norm.log2().ceil().add(1).clamp(0, _SQUARINGS)
    I = torch.eye(A.shape[-1], dtype=A.dtype, device=A.device)
    A = torch.where(norm <= 2.0 ** (_SQUARINGS - 1), A * torch.exp2(-squarings), math.nan)
    A2 = matrix_product(A, A)
    powers = (A, A2, matrix_product(A2, A), matrix_product(A2, A2))
    D = torch.zeros_like(A)
    for block in (12, 8, 4, 0):  # the Taylor polynomial of degree 16, four terms at a time
        D = matrix_product(D, powers[3])
        for i, power in enumerate(powers, start=block + 1):
            D = D + power / math.factorial(i)
    P = D + I
    for i in range(_SQUARINGS):
        due = squarings > i
        small = torch.where(due, P, 0)
        P = torch.where(due, matrix_product(small, small), P)
    return P.to(dtype)


def exp_frechet(A: Tensor, E: Tensor) -> Tensor:
    n = A.shape[-1]
    small = 2.0**-20  # leaves the norm of the block to A
    wide, E = (X.to(torch.promote_types(X.dtype, torch.float32)) for X in (A, E))
    left = torch.cat([wide, torch.zeros_like(wide)], -2)
    L = matrix_exp(torch.cat([left, torch.cat([E * small, wide], -2)], -1))[..., :n, n:] / small
    return L.to(A.dtype)


def _skew(X: Tensor, lower: bool) -> Tensor:
    T = X.tril(0 if X.is_complex() else -1) if lower else X.triu(0 if X.is_complex() else 1)
    return T - T.mH


def _skew_adjoint(D: Tensor, lower: bool) -> Tensor:
    D = D - D.mH
    return D.tril(0 if D.is_complex() else -1) if lower else D.triu(0 if D.is_complex() else 1)


def skew_exp(X: Tensor, lower: bool = False) -> Tensor:
    return matrix_exp(_skew(X, lower))


def skew_exp_backward(G: Tensor, X: Tensor, lower: bool = False) -> Tensor:
    return _skew_adjoint(exp_frechet(_skew(X, lower).mH, G), lower)


def symmetric_exp(X: Tensor, lower: bool = False) -> Tensor:
    return matrix_exp(symmetric(X, lower))


def symmetric_exp_backward(G: Tensor, X: Tensor, lower: bool = False) -> Tensor:
    return symmetric_adjoint(exp_frechet(symmetric(X, lower).mH, G), lower)


def triangular_solve(U: Tensor, B: Tensor) -> Tensor:
    X: Tensor = torch.linalg.solve_triangular(U, B, upper=True)
    return X


def _reflections(X: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """A = tril(X, -1), and U and W with H_1 .. H_k [I; 0] = [I; 0] - V W, of V = [I; 0] + A."""
    A, k = X.tril(-1), X.shape[-1]
    top = A[..., :k, :].mH
    S = matrix_product(A.mH, A)
    U = (S + top).triu(1) + torch.diag_embed((S.diagonal(dim1=-2, dim2=-1) + 1) / 2)
    return A, U, triangular_solve(U, top + torch.eye(k, dtype=X.dtype, device=X.device))


def _add_above(Y: Tensor, W: Tensor) -> Tensor:
    k = W.shape[-2]
    return torch.cat([Y[..., :k, :] + W, Y[..., k:, :]], -2)


def householder(X: Tensor) -> Tensor:
    A, _, W = _reflections(X.to(torch.promote_types(X.dtype, torch.float32)))
    I = torch.eye(*X.shape[-2:], dtype=A.dtype, device=X.device)
    return (I - _add_above(matrix_product(A, W), W)).to(X.dtype)


def householder_backward(G: Tensor, X: Tensor) -> Tensor:
    dtype = X.dtype
    G, X = (Y.to(torch.promote_types(dtype, torch.float32)) for Y in (G, X))
    A, U, W = _reflections(X)
    VG = matrix_product(A.mH, G) + G[..., : X.shape[-1], :]
    # by the lower triangular U^T, turned upside down
    Y = triangular_solve(U.mH.flip(-2, -1), VG.flip(-2)).flip(-2)
    T = matrix_product(Y, W.mH)
    M = T.triu(1) + T.triu(1).mH + torch.diag_embed(T.diagonal(dim1=-2, dim2=-1).real)
    D = _add_above(matrix_product(A, M) - matrix_product(G, W.mH), M - Y.mH)
    return D.tril(-1).to(dtype)


def matrix_product(A: Tensor, B: Tensor) -> Tensor:
    return A @ B


def masked_prune(X: Tensor, mask: Tensor) -> Tensor:
    if mask.dtype == torch.uint8:  # packed; the dimensions before its last are those of X
        mask = _bits(mask)[..., : math.prod(X.shape[mask.dim() - 1 :])].reshape(X.shape)
    return torch.where(mask, X, 0)


def pack_mask(mask: Tensor) -> Tensor:
    bits = nn.functional.pad(mask.flatten(), (0, -mask.numel() % 8)).view(-1, 8)
    return torch.where(bits, _places(mask).long(), 0).sum(-1).to(torch.uint8)


def unpack_mask(packed: Tensor, size: Sequence[int]) -> Tensor:
    return _bits(packed)[: math.prod(size)].reshape(size)


def _places(mask: Tensor) -> Tensor:
    """The values of a byte's bits, the first element's first; not by shifts, which ONNX lacks for bytes."""
    return torch.arange(8.0, dtype=torch.float32, device=mask.device).exp2().round().to(torch.uint8)


def _bits(packed: Tensor) -> Tensor:
    return ((packed.unsqueeze(-1) & _places(packed)) != 0).flatten(-2)
