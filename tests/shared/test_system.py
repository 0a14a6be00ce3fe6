"""The rest of PyTorch: grad modes, autocast, saved tensors, checkpoint, in-place changes, hooks, threads,
leaks, copies.
"""

import contextlib
import gc
import pickle
import threading
import weakref

import pytest
import torch
from table import CASES, F64, REAL, every, every_public, every_single
from torch.autograd import forward_ad as fwAD
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

import fastparam
from fastparam._ops import OPS


def gradients(f, ts):
    return torch.autograd.grad((f(*ts) ** 3).sum(), ts)


# ---- grad modes ------------------------------------------------------------------------------------------


@every
def test_inference_mode(case, device):
    ts = case.inputs(device=device)
    f, reference = case.bind(case.entry), case.bind(case.reference)
    with torch.inference_mode():
        Y = f(*ts)
        assert Y.is_inference() and not Y.requires_grad and Y.grad_fn is None
        fresh = [t.clone() for t in ts]
        inside = f(*fresh)
    expected = reference(*ts).detach()
    case.check(Y, expected)
    case.check(inside, expected)
    case.check(f(*fresh), expected)  # inference tensors, outside of the mode
    with torch.inference_mode(), torch.inference_mode(False):
        torch.testing.assert_close(gradients(f, ts), gradients(reference, ts))


@every
def test_no_grad(case):
    ts = case.inputs()
    f = case.bind(case.entry)
    with torch.no_grad():
        Y = f(*ts)
        assert not Y.requires_grad and Y.grad_fn is None
        with torch.enable_grad():
            assert f(*ts).requires_grad
    case.check(Y, case.bind(case.reference)(*ts).detach())
    assert not f(*(t.detach() for t in ts)).requires_grad
    assert f(*ts).requires_grad and not f(*ts).is_leaf


@every_single
@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float16], ids=["bfloat16", "float16"])
def test_autocast(case, kind, device):
    """The op is bit for bit the same as without autocast, in every direction, and its dtype is that of its
    input.
    """
    ts = case.inputs(dtype=torch.float32, device=device)
    f = case.bind(case.entry)

    def run(context):
        with context:
            Y = f(*ts)
            tight = torch.autograd.grad((f(*ts) ** 3).sum(), ts)
        G = torch.autograd.grad((Y**3).sum(), ts, create_graph=True)
        with context, fwAD.dual_level():
            tangent = fwAD.unpack_dual(f(*(fwAD.make_dual(t, t.detach()) for t in ts))).tangent
        return Y, tight, G, torch.autograd.grad(sum((g**2).sum() for g in G), ts), tangent

    autocast = torch.autocast(device, dtype=kind)
    torch.testing.assert_close(run(autocast), run(contextlib.nullcontext()), rtol=0, atol=0)
    jvp = lambda: torch.func.jvp(f, tuple(t.detach() for t in ts), tuple(t.detach() for t in ts))[1]
    with autocast:
        inside = jvp()
        low = f(*(t.to(kind) for t in ts))
    assert low.dtype == kind and inside.dtype == torch.float32
    torch.testing.assert_close(
        inside, jvp(), **({"rtol": 0, "atol": 0} if case.linear else {"rtol": 5e-2, "atol": 5e-2})
    )


# ---- saved tensors ---------------------------------------------------------------------------------------


@every
def test_saved_tensors(case):
    ts = case.inputs()
    f, reference = case.bind(case.entry), case.bind(case.reference)
    packed = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: packed.append(t) or t.clone(), lambda t: t):
        Y = f(*ts)
    assert case.composite or len(packed) == case.saved
    torch.testing.assert_close(torch.autograd.grad((Y**3).sum(), ts), gradients(reference, ts))
    with torch.autograd.graph.save_on_cpu():
        torch.testing.assert_close(gradients(f, ts), gradients(reference, ts))
    disabled = torch.autograd.graph.disable_saved_tensors_hooks("no")
    with disabled:
        torch.testing.assert_close(gradients(f, ts), gradients(reference, ts))


@every
@pytest.mark.parametrize("reentrant", [False, True], ids=["new", "reentrant"])
def test_checkpoint(case, reentrant):
    ts = case.inputs()
    f = case.bind(case.entry)
    again = (
        torch.autograd.grad((checkpoint(lambda *t: f(*t) ** 3, *ts, use_reentrant=reentrant)).sum(), ts)
        if not reentrant
        else None
    )
    if reentrant:  # this kind needs .backward()
        checkpoint(lambda *t: f(*t) ** 3, *ts, use_reentrant=True).sum().backward()
        again = tuple(t.grad for t in ts)
    torch.testing.assert_close(again, gradients(f, ts))


@every
def test_second_backward(case):
    """It raises if something was saved, and is allowed otherwise, as for torch's `add`. An op made of others
    saves what they save.
    """
    ts = case.inputs()
    f = case.bind(case.entry)
    Y, G = f(*ts), torch.randn(3, 3, dtype=F64)
    first = torch.autograd.grad(Y, ts, G, retain_graph=True)
    torch.testing.assert_close(torch.autograd.grad(Y, ts, G), first)
    if case.saved or case.composite:
        with pytest.raises(RuntimeError, match="Trying to backward through the graph a second time"):
            torch.autograd.grad(Y, ts, G)
    else:
        torch.testing.assert_close(torch.autograd.grad(Y, ts, G), first)


@every
@pytest.mark.parametrize("change", ["input", "result", "result, with its history"])
def test_in_place_changes(case, change):
    """A change is detected if backward needs the changed tensor, and allowed otherwise."""
    f, ts, kept = case.bind(case.entry), case.inputs(), []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.data_ptr()) or t, lambda t: t):
        Y = f(*ts)
    changed = 0 if change == "input" else None
    needed = (Y if changed is None else ts[changed]).data_ptr() in kept
    Y = f(*ts)
    if change == "result, with its history":
        Y.mul_(2)
    else:
        with torch.no_grad():
            (Y if changed is None else ts[changed]).mul_(2)
    if needed:
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            Y.sum().backward()
        return
    G = torch.full((3, 3), 2.0 if change == "result, with its history" else 1.0, dtype=F64)
    Y.sum().backward()
    if case.linear:  # otherwise the point of the derivative has moved
        case.check(tuple(t.grad for t in ts), torch.autograd.grad(case.bind(case.reference)(*ts), ts, G))


@every
def test_nodes_are_nodes_of_torch(case):
    assert isinstance(case.bind(case.entry)(*case.inputs()).grad_fn, torch.autograd.graph.Node)


def test_flops_of_every_op_with_products():
    """A square matrix costs one product forward and two backward, and a tall one costs those of its blocks.
    An exponential costs four products forward and three times as many backward; reflections cost four times
    as many backward.
    """
    families = ("cayley", "exp", "householder")
    assert {op.name for op in OPS if op.flops} == {
        op.name for op in OPS if any(family in op.name for family in families)
    }
    F, square, tall = fastparam.functional, 2 * 5**3, 4 * 6 * 4 * 4 + 2 * 4**3
    for f, shape, expected in (
        (F.skew_cayley, (3, 5, 5), 3 * square),
        (F.skew_cayley_packed, (3, 10), 3 * square),
        (F.cayley, (5, 5), square),
        (F.stiefel_cayley, (2, 10, 4), 2 * tall),
        (F.stiefel_cayley, (4, 10), tall),
        (F.matrix_exp, (5, 5), 4 * square),
        (F.skew_exp, (3, 5, 5), 12 * square),
        (F.symmetric_exp, (5, 5), 4 * square),
        (F.householder, (2, 10, 4), 2 * 2 * 10 * 4 * 4),
    ):
        X = torch.randn(shape, requires_grad=True)
        with FlopCounterMode(display=False) as counter:
            Y = f(X)
            forward = counter.get_total_flops()
            Y.sum().backward()
        both = {F.householder: 5}.get(f, 4 if "exp" in f.__name__ else 3) * expected
        assert (forward, counter.get_total_flops()) == (expected, both), f.__name__
    for batch in (0, 1, 3):
        with FlopCounterMode(display=False) as counter:
            torch.vmap(F.skew_cayley_packed)(torch.randn(batch, 10))
            torch.vmap(F.skew_cayley, (None, None, None, 0))(
                torch.ones(5, 5), 1.0, False, torch.ones(batch, 5)
            )
        assert counter.get_total_flops() == 2 * batch * square
    with FlopCounterMode(display=False) as counter:
        torch.ops.fastparam.trivialized_cayley(torch.randn(10, 4), torch.randn(10, 10))
    assert counter.get_total_flops() == tall + 2 * 10 * 10 * 4
    with FlopCounterMode(display=False) as counter:  # base costs a square one no product backward
        X = torch.randn(5, 5, requires_grad=True)
        torch.ops.fastparam.trivialized_cayley(X, torch.randn(5, 5)).sum().backward()
    assert counter.get_total_flops() == 4 * square


def test_no_reference_cycle():
    gc.collect()
    gc.disable()
    try:
        for case in CASES:
            ts = case.inputs()
            Y = case.bind(case.entry)(*ts)
            Z = (Y**2).sum()
            alive = weakref.ref(Y)
            Z.backward(retain_graph=True)
            del Y, Z
            assert alive() is None, case.name
            inputs = [weakref.ref(t) for t in ts]
            del ts
            assert all(t() is None for t in inputs), case.name
    finally:
        gc.enable()


# ---- hooks, names, threads -------------------------------------------------------------------------------


@every_single
def test_grad_fn(case):
    ts = case.inputs()
    Y = case.entry(*case.prepared(*ts))
    assert Y.grad_fn.name() == f"{case.word}_backward" and f"{case.word}_backward" in repr(Y)
    assert len(Y.grad_fn.next_functions) == case.tensors
    seen = []
    Y.register_hook(lambda G: seen.append("tensor"))
    Y.grad_fn.register_prehook(lambda outs: seen.append("before"))
    Y.grad_fn.register_hook(lambda ins, outs: seen.append("after"))
    with torch.autograd.detect_anomaly(check_nan=True):
        Y.sum().backward()
    assert sorted(seen) == ["after", "before", "tensor"]


@every
def test_node_creation_hook(case):
    if not hasattr(torch.autograd.graph, "node_creation_hook"):
        pytest.skip("torch 2.14 has node_creation_hook")
    ts, seen = case.inputs(), []
    with torch.autograd.graph.node_creation_hook(lambda node: seen.append(node.name())):
        case.bind(case.entry)(*ts)
    assert seen[-1] == f"{case.word}_backward" and seen.count(seen[-1]) == 1


def together(jobs):
    """Runs each job in its own thread, and returns their results or raises the first error."""
    results, errors, gate = [None] * len(jobs), [], threading.Barrier(len(jobs))

    def work(i, job):
        try:
            gate.wait(30)
            results[i] = job()
        except BaseException as e:
            errors.append(e)

    threads = [threading.Thread(target=work, args=item) for item in enumerate(jobs)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not errors, errors
    return results


@every
def test_backward_from_eight_threads(case):
    ts = case.inputs(n=8)
    loss = (case.bind(case.entry)(*ts) ** 3).sum()
    expected = torch.autograd.grad(loss, ts, retain_graph=True)
    for result in together([lambda: torch.autograd.grad(loss, ts, retain_graph=True)] * 8):
        torch.testing.assert_close(result, expected, rtol=0, atol=0)


@every
def test_forward_from_eight_threads(case):
    ts = case.inputs(2, n=200, dtype=torch.float32, grad=False)
    f = case.bind(case.entry)
    expected = f(*ts)
    for result in together([lambda: [f(*ts) for _ in range(5)]] * 8):
        assert all(torch.equal(Y, expected) for Y in result)


# ---- tensors of other kinds ------------------------------------------------------------------------------


def unusual():
    """Tensors that are not plain strided ones, and their names in the errors."""
    eye = torch.eye(3)
    yield eye.to_sparse(), "a sparse one"
    yield eye.to_sparse_csr(), "a sparse one"
    yield eye.to_mkldnn(), "an mkldnn one"
    yield torch.nested.nested_tensor([eye] * 2), "a nested one"
    yield torch.nested.nested_tensor([eye] * 2, layout=torch.jagged), "a nested one"


@every_public
def test_tensors_of_other_layouts(case):
    """The function raises a ValueError of one sentence. The op says the same, except for nested tensors."""
    others = case.arguments(torch.eye(3))
    for X, word in unusual():
        sentence = f"^{case.word}: expected {case.argument} to be a strided tensor, got {word}$"
        for f in (case.public, case.op)[: 1 if X.is_nested else 2]:
            with pytest.raises(ValueError, match=sentence):
                f(*[X] * case.tensors, *others)
    quantized = torch.quantize_per_tensor(torch.eye(3), 0.1, 0, torch.quint8)
    with pytest.raises(ValueError, match=f"^{case.word}: expected {case.argument} of dtype .*, got quint8"):
        case.public(*[quantized] * case.tensors, *others)


@every
def test_result_can_be_pickled_and_copied(case):
    ts = case.inputs(grad=False)
    Y = case.bind(case.entry)(*ts)
    assert torch.equal(pickle.loads(pickle.dumps(Y)), Y)
    W = Y.clone()
    Y.fill_(7)
    assert torch.equal(case.bind(case.entry)(*ts), W), "the result is new storage each time"


@every_public
def test_deterministic_algorithms_and_fill(case):
    """Uninitialised memory is filled with NaN, which shows every entry that was not written."""
    torch.use_deterministic_algorithms(True)
    try:
        for dtype in REAL:
            for n in (1, 2, 5, 9, 17, 33, 65):
                ts = case.inputs(3, n=n, dtype=dtype, grad=False)
                case.check_values(lambda f, *X: f(*X), ts)
    finally:
        torch.use_deterministic_algorithms(False)


def test_default_dtype_and_device_do_not_matter():
    X = torch.randn(3, 3, dtype=torch.float32)
    torch.set_default_dtype(F64)
    try:
        with torch.device("meta"):
            assert fastparam.functional.skew(X).dtype == torch.float32
            assert fastparam.functional.skew(X).device.type == "cpu"
    finally:
        torch.set_default_dtype(torch.float32)
