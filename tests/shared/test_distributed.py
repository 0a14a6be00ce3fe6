"""Two processes with gloo: DDP and FSDP2 train parametrized layers like one process, and like the eager
modules.
"""

import datetime
import os
import socket
import time
import traceback
from functools import partial

import pytest
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
import torch.multiprocessing as mp
from modules import FORMS
from table import CASES, F64
from torch import nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    set_model_state_dict,
)
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor
from torch.nn.utils import parametrize
from tutorial import EagerPruning, EagerSkew, EagerSymmetric

import fastparam

WORLD, STEPS, BATCH = 2, 3, 4
MASK = torch.arange(36).view(6, 6) % 5 > 0


KINDS = {
    "ours": (fastparam.Symmetric, fastparam.Skew, fastparam.Pruning),
    "eager": (EagerSymmetric, EagerSkew, partial(EagerPruning, dtype=F64)),
}

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not (dist.is_available() and dist.is_gloo_available()), reason="torch is built without gloo"
    ),
]


class Net(nn.Module):
    def __init__(self, kind):
        super().__init__()
        torch.manual_seed(0)
        symmetric, skew, pruning = KINDS[kind]
        self.conv = nn.Conv2d(1, 2, 3, padding=1, dtype=F64)
        self.linear = nn.Linear(6, 6, dtype=F64)
        parametrize.register_parametrization(self.conv, "weight", skew())
        parametrize.register_parametrization(self.linear, "weight", symmetric())
        self.pruned = parametrize.register_parametrization(
            nn.Linear(6, 6, dtype=F64), "weight", pruning(MASK)
        )

    def forward(self, v):
        return self.pruned(self.linear(self.conv(v).mean(1))).square()


def train(net, rows):
    torch.manual_seed(1)
    v = torch.randn(STEPS, BATCH, 1, 6, 6, dtype=F64)
    optimise = torch.optim.SGD(net.parameters(), lr=0.05, momentum=0.9)
    for step in range(STEPS):
        optimise.zero_grad()
        net(v[step, rows]).mean().backward()
        optimise.step()


def wrap(how, net):
    if how == "DDP":
        return nn.parallel.DistributedDataParallel(net)
    fully_shard(net.linear)
    return fully_shard(net)


def state(net):
    full = lambda t: t.full_tensor() if hasattr(t, "full_tensor") else t
    return {name.removeprefix("module."): full(p.detach()).clone() for name, p in net.named_parameters()}


def training(rank, folder):
    """Returns the results of the training in every process, which test_training compares."""
    for how in ("DDP", "FSDP2"):
        for kind in KINDS:
            net = wrap(how, Net(kind))
            share = BATCH // WORLD
            train(net, slice(rank * share, (rank + 1) * share))
            torch.save(state(net), f"{folder}/{how}-{kind}-{rank}.pt")


# ---- all forms of the table of modules, as the layers of one model ---------------------------------------


class Forms(nn.Module):
    def __init__(self, seed, assigned=True):
        super().__init__()
        torch.manual_seed(seed)
        self.layers = nn.ModuleDict(
            {form.name: form.assigned() if assigned else form.layer() for form in FORMS}
        )

    def forward(self, v):
        return {form.name: self.layers[form.name](v[:, : form.shape[1]]) for form in FORMS}

    def loss(self, v):
        return sum(Y.float().square().sum() for Y in self(v).values())


def data():
    torch.manual_seed(2)
    return torch.randn(6, max(form.shape[1] for form in FORMS))


def agree(values):
    """Checks that every process has the values of the first one, bit for bit."""
    for key, t in values.items():
        ranks = [torch.empty_like(t) for _ in range(WORLD)]
        dist.all_gather(ranks, t.detach().contiguous())
        assert torch.equal(ranks[0], ranks[1]), f"{key} differs"


def shards(model, **options):
    for layer in model.layers.values():
        fully_shard(layer, **options)
    return fully_shard(model, **options)


def random_start(rank, _):
    """DDP sends the state of rank 0, including signs and bases, to a rank that started from another
    weight.
    """
    model = Forms(seed=rank)
    expected = Forms(seed=0)(data())
    wrapped = nn.parallel.DistributedDataParallel(model)
    agree(model.state_dict())
    torch.testing.assert_close(wrapped(data()), expected, rtol=0, atol=0)
    sum(Y.square().sum() for Y in wrapped(data()).values()).backward()
    agree({key: p.grad for key, p in model.named_parameters()})


def broadcast(rank, _):
    """The full state of rank 0 becomes that of a sharded model, which returns it."""
    source, target = Forms(seed=0), shards(Forms(seed=5 + rank, assigned=False))
    state = source.state_dict()
    options = StateDictOptions(full_state_dict=True, broadcast_from_rank0=True)
    set_model_state_dict(target, dict(state) if rank == 0 else {}, options=options)
    torch.testing.assert_close(target(data()), source(data()))
    back = get_model_state_dict(target, options=StateDictOptions(full_state_dict=True, cpu_offload=True))
    if rank == 0:
        torch.testing.assert_close(back, dict(state), rtol=0, atol=0)


def mixed_precision(rank, _):
    """Parameters are used in bfloat16, and buffers stay float32."""
    model = Forms(seed=0)
    expected = model(data())
    policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    shards(model, mp_policy=policy)
    Y = model(data())
    assert all(y.dtype == torch.bfloat16 for y in Y.values())
    torch.testing.assert_close({key: y.float() for key, y in Y.items()}, expected, rtol=0.1, atol=0.2)
    model.loss(data()).backward()
    gradients = {key: p.grad.full_tensor() for key, p in model.named_parameters()}
    assert all(g.dtype == torch.float32 and g.isfinite().all() for g in gradients.values())


def checkpoint(rank, folder):
    """A checkpoint that both processes write from shards is read into another sharded model and into a plain
    one.
    """
    source = Forms(seed=0)
    expected = source(data())
    dcp.save(get_model_state_dict(shards(source)), checkpoint_id=f"{folder}/dcp")
    for target in (shards(Forms(seed=1, assigned=False)), Forms(seed=1, assigned=False)):
        state = get_model_state_dict(target)
        dcp.load(state, checkpoint_id=f"{folder}/dcp")
        set_model_state_dict(target, state)
        torch.testing.assert_close(target(data()), expected)


def outside_of_forward(rank, _):
    """Between steps, parameters are DTensors. Every weight can be read and is that of the whole layer, and so
    are its gradients.
    """
    model, whole = shards(Forms(seed=0)), Forms(seed=0)
    model(data())
    model.reshard()
    for form in FORMS:
        layer, expected = model.layers[form.name], whole.layers[form.name].weight
        W = layer.weight
        assert isinstance(W, DTensor)
        torch.testing.assert_close(W.full_tensor(), expected, rtol=0, atol=0)
        raws = [p for name, p in layer.named_parameters() if "original" in name]
        theirs = whole.layers[form.name].parametrizations.parameters()
        for g, e in zip(
            torch.autograd.grad(W.square().sum(), raws),
            torch.autograd.grad(expected.square().sum(), list(theirs)),
            strict=True,
        ):
            torch.testing.assert_close(g.full_tensor(), e)


def derivatives(Y, args):
    leaves = [t for t in args if isinstance(t, torch.Tensor) and t.requires_grad]
    return torch.autograd.grad(Y.square().sum(), leaves) if leaves else ()


def dtensor(rank, _):
    """Every op on sharded batches, which stay sharded, and on sharded matrices, which are gathered."""
    mesh = init_device_mesh("cpu", (WORLD,))
    fastparam.functional.skew(distribute_tensor(torch.eye(3), mesh, [Shard(0)]))
    for case in CASES:
        torch.manual_seed(0)
        # Second derivatives create tensors that are not DTensors, which torch does not mix.
        args = case.prepared(*case.inputs(4, grad=not case.word.endswith("_backward")))
        Y = case.op(*args)
        theirs = derivatives(Y, args)
        for dim in (0, 1):
            placed = [
                distribute_tensor(
                    a.detach(), mesh, [Shard(dim) if a.dim() == args[0].dim() else Replicate()]
                ).requires_grad_(a.requires_grad)
                if isinstance(a, torch.Tensor)
                else a
                for a in args
            ]
            D = case.op(*placed)
            packed = case.name == "masked_prune-packed"  # the position of a bit depends on the whole shape
            assert dim == 1 or packed or D.placements == (Shard(0),), case.name
            torch.testing.assert_close(D.full_tensor(), Y, rtol=0, atol=0)
            ours = derivatives(D, placed)
            for g, e in zip(ours, theirs, strict=True):
                assert torch.equal(g.full_tensor(), e), case.name
    with pytest.raises(RuntimeError, match="got mixed"):
        fastparam.functional.masked_prune(
            distribute_tensor(torch.eye(3), mesh, [Shard(0)]), torch.ones(3) > 0
        )


# ---- the processes ---------------------------------------------------------------------------------------

LOOPS = (training, random_start, broadcast, mixed_precision, checkpoint, outside_of_forward, dtensor)


def work(rank, port, folder):
    """Runs in each of the processes, and records the results of every loop."""
    torch.set_num_threads(1)
    limit = datetime.timedelta(seconds=100)
    dist.init_process_group(
        "gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=WORLD, timeout=limit
    )
    for loop in LOOPS:
        said = ""
        try:
            loop(rank, folder)
        except Exception:
            said = traceback.format_exc()
        with open(f"{folder}/{loop.__name__}-{rank}.txt", "w") as file:
            file.write(said)
    # All work is done when the process ends, in step with the others, because torch's threads have been seen
    # to abort in their teardown.
    dist.barrier()
    os._exit(0)


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def spawn(f, folder):
    """Runs f in every process, for at most three minutes. An error of one process is raised here."""
    context = mp.spawn(f, (free_port(), str(folder)), nprocs=WORLD, join=False)
    end = time.monotonic() + 180
    try:
        while not context.join(timeout=max(0.1, end - time.monotonic())):
            assert time.monotonic() < end, "the processes did not end"
    finally:
        for process in context.processes:
            if process.is_alive():
                process.kill()


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ran")
    spawn(work, folder)
    return folder


@pytest.mark.parametrize("loop", LOOPS, ids=lambda loop: loop.__name__)
def test_every_process(loop, ran):
    for rank in range(WORLD):
        said = (ran / f"{loop.__name__}-{rank}.txt").read_text()
        assert not said, said


@pytest.mark.parametrize("how", ["DDP", "FSDP2"])
def test_training(how, ran):
    ours, eager = (
        [torch.load(ran / f"{how}-{kind}-{rank}.pt", weights_only=True) for rank in range(WORLD)]
        for kind in KINDS
    )
    torch.testing.assert_close(ours[0], ours[1], rtol=0, atol=0)
    torch.testing.assert_close(ours[0], eager[0], rtol=1e-12, atol=1e-12)
    single = Net("ours")
    start = state(single)
    train(single, slice(0, BATCH))
    alone = state(single)
    assert list(alone) == list(ours[0])
    assert all(not torch.equal(start[name], alone[name]) for name in alone), "nothing was trained"
    torch.testing.assert_close(ours[0], alone, rtol=1e-10, atol=1e-12)
