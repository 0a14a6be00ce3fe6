"""Trains orthogonal and pruned layers that FSDP2 has sharded over several processes, and resumes them in one.

Every process holds a part of each parameter. Outside of the forward passes of the layers, the parameters are
DTensors, and so is the constrained weight that the regulariser reads there. ``torch.distributed.checkpoint``
writes the checkpoint, to which each process contributes its own shards, and reads it into any number of
processes::

    torchrun --nproc-per-node 2 examples/distributed.py --save checkpoint
    python examples/distributed.py --resume checkpoint

At the end, both runs print the loss on the test images, which is the same number. The processes use nccl if
there are GPUs, and otherwise gloo. To use several machines, run this line on each of them::

    torchrun --nnodes 2 --nproc-per-node 8 --rdzv-backend c10d --rdzv-endpoint HOST:29500 \\
        examples/distributed.py --save checkpoint
"""

from __future__ import annotations

import argparse
import os

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from side_by_side import BATCH, TEST, digits
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.fsdp import fully_shard
from torch.nn.utils import parametrize

import fastparam


def network() -> nn.Sequential:
    """An orthogonal layer, an orthogonal layer with more rows than columns, and a pruned layer."""
    torch.manual_seed(0)
    square, tall, pruned = nn.Linear(64, 64), nn.Linear(64, 128), nn.Linear(128, 10)
    parametrize.register_parametrization(square, "weight", fastparam.SkewCayley())
    fastparam.parametrizations.orthogonal(tall, orthogonal_map="cayley")
    fastparam.parametrizations.l1_unstructured(pruned, "weight", amount=0.5)
    return nn.Sequential(nn.Flatten(), square, nn.ReLU(), tall, nn.ReLU(), pruned)


def train(model: nn.Sequential, optimizer: torch.optim.Optimizer, images: Tensor, labels: Tensor) -> None:
    """Trains for one epoch. Each process uses its share of every batch, and FSDP2 averages the gradients."""
    rank, world = dist.get_rank(), dist.get_world_size()
    for batch in torch.arange(len(images), device=images.device).split(BATCH):
        mine = batch[rank::world]
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(images[mine]), labels[mine])
        penalty = 1e-4 * model[-1].weight.abs().sum()  # outside of forward: a DTensor, computed from shards
        (loss + penalty.full_tensor()).backward()
        optimizer.step()


@torch.no_grad()
def test_loss(model: nn.Sequential, images: Tensor, labels: Tensor) -> float:
    return float(nn.functional.cross_entropy(model(images), labels))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--save", metavar="FOLDER", help="write a checkpoint after the training")
    parser.add_argument("--resume", metavar="FOLDER", help="load a checkpoint and do not train")
    options = parser.parse_args()
    for name, value in (
        ("RANK", "0"),
        ("WORLD_SIZE", "1"),
        ("MASTER_ADDR", "localhost"),
        ("MASTER_PORT", "0"),
    ):
        os.environ.setdefault(name, value)  # torchrun sets them

    device = torch.device("cpu")
    if torch.cuda.is_available():
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")

    images, labels = digits(str(device))
    model = network().to(device)
    for layer in model:
        if isinstance(layer, nn.Linear):
            fully_shard(layer)
    fully_shard(model)
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)

    if options.resume:
        states = dict(zip(("model", "optimizer"), get_state_dict(model, optimizer), strict=True))
        dcp.load(states, checkpoint_id=options.resume)
        set_state_dict(
            model, optimizer, model_state_dict=states["model"], optim_state_dict=states["optimizer"]
        )
    else:
        for _ in range(options.epochs):
            train(model, optimizer, images[TEST:], labels[TEST:])
    if options.save:
        states = dict(zip(("model", "optimizer"), get_state_dict(model, optimizer), strict=True))
        dcp.save(states, checkpoint_id=options.save)

    loss = test_loss(model, images[:TEST], labels[:TEST])
    for layer in (model[1], model[3]):
        W = layer.weight.full_tensor()
        assert torch.allclose(W.mT @ W, torch.eye(W.shape[1], device=device), atol=1e-5)
    assert int((model[5].weight.full_tensor() == 0).sum()) == 640
    if dist.get_rank() == 0:
        print(f"processes: {dist.get_world_size()}, test loss: {loss:.6f}")
    # A thread of gloo drops the tensors of a collective after the collective has returned, and takes
    # Python's lock for this. If Python is already shutting down, the thread aborts the process. The barrier
    # lets it finish.
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
