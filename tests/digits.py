"""Nearly twice the digits of float64, made of float64, to judge results in float64 and complex128.

The same expression in float64 cannot judge them: its own error would count as none, and a different rounding
in a BLAS would count as an error of ours. Here a value is a pair of tensors, whose exact sum it is. A product
of matrices is a sum of products of slices with so few bits that each product is exact, whatever the order and
the instructions of the BLAS.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from fractions import Fraction
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from fastparam import _reference as reference

Pair = tuple[Tensor, Tensor]
SLICES = 4  # of 20 bits or more each, up to order 2048


def add(a: Tensor, b: Tensor) -> Pair:
    total = a + b
    back = total - a
    return total, (a - (total - back)) + (b - back)


def add_pairs(x: Pair, y: Pair) -> Pair:
    high, low = add(x[0], y[0])
    return add(high, low + (x[1] + y[1]))


def halves(a: Any) -> Any:
    """Splits a number into two of 26 bits, whose products are exact (Veltkamp)."""
    c = a * 134217729.0
    return c - (c - a), a - (c - (c - a))


def times(x: Pair, factor: float) -> Pair:
    high, (a, b), (c, d) = x[0] * factor, halves(x[0]), halves(factor)
    return add(high, ((a * c - high) + a * d + b * c) + b * d + x[1] * factor)


def slices(X: Tensor, dim: int, bits: int) -> list[Tensor]:
    """Parts of X. The first one has this many bits below the largest entry along the dimension, and each
    following one has as many below the previous one.
    """
    exponent = torch.frexp(X.abs().amax(dim, keepdim=True)).exponent.double()
    parts = []
    for i in range(SLICES):
        rounder = 0.75 * torch.exp2(exponent + 53 - bits * (i + 1))
        parts.append((X + rounder) - rounder)
        X = X - parts[-1]
    return parts


def pair(x: Tensor | Pair) -> Pair:
    return x if isinstance(x, tuple) else (x, torch.zeros_like(x))


def product(x: Tensor | Pair, y: Tensor | Pair) -> Pair:
    """A product of matrices, with an error of 2^-80 of the largest entries of a row of the first and of a
    column of the second.
    """
    x, y = pair(x), pair(y)
    if x[0].is_complex():
        (a, b), (c, d) = (((z[0].real, z[1].real), (z[0].imag, z[1].imag)) for z in (x, y))
        re, im = add_pairs(product(a, c), times(product(b, d), -1)), add_pairs(product(a, d), product(b, c))
        return torch.complex(re[0], im[0]), torch.complex(re[1], im[1])
    total = pair(x[0] @ y[1] + x[1] @ y[0])
    if total[0].numel() and x[0].shape[-1]:
        bits = (53 - math.ceil(math.log2(SLICES * x[0].shape[-1]))) // 2
        a, b = slices(x[0], -1, bits), slices(y[0], -2, bits)
        for last in reversed(range(SLICES)):
            total = add_pairs(total, pair(sum(a[i] @ b[last - i] for i in range(last + 1))))
    return total


def adjoint(x: Pair) -> Pair:
    return x[0].mH, x[1].mH


def identity(X: Tensor) -> Tensor:
    return torch.eye(X.shape[-1], dtype=X.dtype, device=X.device).expand_as(X)


def twice_inverse(A: Tensor, alpha: float) -> Pair:
    """P = 2 (I + alpha A)^-1, from the inverse M in float64 and two Newton steps, M + M (I - (I + alpha
    A) M).
    """
    I = identity(A)
    M = pair(torch.linalg.inv(I + alpha * A))
    for _ in range(2):
        residual = add_pairs(pair(I), times(add_pairs(M, times(product(A, M), alpha)), -1))
        M = add_pairs(M, pair(M[0] @ sum(residual)))
    return 2 * M[0], 2 * M[1]


def sandwich(P: Pair, G: Tensor, alpha: float) -> Tensor:
    return sum(product(product(P, G), P)) * (-alpha / 2)


class Cayley(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, A: Tensor, alpha: float) -> Tensor:
        P, ctx.alpha = twice_inverse(A, alpha), alpha
        ctx.save_for_backward(*P)
        return sum(add_pairs(P, pair(-identity(A))))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, G: Tensor) -> tuple[Tensor, None]:
        return sandwich(adjoint(ctx.saved_tensors), G, ctx.alpha), None


def cotangents(P: Pair, G: Tensor, H: Tensor, alpha: float) -> tuple[Tensor, Tensor]:
    """Gradients of <H, sandwich(P^H, G)> with respect to G and to P."""
    dP = add_pairs(product(product(G, adjoint(P)), H.mH), product(product(H.mH, adjoint(P)), G))
    return sandwich(P, H, alpha), sum(dP) * (-alpha / 2)


def saved_sandwich(ctx: Any, P: Pair, G: Tensor, alpha: float) -> Tensor:
    ctx.save_for_backward(G, *P)
    ctx.alpha = alpha
    return sandwich(adjoint(P), G, alpha)


class CayleyBackward(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, G: Tensor, Q: Tensor, alpha: float) -> Tensor:
        return saved_sandwich(ctx, add(Q, identity(Q)), G, alpha)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, H: Tensor) -> tuple[Tensor, Tensor, None]:
        G, high, low = ctx.saved_tensors
        return *cotangents((high, low), G, H, ctx.alpha), None


class CayleyGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, G: Tensor, A: Tensor, alpha: float) -> Tensor:
        return saved_sandwich(ctx, twice_inverse(A, alpha), G, alpha)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, H: Tensor) -> tuple[Tensor, Tensor, None]:
        G, high, low = ctx.saved_tensors
        dG, dP = cotangents((high, low), G, H, ctx.alpha)
        return dG, sandwich(adjoint((high, low)), dP, ctx.alpha), None


def cayley(A: Tensor, alpha: float = 1.0, signs: Tensor | None = None) -> Tensor:
    return reference.signed(Cayley.apply(A, alpha), signs)


def cayley_backward(G: Tensor, Q: Tensor, alpha: float = 1.0, signs: Tensor | None = None) -> Tensor:
    return CayleyBackward.apply(reference.signed(G, signs), reference.signed(Q, signs), alpha)


def cayley_gradient(G: Tensor, A: Tensor, alpha: float) -> Tensor:
    return CayleyGradient.apply(G, A, alpha)


# ---- the exponential


def exp_pair(A: Tensor) -> Pair:
    """exp(A): the Taylor polynomial of degree 19 in blocks of 5, with an error of 2^-80 if the norm is at
    most 1/2, followed by squarings.
    """
    norm = float(torch.linalg.matrix_norm(A).max()) if A.numel() else 0.0
    s = max(0, math.frexp(norm)[1] + 1)
    powers = [pair(identity(A)), pair(A * 2.0**-s)]
    for i in range(2, 6):
        powers.append(product(powers[i // 2], powers[i - i // 2]))

    def block(b: int) -> Pair:
        total = pair(torch.zeros_like(A))
        for i in range(5):
            if 5 * b + i:  # without I
                high, low = INVERSE_FACTORIALS[5 * b + i]
                total = add_pairs(total, add_pairs(times(powers[i], high), times(powers[i], low)))
        return total

    D = block(3)
    for b in (2, 1, 0):
        D = add_pairs(product(D, powers[5]), block(b))
    P = add_pairs(D, pair(identity(A)))
    for _ in range(s):
        P = product(P, P)
    return P


def _inverse_factorial(k: int) -> tuple[float, float]:
    exact = Fraction(1, math.factorial(k))
    return float(exact), float(exact - Fraction(float(exact)))


INVERSE_FACTORIALS = [_inverse_factorial(k) for k in range(20)]


class Exponential(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, A: Tensor) -> Tensor:
        ctx.save_for_backward(A)
        return sum(exp_pair(A))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, G: Tensor) -> Tensor:
        (A,) = ctx.saved_tensors
        AH, n = A.mH, A.shape[-1]
        block = torch.cat([torch.cat([AH, torch.zeros_like(A)], -2), torch.cat([G, AH], -2)], -1)
        return sum(exp_pair(block))[..., :n, n:]


class Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, A: Tensor, B: Tensor) -> Tensor:
        ctx.save_for_backward(A, B)
        return sum(product(A, B))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, G: Tensor) -> tuple[Tensor, Tensor]:
        A, B = ctx.saved_tensors
        return sum(product(G, B.mH)), sum(product(A.mH, G))


class TriangularSolve(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, U: Tensor, B: Tensor) -> Tensor:
        X = solved(U, B, upper=True)
        ctx.save_for_backward(U, X)
        return X

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, G: Tensor) -> tuple[Tensor, Tensor]:
        U, X = ctx.saved_tensors
        dB = solved(U.mH, G, upper=False)
        return sum(product(-dB, X.mH)).triu(), dB


def solved(U: Tensor, B: Tensor, upper: bool) -> Tensor:
    """Solves in float64 and refines the solution twice."""
    X = pair(torch.linalg.solve_triangular(U, B, upper=upper))
    for _ in range(2):
        residual = add_pairs(pair(B), times(product(U, X), -1))
        X = add_pairs(X, pair(torch.linalg.solve_triangular(U, sum(residual), upper=upper)))
    return sum(X)


BY_MORE = {
    "cayley": cayley,
    "cayley_backward": cayley_backward,
    "cayley_gradient": cayley_gradient,
    "matrix_exp": Exponential.apply,
    "matrix_product": Product.apply,
    "triangular_solve": TriangularSolve.apply,
}


@contextlib.contextmanager
def more() -> Iterator[None]:
    """Makes every reference use these digits in its inverses and products, for its value and its first
    derivative, and round to float64 at the end. All other steps of a reference move entries, or add two of
    them.
    """
    with mock.patch.multiple(reference, **BY_MORE):
        yield
