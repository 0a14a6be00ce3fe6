"""torch.export, AOTInductor, torch.fx, make_fx and torch.jit.trace: programs that leave the process in which
they were created.
"""

import pytest
import torch
from table import F64, every, every_formula, every_public, one_of_each, python
from torch import nn
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn.utils import parametrize

import fastparam
from fastparam import _reference as reference

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("dynamo")]


class Apply(nn.Module):
    def __init__(self, f):
        super().__init__()
        self.f = f

    def forward(self, *ts):
        return self.f(*ts) * 2


class Both(nn.Module):
    def forward(self, X):
        return fastparam.functional.skew(X) + fastparam.functional.symmetric(X, lower=True)


def both(X):
    return reference.skew(X) + reference.symmetric(X, lower=True)


def targets(graph):
    return {str(node.target) for node in graph.nodes}


def check_export(case, strict):
    ts = case.inputs(grad=False)
    model = Apply(case.bind(case.entry))
    program = torch.export.export(model, ts, strict=strict)
    assert case.composite or f"fastparam.{case.word}.default" in targets(program.graph)
    torch.testing.assert_close(program.module()(*ts), model(*ts))
    lowered = program.run_decompositions()
    assert case.composite or f"fastparam.{case.word}.default" in targets(lowered.graph)
    torch.testing.assert_close(lowered.module()(*ts), model(*ts))
    decomposed = program.run_decompositions(
        torch.export.default_decompositions() | fastparam.decompositions()
    )
    assert not any("fastparam" in target for target in targets(decomposed.graph))
    torch.testing.assert_close(decomposed.module()(*ts), model(*ts))


@every_formula
def test_export(case):
    check_export(case, strict=False)


@one_of_each
def test_export_by_dynamo(case):
    check_export(case, strict=True)


@pytest.mark.parametrize("strict", [False, True], ids=["non-strict", "strict"])
def test_export_dynamic_save_load(tmp_path, strict):
    n, b = torch.export.Dim("n", min=2, max=64), torch.export.Dim("b", min=2, max=8)
    program = torch.export.export(
        Both(), (torch.randn(3, 4, 4),), dynamic_shapes=({0: b, 1: n, 2: n},), strict=strict
    )
    torch.export.save(program, tmp_path / "both.pt2")
    loaded = torch.export.load(tmp_path / "both.pt2").module()
    for shape in [(3, 4, 4), (2, 2, 2), (5, 17, 17), (8, 64, 64)]:
        X = torch.randn(shape)
        assert torch.equal(loaded(X), both(X))
    with pytest.raises((ValueError, RuntimeError, AssertionError)):
        loaded(torch.randn(3, 4, 5))


def test_export_learns_that_the_matrix_is_square():
    """The shape check makes the two sizes equal. Requesting two different ones is refused when the program is
    exported.
    """
    n, m = torch.export.Dim("n", min=2, max=64), torch.export.Dim("m", min=2, max=64)
    with pytest.raises(Exception, match="Constraints violated"):
        torch.export.export(Both(), (torch.randn(4, 4),), dynamic_shapes=({0: n, 1: m},))
    auto = torch.export.export(
        Both(), (torch.randn(4, 4),), dynamic_shapes=({0: torch.export.Dim.AUTO, 1: torch.export.Dim.AUTO},)
    )
    X = torch.randn(9, 9)
    assert torch.equal(auto.module()(X), both(X))


def test_export_for_training():
    """The exported graph is differentiable, and a joint graph contains the adjoints."""
    program = torch.export.export(Both(), (torch.randn(4, 4, dtype=F64),))
    X = torch.randn(4, 4, dtype=F64, requires_grad=True)
    ours, theirs = (f(X).pow(3).sum() for f in (program.module(), both))
    torch.testing.assert_close(torch.autograd.grad(ours, X), torch.autograd.grad(theirs, X))


def test_aot_inductor(tmp_path):
    """A package compiled ahead of time runs here, and in a process that only loads it."""
    n = torch.export.Dim("n", min=2, max=64)
    program = torch.export.export(Both(), (torch.randn(4, 4),), dynamic_shapes=({0: n, 1: n},))
    path = torch._inductor.aoti_compile_and_package(program, package_path=str(tmp_path / "both.pt2"))
    loaded = torch._inductor.aoti_load_package(path)
    for order in (4, 9, 33):
        X = torch.randn(order, order)
        assert torch.equal(loaded(X), both(X))
    source = f"""
import torch, fastparam
from fastparam import _reference as r
X = torch.randn(17, 17)
assert torch.equal(torch._inductor.aoti_load_package({path!r})(X), r.skew(X) + r.symmetric(X, lower=True))
print("same")
"""
    done = python(source)
    assert done.stdout.strip() == "same", done.stderr


@every
@pytest.mark.parametrize("mode", ["real", "fake", "symbolic"])
def test_make_fx(case, mode):
    ts = case.inputs(grad=False)
    f = case.bind(case.entry)
    graph = make_fx(f, tracing_mode=mode, _allow_non_fake_inputs=True)(*ts)
    assert case.composite or f"fastparam.{case.word}.default" in targets(graph.graph)
    case.check(graph(*ts), case.bind(case.reference)(*ts))
    if mode == "symbolic" and not case.static:
        ts = case.inputs(n=9, grad=False)
        case.check(graph(*ts), case.bind(case.reference)(*ts))


@every
def test_make_fx_of_gradients(case):
    ts = case.inputs(grad=False)
    f = torch.func.grad(lambda *ts: (case.bind(case.entry)(*ts) ** 3).sum())
    torch.testing.assert_close(make_fx(f)(*ts)(*ts), f(*ts))
    g = make_fx(torch.func.functionalize(case.bind(case.entry)))(*ts)
    case.check(g(*ts), case.bind(case.reference)(*ts))


@every_public
def test_fx_symbolic_trace(case):
    if case.tensors != 1:
        pytest.skip("symbolic_trace wants a fixed number of arguments")
    X = case.inputs(grad=False)[0]
    f, others, X = case.public, case.arguments(X), case.before(X)
    graph = torch.fx.symbolic_trace(lambda X: f(X, *others) + 1)
    assert any(case.word in target for target in targets(graph.graph))
    case.check(graph(X), f(X, *others) + 1)


@every_public
def test_jit_trace(case, tmp_path):
    ts = case.inputs(grad=False)
    traced = torch.jit.trace(case.bind(case.public), ts)
    assert f"fastparam::{case.word}" in str(traced.graph)
    case.check(traced(*ts), case.bind(case.reference)(*ts))
    if not any(callable(a) for a in case.others):
        ts = case.inputs(n=5, grad=False)
        case.check(traced(*ts), case.bind(case.reference)(*ts))


@every
def test_fake_tensors(case):
    from torch._subclasses.fake_tensor import FakeTensorMode

    for dtype in (torch.float32, torch.bfloat16, torch.complex64):
        with FakeTensorMode() as mode:
            ts = tuple(mode.from_tensor(x.mT) for x in case.inputs(2, n=5, dtype=dtype, grad=False))
            Y = case.bind(case.op)(*ts)
        assert Y.shape == (2, 5, 5) and Y.dtype == dtype and Y.is_contiguous() and Y.device.type == "cpu"


def test_tracing_mode_of_a_parametrized_layer():
    layer = nn.Linear(4, 4)
    nn.utils.parametrize.register_parametrization(layer, "weight", fastparam.Skew())
    v = torch.randn(2, 4)
    graph = make_fx(lambda v: layer(v), tracing_mode="fake", _allow_non_fake_inputs=True)(v)
    torch.testing.assert_close(graph(v), layer(v))


# ---- ONNX ------------------------------------------------------------------------------------------------


def through_onnx(model, x, path):
    """The result of onnxruntime."""
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    batch = {0: torch.export.Dim("batch")}
    if isinstance(model, nn.Module):
        program = torch.onnx.export(model.eval(), (x,), dynamo=True, verbose=False, dynamic_shapes=(batch,))
    else:
        program = torch.onnx.export(model, verbose=False)
    program.save(path)
    session = onnxruntime.InferenceSession(path)
    (Y,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    return torch.from_numpy(Y)


def test_onnx(tmp_path):
    """The exporter itself decomposes symmetric, skew and pruned weights."""
    verbs, x = fastparam.parametrizations, torch.eye(4)
    model = nn.Sequential(*[nn.Linear(4, 4) for _ in range(5)])
    verbs.symmetric(model[0])
    verbs.skew(model[1], lower=True)
    verbs.l1_unstructured(model[2], "weight", amount=0.5)
    verbs.ln_structured(model[3], "weight", 1, 2, 1)
    parametrize.register_parametrization(model[4], "weight", fastparam.Symmetric(lower=True))
    parametrize.register_parametrization(model[4], "weight", fastparam.Pruning(torch.ones(4) > 0))
    torch.testing.assert_close(through_onnx(model, x, tmp_path / "model.onnx"), model(x))
    table = torch.export.default_decompositions() | fastparam.decompositions()
    program = torch.export.export(model, (x,)).run_decompositions(table)
    torch.testing.assert_close(through_onnx(program, x, tmp_path / "program.onnx"), model(x))


class Packs(nn.Module):
    """Packed masks: given, packed and unpacked."""

    def __init__(self):
        super().__init__()
        self.register_buffer("packed", fastparam.functional.pack_mask(torch.arange(15).view(3, 5) % 2 > 0))

    def forward(self, X):
        again = fastparam.functional.pack_mask(fastparam.functional.unpack_mask(self.packed, (3, 5)))
        W = fastparam.functional.masked_prune(torch.ones(3, 5), self.packed)
        return X @ (W + fastparam.functional.masked_prune(torch.ones(3, 5), again))


def test_onnx_of_packed_masks(tmp_path):
    model, x = Packs(), torch.randn(2, 3)
    torch.testing.assert_close(through_onnx(model, x, tmp_path / "model.onnx"), model(x))


def test_onnx_of_orthogonal_layers(tmp_path):
    """ONNX has no matrix inverse, so the exporter names the op. A folded model is exported."""
    model, x = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 6)), torch.eye(4)
    parametrize.register_parametrization(model[0], "weight", fastparam.SkewCayley())
    fastparam.parametrizations.orthogonal(model[1], orthogonal_map="cayley")
    expected = model(x)
    with pytest.raises(torch.onnx.OnnxExporterError, match=r"fastparam\.skew_cayley"):
        through_onnx(model, x, tmp_path / "model.onnx")
    torch.testing.assert_close(through_onnx(fastparam.fold(model), x, tmp_path / "model.onnx"), expected)


@pytest.mark.parametrize("name", ["cayley", "matrix_exp", "householder"])
@pytest.mark.parametrize("shape", [(4, 4), (6, 4)], ids=str)
def test_a_program_exported_outside_of_autocast_runs_inside(shape, name):
    layer = fastparam.parametrizations.orthogonal(nn.Linear(*shape[::-1], bias=False), orthogonal_map=name)
    x = torch.randn(2, shape[1])
    program = torch.export.export(layer, (x,)).module()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(program(x), layer(x))
