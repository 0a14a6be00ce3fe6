"""torch.compile and compiled autograd (export is in test_export.py)."""

import pytest
import torch
import torch._dynamo.compiled_autograd
import torch._dynamo.testing
from table import CASES, F64, every, every_public
from torch._functorch.aot_autograd import make_boxed_func

import fastparam

fixed = pytest.mark.usefixtures("dynamo")
static_and_dynamic = pytest.mark.parametrize("dynamic", [False, True], ids=["static", "dynamic"])


def wave(f):
    return lambda *ts: (f(*ts) * 2).sin()


def check(compiled, f, ts):
    torch.testing.assert_close(compiled(*ts), f(*ts))
    torch.testing.assert_close(
        torch.autograd.grad(compiled(*ts).sum(), ts), torch.autograd.grad(f(*ts).sum(), ts)
    )
    with torch.no_grad():
        torch.testing.assert_close(compiled(*ts), f(*ts))


@every
@fixed
@static_and_dynamic
def test_compile(case, dynamic):
    f = wave(case.bind(case.entry))
    compiled = torch.compile(f, fullgraph=True, dynamic=dynamic, backend="aot_eager")
    for n in (3, 5, 9):
        check(compiled, f, case.inputs(n=n))


@every
@fixed
@static_and_dynamic
def test_compile_batches(case, dynamic):
    f = wave(case.bind(case.entry))
    compiled = torch.compile(f, fullgraph=True, dynamic=dynamic, backend="aot_eager")
    check(compiled, f, case.inputs(2))
    check(compiled, f, tuple(t.detach().mT.requires_grad_() for t in case.inputs(2)))


def everything(scale=1.0):
    """All ops in one graph."""
    return lambda X: sum(
        (case.bind(case.entry)(*[X * scale] * case.tensors) * (i + 1)).sin() for i, case in enumerate(CASES)
    )


@pytest.mark.slow
@fixed
@static_and_dynamic
def test_inductor(dynamic):
    f = everything()
    compiled = torch.compile(f, fullgraph=True, dynamic=dynamic)
    for n in (4, 9) if dynamic else (4,):
        check(compiled, f, (torch.randn(2, n, n, dtype=F64, requires_grad=True),))


@pytest.mark.slow
@fixed
def test_inductor_bfloat16_under_autocast():
    X = torch.randn(8, 8, requires_grad=True)
    v = torch.randn(8, 8)
    f = lambda X: fastparam.functional.skew(X) @ v + fastparam.functional.symmetric(X.bfloat16()).float()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(torch.compile(f, fullgraph=True)(X), f(X), rtol=2e-2, atol=2e-2)


@every_public
@fixed
@pytest.mark.parametrize("batched", [False, True], ids=["order", "batch"])
def test_no_recompilation_over_sizes(case, batched):
    if case.static and not batched:
        pytest.skip("the op makes its sizes constants")
    counter = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(
        lambda *ts: case.bind(case.public)(*ts).sin(), fullgraph=True, dynamic=True, backend=counter
    )
    shapes = [(b, 3, 3) for b in (2, 5, 7)] if batched else [(n, n) for n in (5, 4, 9, 17)]
    counts = []
    for shape in shapes:
        ts = tuple(torch.randn(shape, requires_grad=True) for _ in range(case.tensors))
        y = compiled(*ts)
        y.sum().backward()
        torch.testing.assert_close(y, case.bind(case.reference)(*ts).sin())
        counts.append(counter.frame_count)
    assert counts == counts[:1] * len(shapes)


@every
@fixed
def test_graph_holds_the_op(case):
    """Dynamo keeps the op whole, and so does the backward graph: nothing is decomposed, nothing breaks the
    graph.
    """
    graphs = []

    def keep(graph, _):
        graphs.append(graph)
        return make_boxed_func(graph.forward)

    backend = torch._dynamo.backends.common.aot_autograd(fw_compiler=keep)
    ts = case.inputs()
    torch.compile(wave(case.bind(case.entry)), fullgraph=True, backend=backend)(*ts).sum().backward()
    forward, backward = ({str(node.target) for node in graph.graph.nodes} for graph in graphs)
    assert case.composite or f"fastparam.{case.word}.default" in forward
    assert any("fastparam." in target for target in backward) or not case.public


@every_public
@fixed
def test_unbacked_size(case):
    if case.static:
        pytest.skip("the op makes its sizes constants")
    if case.word == "stiefel_cayley":
        pytest.skip("whether a matrix is tall, square or wide is a guard on its sizes")

    @torch.compile(fullgraph=True, backend="aot_eager")
    def f(x, k):
        n = k.item()
        torch._check(n >= 2)
        return case.bind(case.public)(*[x.new_ones(n, n)] * case.tensors) + 0

    with torch._dynamo.config.patch(capture_scalar_outputs=True):
        expected = case.bind(case.reference)(*[torch.ones(4, 4)] * case.tensors)
        torch.testing.assert_close(f(torch.ones(1), torch.tensor(4)), expected)


@every_public
@fixed
def test_transforms_inside(case):
    op = case.bind(case.public)
    s = lambda *ts: (op(*ts) ** 3).sum()

    def f(*ts):
        hessian = torch.func.hessian(s)(*ts)
        mapped = torch.vmap(torch.func.jacfwd(op))(*(t.expand(2, 3, 3) for t in ts))
        return torch.func.grad(s)(*ts), hessian, mapped, torch.func.jvp(op, ts, ts)[1]

    ts = case.inputs(grad=False)
    torch.testing.assert_close(torch.compile(f, fullgraph=True, backend="aot_eager")(*ts), f(*ts))


@every_public
@fixed
def test_double_backward_of_a_compiled_function_raises(case):
    """torch offers none, and says so; torch.func.grad inside the compiled function does it (above)."""
    ts = case.inputs()
    y = torch.compile(case.bind(case.public), backend="aot_eager")(*ts)
    (g,) = torch.autograd.grad((y**3).sum(), ts[0], create_graph=True)
    with pytest.raises(
        RuntimeError, match=r"torch\.compile with aot_autograd does not currently support double backward"
    ):
        g.sum().backward()


@every_public
@fixed
def test_inference_mode_and_mutation(case):
    f = case.bind(case.public)

    def mutating(*ts):
        y = f(*ts)
        y.mul_(2)
        ts[0].add_(1)
        return y

    ts = case.inputs(grad=False)
    twin = tuple(t.clone() for t in ts)
    torch.testing.assert_close(
        torch.compile(mutating, fullgraph=True, backend="aot_eager")(*twin), mutating(*ts)
    )
    torch.testing.assert_close(twin, ts)
    with torch.inference_mode():
        torch.testing.assert_close(torch.compile(f, fullgraph=True, backend="aot_eager")(*ts), f(*ts))


def test_compile_of_a_flag_that_is_no_bool(dynamo):
    with pytest.raises(Exception, match="skew: expected lower to be True or False, got str"):
        torch.compile(lambda X: fastparam.functional.skew(X, "yes"), fullgraph=True, backend="aot_eager")(
            torch.ones(3, 3)
        )


# ---- compiled autograd -----------------------------------------------------------------------------------


@every
@fixed
@pytest.mark.parametrize("how", ["enable", "config"])
def test_compiled_autograd(case, how):
    for batch in [(), (2,)]:
        ts = case.inputs(*batch)
        loss = lambda: (case.bind(case.op)(*ts) ** 3).sum()  # noqa: B023
        expected = torch.autograd.grad(loss(), ts)
        if how == "enable":
            with torch._dynamo.compiled_autograd._enable(torch.compile(backend="aot_eager", fullgraph=True)):
                loss().backward()
        else:
            with torch._dynamo.config.patch(compiled_autograd=True):
                torch.compile(lambda: loss().backward(), backend="aot_eager")()  # noqa: B023
        torch.testing.assert_close(tuple(t.grad for t in ts), expected)


@every
@fixed
def test_compiled_autograd_with_hooks(case):
    """Saved-tensor hooks, tensor hooks, node hooks, and one input of several that needs a gradient."""
    X = case.inputs()
    ts = (X[0], *(x.detach() for x in X[1:]))
    seen = []
    with torch.autograd.graph.saved_tensors_hooks(torch.clone, torch.clone):
        y = case.bind(case.op)(*ts)
    y.register_hook(lambda G: G * 2)
    y.grad_fn.register_hook(lambda ins, outs: seen.append(1))
    with torch._dynamo.compiled_autograd._enable(torch.compile(backend="aot_eager", fullgraph=True)):
        (y**3).sum().backward()
    expected = torch.autograd.grad(2 * (case.bind(case.reference)(*ts) ** 3).sum(), X[0])
    torch.testing.assert_close((X[0].grad,), expected)


@fixed
def test_compiled_autograd_does_not_recompile_over_sizes():
    counter = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")
    counts = []
    for n in (3, 4, 9, 17, 33):
        X = torch.randn(n, n, dtype=F64, requires_grad=True)
        with torch._dynamo.compiled_autograd._enable(
            torch.compile(backend=counter, fullgraph=True, dynamic=True)
        ):
            (fastparam.functional.skew(X) ** 3).sum().backward()
        torch.testing.assert_close(
            X.grad, torch.autograd.grad((fastparam.functional.skew(X) ** 3).sum(), X)[0]
        )
        counts.append(counter.frame_count)
    assert counts[-1] == counts[1]  # once for the first order, at most once more for a second, then no more
