"""The judge of results in float64 (digits.py) is judged by exact fractions."""

import inspect
import re
from fractions import Fraction

import digits
import pytest
import torch
from table import F64

from fastparam import _reference as reference

real_and_complex = pytest.mark.parametrize("dtype", [F64, torch.complex128], ids=str)


class Exact:
    """A complex number of two fractions."""

    def __init__(self, re, im=0):
        self.re, self.im = Fraction(re), Fraction(im)

    def __add__(self, other):
        return Exact(self.re + other.re, self.im + other.im)

    def __sub__(self, other):
        return Exact(self.re - other.re, self.im - other.im)

    def __mul__(self, other):
        return Exact(self.re * other.re - self.im * other.im, self.re * other.im + self.im * other.re)

    def __truediv__(self, other):
        size = other.re**2 + other.im**2
        return self * Exact(other.re / size, -other.im / size)

    def __abs__(self):
        return float(max(abs(self.re), abs(self.im)))


def exact(*parts):
    """The sum of tensors, as rows of exact numbers."""
    number = lambda x: Exact(x.real, x.imag)
    rows = [[number(complex(x)) for x in row] for row in parts[0].tolist()]
    for part in parts[1:]:
        rows = [
            [a + number(complex(b)) for a, b in zip(r, s, strict=True)]
            for r, s in zip(rows, part.tolist(), strict=True)
        ]
    return rows


def multiply(A, B):
    return [
        [sum((a * b for a, b in zip(row, column, strict=True)), Exact(0)) for column in zip(*B, strict=True)]
        for row in A
    ]


def distance(pair, expected):
    return max(
        abs(a - b) for r, s in zip(exact(*pair), expected, strict=True) for a, b in zip(r, s, strict=True)
    )


@real_and_complex
@pytest.mark.parametrize("n", [1, 2, 7, 20])
def test_product(dtype, n):
    A, B = torch.randn(n, n, dtype=dtype), torch.randn(n, n, dtype=dtype)
    A *= torch.logspace(0, 6, n, dtype=F64)  # columns of many sizes: small entries of a row have fewer digits
    pair = digits.product(A, B)
    assert distance(pair, multiply(exact(A), exact(B))) <= 2.0**-78 * n * A.abs().max() * B.abs().max()
    low = 2.0**-55 * torch.randn(n, n, dtype=dtype)
    pair = digits.product((A, low), B)
    assert distance(pair, multiply(exact(A, low), exact(B))) <= 2.0**-78 * n * A.abs().max() * B.abs().max()


@real_and_complex
@pytest.mark.parametrize("norm", [1.0, 1e3, 1e6])
def test_inverse(dtype, norm):
    """(I + alpha A) P = 2 I, exactly except for an error that is invisible in float64."""
    n, alpha = 6, 0.7  # alpha is not a power of two
    A = torch.randn(n, n, dtype=dtype) * norm
    P = digits.twice_inverse(A, alpha)
    I = exact(torch.eye(n, dtype=dtype))
    B = [[i + Exact(alpha) * a for i, a in zip(r, s, strict=True)] for r, s in zip(I, exact(A), strict=True)]
    residual = max(
        abs(x - i - i)
        for r, s in zip(multiply(B, exact(*P)), I, strict=True)
        for x, i in zip(r, s, strict=True)
    )
    assert residual <= 1e-10 * torch.finfo(F64).eps * torch.linalg.cond(torch.eye(n) + alpha * A)


@real_and_complex
def test_first_derivatives(dtype):
    A, G, Q = (torch.randn(3, 3, dtype=dtype, requires_grad=True) for _ in range(3))
    signs = torch.tensor([1.0, -1.0, 0.0], dtype=dtype)
    assert torch.autograd.gradcheck(lambda A: digits.cayley(A, 0.3, signs), A)
    assert torch.autograd.gradcheck(lambda G, Q: digits.cayley_backward(G, Q, 0.3, signs), (G, Q))
    assert torch.autograd.gradcheck(lambda G, A: digits.cayley_gradient(G, A, 0.3), (G, A))
    assert torch.autograd.gradcheck(digits.Product.apply, (G, A))


def test_no_reference_multiplies_in_float64():
    """A reference with an inverse or a product of matrices computes it with more digits."""
    functions = {name: f for name, f in vars(reference).items() if inspect.isfunction(f)}
    inexact = {name for name, f in functions.items() if re.search(r"\w @ \w|linalg", inspect.getsource(f))}
    assert inexact == set(digits.BY_MORE)
