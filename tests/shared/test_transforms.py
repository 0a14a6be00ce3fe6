"""torch.func and torch.vmap: every op is transformed like the plain expression."""

import copy
import warnings

import pytest
import torch
from table import CASES, F64, every, every_square, one_public_of_each
from torch import func

import fastparam


def cube(f):
    return lambda *ts: f(*ts) ** 3


def scalar(f):
    return lambda *ts: (f(*ts) ** 3).sum()


def total(gradients):
    return sum((g**2).sum() for g in gradients)


TRANSFORMS = {
    "grad": lambda f, n, ts: func.grad(scalar(f), n)(*ts),
    "grad_and_value": lambda f, n, ts: func.grad_and_value(scalar(f), n)(*ts),
    "grad_grad": lambda f, n, ts: func.grad(lambda *t: total(func.grad(scalar(f), n)(*t)), n)(*ts),
    "grad_grad_grad": lambda f, n, ts: func.grad(
        lambda *s: total(func.grad(lambda *t: total(func.grad(scalar(f), n)(*t)), n)(*s)), n
    )(*ts),
    "vjp": lambda f, n, ts: func.vjp(cube(f), *ts)[1](ts[0]),
    "jvp": lambda f, n, ts: func.jvp(cube(f), ts, ts),
    "jvp_jvp": lambda f, n, ts: func.jvp(lambda *t: func.jvp(cube(f), t, ts)[1], ts, ts),
    "jacrev": lambda f, n, ts: func.jacrev(cube(f), n)(*ts),
    "jacrev_chunked": lambda f, n, ts: func.jacrev(cube(f), n, chunk_size=2)(*ts),
    "jacfwd": lambda f, n, ts: func.jacfwd(cube(f), n)(*ts),
    "hessian": lambda f, n, ts: func.hessian(scalar(f), n)(*ts),
    "jacrev_jacfwd": lambda f, n, ts: func.jacrev(func.jacfwd(scalar(f), n), n)(*ts),
    "jacrev_jacrev": lambda f, n, ts: func.jacrev(func.jacrev(scalar(f), n), n)(*ts),
    "jacfwd_jacfwd": lambda f, n, ts: func.jacfwd(func.jacfwd(scalar(f), n), n)(*ts),
    "grad_vmap": lambda f, n, ts: func.grad(
        lambda *t: torch.vmap(f)(*(x.expand(2, 3, 3) * 1 for x in t)).pow(3).sum(), n
    )(*ts),
    "linearize": lambda f, n, ts: func.linearize(cube(f), *ts)[1](*ts),
    "functionalize": lambda f, n, ts: func.functionalize(cube(f))(*ts),
}


@every
@pytest.mark.parametrize("name", TRANSFORMS)
def test_transform(case, name, device):
    ts = case.inputs(device=device, grad=False)
    run = lambda f: TRANSFORMS[name](case.bind(f), tuple(range(len(ts))), ts)
    torch.testing.assert_close(run(case.op), run(case.reference))


@one_public_of_each
@pytest.mark.parametrize("name", TRANSFORMS)
def test_transform_of_the_public_function(case, name):
    """The direct entry sees the wrapped tensors, too."""
    ts = case.inputs(grad=False)
    run = lambda f: TRANSFORMS[name](case.bind(f), tuple(range(len(ts))), ts)
    torch.testing.assert_close(run(case.public), run(case.reference))


@every
def test_complex_transforms(case):
    ts = case.inputs(dtype=torch.complex128, grad=False)
    n = tuple(range(len(ts)))
    run = lambda f: (
        func.grad(lambda *t: case.bind(f)(*t).abs().pow(2).sum(), n)(*ts),
        func.jvp(cube(case.bind(f)), ts, ts),
    )
    torch.testing.assert_close(run(case.op), run(case.reference))


@every
@pytest.mark.parametrize("dim", [0, 1, 2, -1])
def test_vmap(case, dim, device):
    ts = tuple(t.movedim(0, dim) for t in case.inputs(5, device=device, grad=False))
    run = lambda f, **k: torch.vmap(case.bind(f), in_dims=dim, **k)(*ts)
    case.check(run(case.op), run(case.reference))
    case.check(run(case.op, out_dims=-1), run(case.reference, out_dims=-1))
    case.check(run(case.op, chunk_size=2), run(case.reference))
    gradient = lambda f: torch.vmap(func.grad(scalar(case.bind(f))), in_dims=dim)(*ts)
    torch.testing.assert_close(gradient(case.op), gradient(case.reference))


@every
def test_vmap_over_batches(case):
    """The examples have a batch of their own, and each level can be at any dimension."""
    ts = case.inputs(4, 5, 2, grad=False)
    run = lambda f, dim: torch.vmap(case.bind(f), in_dims=dim)(*(t.movedim(2, dim) for t in ts))
    for dim in range(5):
        case.check(run(case.op, dim), run(case.reference, dim))
    nested = lambda f: torch.vmap(torch.vmap(case.bind(f), in_dims=-1), in_dims=1)(
        *(t.movedim(0, -1) for t in ts)
    )
    case.check(nested(case.op), nested(case.reference))
    empty = tuple(t[:0] for t in ts)
    case.check(torch.vmap(case.bind(case.op))(*empty), torch.vmap(case.bind(case.reference))(*empty))


@every
def test_vmap_of_some_inputs(case):
    """Only one tensor is mapped over."""
    X = case.inputs(5, grad=False)
    for i in range(len(X)):
        dims = tuple(0 if j == i else None for j in range(len(X)))
        args = tuple(x if d == 0 else x[0] for x, d in zip(X, dims, strict=True))
        run = lambda f: torch.vmap(case.bind(f), in_dims=dims)(*args)  # noqa: B023
        case.check(run(case.op), run(case.reference))
    run = lambda f: torch.vmap(lambda v: case.bind(f)(*(x[0] for x in X)) @ v)(torch.ones(4, 3, dtype=F64))
    torch.testing.assert_close(run(case.op), run(case.reference))


@every
def test_vmap_and_autograd(case):
    X = case.inputs(5)
    outside = lambda f: torch.autograd.grad((torch.vmap(case.bind(f))(*X) ** 3).sum(), X)
    torch.testing.assert_close(outside(case.op), outside(case.reference))
    G = torch.randn(4, 5, 3, 3, dtype=F64)
    batched = lambda f: torch.autograd.grad(case.bind(f)(*X), X, G, is_grads_batched=True)
    torch.testing.assert_close(batched(case.op), batched(case.reference))
    a, b, c = torch.randn(3, 4, 3, 3, dtype=F64)

    def sandwich(f):  # vmap of grad of vmap, with another tensor at each level
        inner = lambda a, b: torch.vmap(lambda c: scalar(case.bind(f))(*[a * b * c] * case.tensors))(c).sum()
        return torch.vmap(lambda a: torch.vmap(lambda b: func.grad(inner)(a, b))(b))(a)

    torch.testing.assert_close(sandwich(case.op), sandwich(case.reference))


@every_square
def test_vmap_refuses_what_is_no_matrix(case):
    """Inside vmap each X is a vector, which is not a matrix, although the batch of them is square."""
    X = tuple(torch.randn(3, 3) for _ in range(case.tensors))
    with pytest.raises(
        ValueError, match=rf"^{case.word}: expected {case.argument} of shape \(\.\.\., n, n\), got \("
    ):
        torch.vmap(case.bind(case.op))(*X)


def test_no_loop_fallback():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for case in CASES:
            torch.vmap(case.bind(case.op))(*case.inputs(4))
            torch.vmap(func.jvp, in_dims=(None, 0, 0))(case.bind(case.op), case.inputs(4), case.inputs(4))


class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.X = torch.nn.Parameter(torch.randn(4, 4, dtype=F64))

    def forward(self, v):
        return (fastparam.functional.skew(self.X) + fastparam.functional.symmetric(self.X, lower=True)) @ v


def test_ensemble():
    nets = [Net() for _ in range(3)]
    params, buffers = func.stack_module_state(nets)
    base, v = copy.deepcopy(nets[0]).to("meta"), torch.randn(4, dtype=F64)
    call = lambda p, b, v: func.functional_call(base, (p, b), (v,))
    torch.testing.assert_close(
        torch.vmap(call, in_dims=(0, 0, None))(params, buffers, v), torch.stack([net(v) for net in nets])
    )
    loss = lambda p, b, v: call(p, b, v).pow(2).sum()
    gradients = torch.vmap(func.grad(loss), in_dims=(0, 0, None))(params, buffers, v)
    for i, net in enumerate(nets):
        net(v).pow(2).sum().backward()
        torch.testing.assert_close(gradients["X"][i], net.X.grad)
    assert base(torch.empty(4, device="meta", dtype=F64)).shape == (4,)


def test_per_sample_gradients():
    net, v = Net(), torch.randn(6, 4, dtype=F64)
    params = {name: p.detach() for name, p in net.named_parameters()}
    loss = lambda p, v: func.functional_call(net, p, (v,)).pow(2).sum()
    gradients = torch.vmap(func.grad(loss), in_dims=(None, 0))(params, v)["X"]
    for i in range(6):
        torch.testing.assert_close(gradients[i], torch.autograd.grad(net(v[i]).pow(2).sum(), net.X)[0])
