"""The peak memory of the exponentials with their gradients, compared with torch's."""

import sys
from pathlib import Path

import pytest
import torch

from fastparam.functional import matrix_exp, skew_exp, symmetric_exp

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))
from measure import peak_bytes

MAPS = {
    skew_exp: lambda X: torch.matrix_exp(X.triu(1) - X.triu(1).mT),
    symmetric_exp: lambda X: torch.matrix_exp(X.triu() + X.triu(1).mT),
    matrix_exp: torch.matrix_exp,
}


@pytest.mark.parametrize("f", MAPS, ids=lambda f: f.__name__)
@pytest.mark.parametrize("norm", [0.1, 100.0])
def test_peak_with_gradient(f, norm):
    """The bound holds for any number of squarings. torch exponentiates a matrix of twice the order."""
    X = torch.randn(512, 512)
    X *= norm / torch.linalg.matrix_norm(X, 2)
    G = torch.full_like(X, 1e-3)

    def peak(f):
        return peak_bytes(lambda X, G: torch.autograd.grad(f(X), X, G)[0], (X.requires_grad_(), G))

    assert peak(f) <= 0.35 * peak(MAPS[f])
