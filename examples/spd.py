"""Fits the covariance of real data by gradient descent, with a parameter that stays symmetric positive
definite.

The likelihood of a Gaussian is maximal at the sample covariance, so the result of the optimizer can be
checked. ``fastparam.PositiveDefinite`` computes the covariance from an unconstrained matrix, and nothing is
projected or clipped. The data are thirteen measurements of 178 wines, standardized, from scikit-learn.

Run ``python examples/spd.py [--steps 16]``.
"""

from __future__ import annotations

import argparse
import math

import torch
from sklearn.datasets import load_wine
from torch import Tensor, nn

import fastparam


class Gaussian(nn.Module):
    def __init__(self, n: int) -> None:
        super().__init__()
        self.covariance = nn.Parameter(torch.eye(n, dtype=torch.float64))
        fastparam.parametrizations.positive_definite(self, "covariance")  # the identity is kept

    def forward(self, X: Tensor) -> Tensor:
        """Returns minus the mean log-likelihood of centred rows."""
        L = torch.linalg.cholesky(self.covariance)
        squares = torch.linalg.solve_triangular(L, X.mT, upper=False).square().sum(0)
        return squares.mean() / 2 + L.diagonal().log().sum() + X.shape[1] / 2 * math.log(2 * math.pi)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=16)
    steps = parser.parse_args().steps

    X = torch.from_numpy(load_wine().data)
    X = (X - X.mean(0)) / X.std(0)
    sample = X.mT @ X / len(X)
    model = Gaussian(X.shape[1])
    optimizer = torch.optim.LBFGS(model.parameters(), line_search_fn="strong_wolfe", tolerance_change=0)

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = model(X)
        loss.backward()
        return loss

    for step in range(steps):
        loss = optimizer.step(closure)
        if step % 5 == 0:
            print(f"step {step:3d}  minus log-likelihood {loss.item():.6f}")

    fitted = model.covariance.detach()
    error = float((fitted - sample).norm() / sample.norm())
    print(f"eigenvalues {float(torch.linalg.eigvalsh(fitted).min()):.3g} and more")
    print(f"relative distance from the sample covariance {error:.1e}")
    assert torch.equal(fitted, fitted.mT)
    assert error < 1e-4, error


if __name__ == "__main__":
    main()
