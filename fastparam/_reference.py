"""Every op in plain torch: the specification, the judge of the tests, the baseline of the benchmarks.

The library itself never calls these.
"""

from __future__ import annotations

from torch import Tensor


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
