"""Two processes, gloo: DDP and FSDP2 train parametrized layers as one process does, and as the eager modules
do.
"""

import datetime
import os
import socket
import time

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from table import F64, EagerSkew, EagerSymmetric
from torch import nn
from torch.nn.utils import parametrize

import fastparam

WORLD, STEPS, BATCH = 2, 3, 4
MASK = torch.arange(36).view(6, 6) % 5 > 0


class EagerPruning(nn.Module):
    def __init__(self, mask):
        super().__init__()
        self.register_buffer("mask", mask.to(F64))

    def forward(self, X):
        return X * self.mask


KINDS = {
    "ours": (fastparam.Symmetric, fastparam.Skew, fastparam.Pruning),
    "eager": (EagerSymmetric, EagerSkew, EagerPruning),
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
    from torch.distributed.fsdp import fully_shard

    fully_shard(net.linear)
    return fully_shard(net)


def state(net):
    full = lambda t: t.full_tensor() if hasattr(t, "full_tensor") else t
    return {name.removeprefix("module."): full(p.detach()).clone() for name, p in net.named_parameters()}


def group(rank, port):
    torch.set_num_threads(1)
    limit = datetime.timedelta(seconds=100)
    dist.init_process_group(
        "gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=WORLD, timeout=limit
    )


def done():
    """Ends the process with all work behind it, in step with the others: torch's threads have been seen to
    abort in their teardown.
    """
    dist.barrier()
    os._exit(0)


def work(rank, port, folder):
    """One of the processes; imported by its name."""
    group(rank, port)
    for how in ("DDP", "FSDP2"):
        for kind in KINDS:
            net = wrap(how, Net(kind))
            share = BATCH // WORLD
            train(net, slice(rank * share, (rank + 1) * share))
            torch.save(state(net), f"{folder}/{how}-{kind}-{rank}.pt")
    done()


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def spawn(f, folder):
    """Runs f in every process, for three minutes at most; an error of one is raised here."""
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
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained")
    spawn(work, folder)
    return folder


@pytest.mark.parametrize("how", ["DDP", "FSDP2"])
def test_training(how, trained):
    ours, eager = (
        [torch.load(trained / f"{how}-{kind}-{rank}.pt", weights_only=True) for rank in range(WORLD)]
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


def shard(rank, port, folder):
    """DTensor: without a rule torch refuses by name; with the rule of the documentation, results and
    gradients are exact.
    """
    group(rank, port)
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Replicate, Shard, distribute_tensor
    from torch.distributed.tensor.experimental import register_sharding

    torch.manual_seed(0)
    X = torch.randn(4, 5, 5, requires_grad=True)
    D = distribute_tensor(X.detach(), init_device_mesh("cpu", (WORLD,)), [Shard(0)]).requires_grad_()
    with pytest.raises(
        NotImplementedError, match=r"fastparam\.skew\.default does not have a sharding strategy registered"
    ):
        fastparam.functional.skew(D)

    def rule(X, lower=False):
        return [([Replicate()], [Replicate(), None])] + [
            ([Shard(i)], [Shard(i), None]) for i in range(X.ndim - 2)
        ]

    for name in ("skew", "skew_adjoint"):
        register_sharding(getattr(torch.ops.fastparam, name).default)(rule)
    Y = fastparam.functional.skew(D)
    assert Y.placements == (Shard(0),)
    (Y**2).sum().backward()
    expected = torch.autograd.grad((fastparam.functional.skew(X) ** 2).sum(), X)[0]
    assert torch.equal(Y.full_tensor(), fastparam.functional.skew(X)) and torch.equal(
        D.grad.full_tensor(), expected
    )
    open(f"{folder}/{rank}", "w").close()
    done()


def test_dtensor(tmp_path):
    spawn(shard, tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["0", "1"]
