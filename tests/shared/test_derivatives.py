"""Derivatives of every order, in reverse and forward mode, through autograd itself (torch.func is in
test_transforms.py).
"""

import itertools

import pytest
import torch
from table import BATCHES, COMPLEX, F64, REAL, every, orders
from test_values import BATCH_VIEWS, VIEWS
from torch.autograd import forward_ad as fwAD
from torch.autograd import gradcheck, gradgradcheck


def clones(ts):
    return tuple(t.detach().clone().requires_grad_() for t in ts)


@every
def test_opcheck(case):
    """All checks for a batch in float64, and then the ones that a dtype, a layout or a missing gradient could
    affect.
    """
    torch.library.opcheck(case.op, case.prepared(*case.inputs(2)))
    some = ("test_schema", "test_autograd_registration", "test_faketensor")
    for dtype, grad in ((F64, False), (torch.bfloat16, True), (torch.complex128, True)):
        views = tuple(x.detach().mT.requires_grad_(grad) for x in case.inputs(dtype=dtype))
        torch.library.opcheck(case.op, case.prepared(*views), test_utils=some)


@every
@pytest.mark.parametrize("batch, dtype", [((2,), F64), ((), torch.complex128)], ids=["batch", "complex"])
def test_gradcheck(case, batch, dtype, device):
    X = case.inputs(*batch, dtype=dtype, device=device)
    f = case.bind(case.op)
    assert gradcheck(
        f,
        X,
        check_forward_ad=True,
        check_backward_ad=True,
        check_batched_grad=True,
        check_batched_forward_grad=True,
    )
    assert gradgradcheck(f, X, check_batched_grad=True)
    assert gradgradcheck(f, X, check_fwd_over_rev=True, check_rev_over_rev=False, check_undefined_grad=False)


@every
def test_gradient_over_sizes_and_dtypes(case, device):
    for dtype in REAL + COMPLEX:
        for batch in BATCHES if dtype == torch.float32 else ((3,),):
            for n in orders(batch, dtype)[case.smallest :]:  # from order 0 on
                if n > case.largest:
                    break
                X = case.inputs(*batch, n=n, dtype=dtype, device=device)
                G = torch.randn_like(X[0])
                case.check_values(lambda f, *X, G=G: torch.autograd.grad(f(*X), X, G.to(X[0].dtype)), X)


@every
def test_gradient_through_views(case, device):
    """The leaf is the storage that the views share."""
    for (name, view), n in itertools.product((VIEWS | BATCH_VIEWS).items(), (1, 3, 9, 17)):
        leaves = []

        def new(*shape):
            leaves.append(torch.randn(*shape, dtype=F64, device=device, requires_grad=True))  # noqa: B023
            return leaves[-1]  # noqa: B023

        X = tuple(view(new, n) for _ in range(case.tensors))
        ours, theirs = (
            torch.autograd.grad((case.bind(f)(*X) ** 3).sum(), leaves) for f in (case.op, case.reference)
        )
        torch.testing.assert_close(ours, theirs, msg=lambda text: f"{name}, n = {n}: {text}")  # noqa: B023


@every
def test_incoming_gradients(case, device):
    """An incoming gradient can be expanded, transposed, strided, lazily negated, or a tensor of zeros."""
    for n in (1, 3, 9, 17, 33):
        X = case.inputs(2, n=n, device=device)
        new = lambda *shape: torch.randn(*shape, dtype=F64, device=device)
        gradients = [view(new, n) for view in VIEWS.values()]
        gradients += [
            torch._neg_view(new(2, n, n)),
            torch.zeros(2, n, n, dtype=F64, device=device),
            torch._efficientzerotensor((2, n, n), dtype=F64, device=device),
        ]
        for G in gradients:
            ours, theirs = (case.bind(f)(*X) for f in (case.op, case.reference))
            case.check(torch.autograd.grad(ours, X, G), torch.autograd.grad(theirs, X, G))


@every
def test_second_and_third_derivative(case, device):
    X = case.inputs(device=device)

    def derivatives(f):
        ts = clones(X)
        y, values = (f(*ts) ** 3).sum(), []
        for _ in range(3):
            gradients = torch.autograd.grad(y, ts, create_graph=True)
            values.append(gradients)
            y = sum((g**2).sum() for g in gradients)
        return values

    torch.testing.assert_close(derivatives(case.bind(case.op)), derivatives(case.bind(case.reference)))


@every
def test_double_backward_of_the_op_alone(case):
    """An op is linear in the incoming gradient, so its derivative there is the tangent of the op."""
    X = case.inputs()
    G = torch.randn(3, 3, dtype=F64, requires_grad=True)
    V = case.inputs(grad=False)
    for f in (case.op, case.reference):
        gradients = torch.autograd.grad(case.bind(f)(*X), X, G, create_graph=True)
        pulled = torch.autograd.grad(gradients, G, V)[0]
        torch.testing.assert_close(
            pulled, torch.func.jvp(case.bind(case.reference), tuple(x.detach() for x in X), V)[1]
        )


@every
def test_dual_level(case, device):
    X, V = case.inputs(device=device), case.inputs(device=device)
    op, reference = case.bind(case.op), case.bind(case.reference)
    with fwAD.dual_level():
        primal, tangent = fwAD.unpack_dual(op(*map(fwAD.make_dual, X, V)))
        assert fwAD.unpack_dual(op(*X)).tangent is None
    case.check(primal, reference(*X))
    torch.testing.assert_close(tangent, torch.func.jvp(reference, X, V)[1])
    for i in range(len(X)):  # a tangent on one input only
        with fwAD.dual_level():
            args = [fwAD.make_dual(x, v) if j == i else x for j, (x, v) in enumerate(zip(X, V, strict=True))]
            tangent = fwAD.unpack_dual(op(*args)).tangent
        one = tuple(v if j == i else torch.zeros_like(v) for j, v in enumerate(V))
        torch.testing.assert_close(tangent, torch.func.jvp(reference, X, one)[1])


@every
def test_tangents_of_every_layout(case, device):
    for n in (1, 3, 9, 17):
        X = case.inputs(2, n=n, device=device, grad=False)
        new = lambda *shape: torch.randn(*shape, dtype=F64, device=device)
        for view in VIEWS.values():
            V = tuple(view(new, n) for _ in X)
            with fwAD.dual_level():
                tangent = fwAD.unpack_dual(case.bind(case.op)(*map(fwAD.make_dual, X, V))).tangent
            torch.testing.assert_close(tangent, torch.func.jvp(case.bind(case.reference), X, V)[1])


@every
def test_reverse_over_forward_at_one_level(case):
    """The tangent is differentiable in the primal and the tangent, inside the level and with the graph that
    autograd keeps.
    """
    X, V = case.inputs(), case.inputs()

    def run(f):
        with fwAD.dual_level():
            tangent = fwAD.unpack_dual(case.bind(f)(*map(fwAD.make_dual, X, V)) ** 3).tangent
            return torch.autograd.grad(tangent.sum(), (*X, *V))

    torch.testing.assert_close(run(case.op), run(case.reference))


@every
def test_partial_needs(case):
    """Every subset of the tensors can require a gradient, and the gradient of every subset of those can be
    requested.
    """
    for chosen in range(1, 2**case.tensors):
        X = tuple(x.detach().requires_grad_(bool(chosen >> i & 1)) for i, x in enumerate(case.inputs()))
        wanted = [x for x in X if x.requires_grad]
        ours, theirs = ((case.bind(f)(*X) ** 3).sum() for f in (case.op, case.reference))
        for asked in ([x] for x in wanted):
            torch.testing.assert_close(
                torch.autograd.grad(ours, asked, retain_graph=True),
                torch.autograd.grad(theirs, asked, retain_graph=True),
            )
        torch.testing.assert_close(torch.autograd.grad(ours, wanted), torch.autograd.grad(theirs, wanted))


@every
def test_undefined_gradient(case):
    class Undefined(torch.autograd.Function):
        @staticmethod
        def forward(ctx, a):
            return a.clone()

        @staticmethod
        def backward(ctx, G):
            return None

    X = case.inputs()
    y = Undefined.apply(case.bind(case.op)(*X)).sum()
    assert all(g is None for g in torch.autograd.grad(y, X, allow_unused=True))


@every
def test_one_tensor_in_every_place(case):
    """The same leaf as every argument, and an op on its own result."""
    X = case.inputs()[0]

    def run(f):
        f = case.bind(f)
        y = f(*[X] * case.tensors)
        return torch.autograd.grad((f(*[y] * case.tensors) ** 3).sum() + y.sum(), X)

    torch.testing.assert_close(run(case.op), run(case.reference))
