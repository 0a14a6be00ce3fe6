"""Products inside the ops have full precision, whatever the user has chosen for their own products, and the
choice of the user is kept.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import Tensor

from fastparam.functional import skew_cayley

every_order = pytest.mark.parametrize("n", [150, 300, 1030])
every_batch = pytest.mark.parametrize("batch", [1, 3])
LIBRARIES = ("cublas", "cublaslt")


@pytest.fixture(autouse=True)
def keep_choices() -> Iterator[None]:
    precision, library = torch.get_float32_matmul_precision(), torch.backends.cuda.preferred_blas_library()
    yield
    torch.set_float32_matmul_precision(precision)
    torch.backends.cuda.preferred_blas_library(library)


def choose(precision: str, library: str) -> None:
    torch.set_float32_matmul_precision(precision)
    torch.backends.cuda.preferred_blas_library(library)


def both_ways(X: Tensor, G: Tensor) -> tuple[Tensor, Tensor]:
    X = X.clone().requires_grad_()
    Q = skew_cayley(X)
    return Q.detach(), torch.autograd.grad(Q, X, G)[0]


@every_order
@every_batch
def test_reduced_precision_stays_outside(batch: int, n: int, gpu: str) -> None:
    G = torch.randn(batch, n, n, device=gpu)
    for size in (0.5 / n**0.5, 1.0):  # the second one needs a second attempt
        X = size * torch.randn(batch, n, n, device=gpu)
        choose("highest", "cublas")
        expected = both_ways(X, G)
        for library in LIBRARIES:
            choose("medium", library)
            kept = torch.backends.cuda.preferred_blas_library()
            assert all(map(torch.equal, both_ways(X, G), expected)), library
            assert torch.backends.cuda.preferred_blas_library() == kept
            assert torch.get_float32_matmul_precision() == "medium"


def test_choices_survive_threads(gpu: str) -> None:
    X, G = torch.randn(2, 1, 200, 200, device=gpu) / 30
    choose("highest", "cublas")
    expected = both_ways(X, G)
    choose("medium", "cublaslt")
    kept = torch.backends.cuda.preferred_blas_library()
    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(lambda _: both_ways(X, G), range(40)))
    assert torch.backends.cuda.preferred_blas_library() == kept
    for result in results:
        assert all(map(torch.equal, result, expected))


@pytest.mark.parametrize("library", LIBRARIES)
def test_the_choices_do_reach_other_products(library: str, gpu: str) -> None:
    """Otherwise the tests above would prove nothing."""
    if gpu == "cuda" and torch.cuda.get_device_capability() < (8, 0):
        pytest.skip("needs a device with TF32")
    A = torch.randn(1, 512, 512, device=gpu)
    exact, errors = A.double() @ A.double(), []
    for precision in ("highest", "medium"):
        choose(precision, library)
        errors.append((torch.bmm(A, A) - exact).abs().max().item())
    assert gpu == "cpu" or errors[1] > 10 * errors[0]
