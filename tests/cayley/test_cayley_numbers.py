"""Numbers of every kind in the Cayley map: entries that are not read, not finite or subnormal, singular
systems, and modes that round.
"""

import pytest
import torch
from families import skew_of
from table import F64, REAL, ops, python
from torch import nn

from fastparam.parametrizations import orthogonal

every_dtype = pytest.mark.parametrize("dtype", REAL, ids=lambda dtype: str(dtype).removeprefix("torch."))
every_value = pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")], ids=str)


def test_the_unread_triangle_and_diagonal_may_hold_anything(device):
    for n in (1, 2, 5, 16, 33, 65, 130):
        ones = torch.ones(n, n, dtype=bool)
        for lower in (False, True):
            unread = ones.triu() if lower else ones.tril()
            X, T = torch.randn(2, n, n, device=device), torch.randn(2, 2 * n, n, device=device)
            clean, tall = ops.skew_cayley(X, 1.0, lower), ops.stiefel_cayley(T, 1.0, lower)
            X[:, unread] = T[:, :n][:, unread] = float("nan")
            assert torch.equal(ops.skew_cayley(X, 1.0, lower), clean)
            assert torch.equal(ops.stiefel_cayley(T, 1.0, lower), tall)


@every_value
@every_dtype
def test_a_matrix_that_is_not_finite_is_lost_alone(value, dtype, device):
    """It works in every layout, and at any position of the entry."""
    for n in (2, 3, 4, 8, 17, 24, 32, 33, 65, 129, 260):
        batch = 19 if n < 64 else 4
        X = torch.randn(batch, n, n, device=device).to(dtype)
        A, T = skew_of(X), torch.randn(3, 2 * n, n, device=device).to(dtype)
        rows, columns = torch.triu_indices(n, n, 1)
        clean, whole, tall = ops.skew_cayley(X), ops.cayley(A), ops.stiefel_cayley(T)
        others = [i for i in range(batch) if i != 2]
        for j in {1, n // 2 or 1, n - 1}:
            Y, B = X.clone(), A.clone()
            Y[2, 0, j] = B[2, 0, j] = value
            B[2, j, 0] = -value
            for Q, expected in (
                (ops.skew_cayley(Y), clean),
                (ops.skew_cayley(-Y.mT, 1.0, True), clean),
                (ops.cayley(B), whole),
                (ops.skew_cayley_packed(Y[:, rows, columns]), clean),
            ):
                assert Q[2].isnan().all() and torch.equal(Q[others], expected[others]), (n, j)
        T[1, n + 1, 0] = value
        Q = ops.stiefel_cayley(T)
        assert Q[1].isnan().all() and torch.equal(Q[[0, 2]], tall[[0, 2]]), n


@pytest.mark.parametrize("dtype", [torch.float32, F64, torch.complex128], ids=str)
def test_singular_matrices(dtype, device):
    for A in (
        -torch.eye(3),
        torch.stack([torch.zeros(3, 3), -torch.eye(3)]),
        torch.tensor([[-1.0, 5.0], [0.0, 2.0]]),
        -torch.eye(65),
    ):
        A = A.to(device, dtype)
        if device == "cpu":
            with pytest.raises(torch.linalg.LinAlgError, match="singular"):
                ops.cayley(A)
        else:
            assert not ops.cayley(A).isfinite().all()


@pytest.mark.parametrize("n", [2, 4, 8, 16, 24, 33, 64, 100, 300, 600])
def test_denormal_products(n, device):
    """The squares of the entries are subnormal and Q = I - 2A, which no slower path may lose. The mode of the
    caller's processor is unchanged.
    """
    A = skew_of(torch.full((3, n, n), 1e-20, device=device))
    Q = ops.skew_cayley(A)
    torch.testing.assert_close(Q, torch.eye(n, device=device) - 2 * A, rtol=1e-6, atol=0)
    D = ops.skew_cayley_backward(torch.full((3, n, n), 1e-30, device=device), Q)
    assert (D.abs() <= 1e-35).all()
    assert torch.tensor(1e-40) * 1 != 0


def test_denormal_numbers_outside_are_left_alone():
    """Threads that a large Cayley map starts first must not keep flushing denormal numbers in their later
    work.
    """
    source = """
import torch, fastparam
torch.set_num_threads(2)
fastparam.functional.skew_cayley(torch.randn(400, 400))
G = torch.full((8, 256, 256), 2.0**-24, dtype=torch.float16)
assert (torch.ops.fastparam.symmetric_adjoint(G)[:, 0, 1:] == 2.0**-23).all()
"""
    done = python(source)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("n", [8, 32, 64, 128, 300, 700])
def test_reduced_precision_of_products_stays_outside(n, device):
    X, G = torch.randn(n, n, device=device) / n**0.5, torch.randn(n, n, device=device)

    def run():
        x = X.clone().requires_grad_()
        Q = ops.skew_cayley(x)
        return Q.detach(), torch.autograd.grad(Q, x, G)[0]

    expected, before = run(), torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("medium")
        assert all(map(torch.equal, run(), expected))
        with torch.autocast(device, dtype=torch.bfloat16):
            assert all(map(torch.equal, run(), expected))
    finally:
        torch.set_float32_matmul_precision(before)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bfloat16", "float16"])
def test_half_types_are_computed_in_float32(dtype):
    for n in (2, 4, 9, 33, 100):
        X, G = torch.randn(70, n, n, dtype=dtype), torch.randn(70, n, n, dtype=dtype)
        X.view(-1)[::5] *= 1e-4  # float16: subnormal
        Q = ops.skew_cayley(X)
        assert torch.equal(Q, ops.skew_cayley(X.float()).to(dtype)), n
        D = ops.skew_cayley_backward(G, Q)
        assert torch.equal(D, ops.skew_cayley_backward(G.float(), Q.float()).to(dtype)), n


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bfloat16", "float16"])
def test_every_half_number_is_converted_and_rounded_once(dtype):
    every = torch.arange(-(2**15), 2**15, dtype=torch.int16).view(dtype)
    X = torch.zeros(2**16, 2, 2, dtype=dtype)
    X[:, 0, 0] = X[:, 0, 1] = every
    for op in (ops.skew_cayley, ops.symmetric_exp):  # results from subnormal numbers to inf
        torch.testing.assert_close(op(X), op(X.float()).to(dtype), rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("shape", [(3, 3), (40, 40), (9, 4), (4, 9)], ids=str)
def test_autocast_rounds_nothing_inside_torch_func(shape):
    """torch.func switches autocast on again below the layer's ops. The gradient of torch's own product, in
    tall and wide weights, is computed inside autocast here.
    """
    layer = orthogonal(nn.Linear(*shape[::-1], bias=False), orthogonal_map="cayley")
    parameters = {name: torch.randn(p.shape) / p.shape[-1] for name, p in layer.named_parameters()}
    G = torch.randn(shape)

    class Weight(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = layer

        def forward(self):
            return self.layer.weight

    def loss(parameters):
        named = {f"layer.{name}": p for name, p in parameters.items()}
        return (torch.func.functional_call(Weight(), named, ()) * G).sum()

    def run():
        gradient = torch.func.grad(loss)(parameters) if shape[0] == shape[1] else None
        return gradient, torch.func.jvp(loss, (parameters,), (parameters,))

    expected = run()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(run(), expected)
