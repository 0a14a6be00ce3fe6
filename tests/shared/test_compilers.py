"""torch.compile and compiled autograd (export is in test_export.py)."""

import pytest
import torch
import torch._dynamo.compiled_autograd
import torch._dynamo.testing
from table import (
    CASES,
    F64,
    FORMULAS,
    ONE_OF_EACH,
    every_formula,
    every_public,
    one_of_each,
    one_public_of_each,
)
from torch._functorch.aot_autograd import make_boxed_func

import fastparam

pytestmark = pytest.mark.slow
fixed = pytest.mark.usefixtures("dynamo")
# An expression of other ops and of ATen's, whose derivative consists of hundreds of them, and none of ours.
# It is compiled for one size only. The graphs of the tall map contain it as their backward part.
LONG = [case for case in CASES if case.word == "stiefel_cayley_backward"]
every_short = pytest.mark.parametrize(
    "case", [case for case in FORMULAS if case not in LONG], ids=lambda case: case.name
)


def wave(f):
    return lambda *ts: (f(*ts) * 2).sin()


def check(compiled, f, ts):
    torch.testing.assert_close(compiled(*ts), f(*ts))
    torch.testing.assert_close(
        torch.autograd.grad(compiled(*ts).sum(), ts), torch.autograd.grad(f(*ts).sum(), ts)
    )
    with torch.no_grad():
        torch.testing.assert_close(compiled(*ts), f(*ts))


class Graphs:
    """The backend aot_eager, which records the graphs that it is given."""

    def __init__(self):
        self.kept = []
        self.compile = torch._dynamo.backends.common.aot_autograd(fw_compiler=self.keep)

    def keep(self, graph, _):
        self.kept.append({str(node.target) for node in graph.graph.nodes})
        return make_boxed_func(graph.forward)


@every_formula
@fixed
def test_compile(case):
    """There is one graph for matrices of every order in batches of every size. It contains the op itself, and
    so does its backward graph: nothing is decomposed, and nothing breaks the graph.
    """
    f, graphs, dynamic = wave(case.bind(case.entry)), Graphs(), case not in LONG
    compiled = torch.compile(f, fullgraph=True, dynamic=dynamic, backend=graphs.compile)
    for b, n in ((2, 4), (5, 9), (7, 5)) if dynamic else ((2, 4),):
        check(compiled, f, case.inputs(b, n=n))
        assert case.static or len(graphs.kept) == 3, "forward, backward, and forward without a gradient"
    forward, backward, alone = graphs.kept[:3]
    assert case.composite or f"fastparam.{case.word}.default" in forward & alone
    assert any("fastparam." in target for target in backward) or not case.public


@one_of_each
@fixed
def test_compile_for_each_size(case):
    f = wave(case.bind(case.entry))
    compiled = torch.compile(f, fullgraph=True, dynamic=False, backend="aot_eager")
    check(compiled, f, case.inputs())
    check(compiled, f, tuple(t.detach().mT.requires_grad_() for t in case.inputs(2)))


@fixed
def test_inductor():
    """One op of each kind, in one graph. The tall map is left out, because its backward graph consists of
    ATen ops.
    """
    cases = [case for case in CASES if case.name in ONE_OF_EACH and case.word != "stiefel_cayley"]
    f = lambda X: sum(
        (case.bind(case.entry)(*[X] * case.tensors) * (i + 1)).sin() for i, case in enumerate(cases)
    )
    compiled = torch.compile(f, fullgraph=True, dynamic=True)
    for n in (4, 9):
        X = torch.randn(2, n, n, dtype=F64, requires_grad=True)
        Y = compiled(X)
        torch.testing.assert_close(Y, f(X))
        torch.testing.assert_close(torch.autograd.grad(Y.sum(), X), torch.autograd.grad(f(X).sum(), X))


@fixed
def test_inductor_bfloat16_under_autocast():
    X = torch.randn(8, 8, requires_grad=True)
    v = torch.randn(8, 8)
    f = lambda X: fastparam.functional.skew(X) @ v + fastparam.functional.symmetric(X.bfloat16()).float()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(torch.compile(f, fullgraph=True)(X), f(X), rtol=2e-2, atol=2e-2)


@one_public_of_each
@fixed
def test_no_recompilation_over_orders(case):
    if case.static:
        pytest.skip("the op makes its sizes constants")
    counter = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(case.bind(case.public), fullgraph=True, dynamic=True, backend=counter)
    counts = []
    for n in (5, 4, 9, 17):
        ts = case.inputs(n=n)
        y = compiled(*ts)
        y.sum().backward()
        torch.testing.assert_close(y, case.bind(case.reference)(*ts))
        counts.append(counter.frame_count)
    assert counts == counts[:1] * 4


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


@one_public_of_each
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


@one_public_of_each
@fixed
def test_double_backward_of_a_compiled_function_raises(case):
    """torch does not support it, and says so. torch.func.grad inside the compiled function works (above)."""
    ts = case.inputs()
    y = torch.compile(case.bind(case.public), backend="aot_eager")(*ts)
    (g,) = torch.autograd.grad((y**3).sum(), ts[0], create_graph=True)
    with pytest.raises(
        RuntimeError, match=r"torch\.compile with aot_autograd does not currently support double backward"
    ):
        g.sum().backward()


@one_public_of_each
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


@every_short
@fixed
def test_compiled_autograd(case):
    ts = case.inputs(2)
    loss = lambda: (case.bind(case.op)(*ts) ** 3).sum()
    expected = torch.autograd.grad(loss(), ts)
    with torch._dynamo.compiled_autograd._enable(torch.compile(backend="aot_eager", fullgraph=True)):
        loss().backward()
    torch.testing.assert_close(tuple(t.grad for t in ts), expected)


@one_of_each
@fixed
def test_compiled_autograd_by_configuration(case):
    ts = case.inputs()
    loss = lambda: (case.bind(case.op)(*ts) ** 3).sum()
    expected = torch.autograd.grad(loss(), ts)
    with torch._dynamo.config.patch(compiled_autograd=True):
        torch.compile(lambda: loss().backward(), backend="aot_eager")()
    torch.testing.assert_close(tuple(t.grad for t in ts), expected)


@one_of_each
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
    # once for the first order, at most once more for a second one, and then no more
    assert counts[-1] == counts[1]
