"""Shared by the training examples: the digits of scikit-learn, and the training of several models side by
side.
"""

from __future__ import annotations

import time

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from tqdm import tqdm

BATCH = 64
TEST = 360  # images


class Run:
    """A model, its optimizer, and the records of its training: loss and seconds of each step."""

    def __init__(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        self.model, self.optimizer = model, optimizer
        self.losses: list[float] = []
        self.seconds: list[float] = []

    def step(self, images: Tensor, labels: Tensor) -> None:
        """Performs one training step. The clock stops when its loss has arrived and the device is idle."""
        start = time.perf_counter()
        self.optimizer.zero_grad()
        loss = nn.functional.cross_entropy(self.model(images), labels)
        loss.backward()
        self.optimizer.step()
        self.losses.append(loss.item())
        if images.is_cuda:
            torch.cuda.synchronize()
        self.seconds.append(time.perf_counter() - start)

    @torch.no_grad()
    def accuracy(self, images: Tensor, labels: Tensor) -> float:
        return (self.model(images).argmax(1) == labels).float().mean().item()


def digits(device: str) -> tuple[Tensor, Tensor]:
    """Returns the 1797 images of scikit-learn, shuffled, of shape (N, 8, 8) with values in [0, 1], and their
    labels.
    """
    data = load_digits()
    order = torch.randperm(len(data.target), generator=torch.Generator().manual_seed(0))
    images = torch.tensor(data.images, dtype=torch.float32)[order] / 16
    return images.to(device), torch.tensor(data.target)[order].to(device)


def train(runs: dict[str, Run], images: Tensor, labels: Tensor, epochs: int) -> None:
    """Trains all runs on the same batches. The run that goes first changes from step to step."""
    order = list(runs.values())
    shuffle = torch.Generator().manual_seed(0)
    with tqdm(total=epochs * -(-len(images) // BATCH), unit="step", desc="training") as bar:
        for _ in range(epochs):
            for batch in torch.randperm(len(images), generator=shuffle).to(images.device).split(BATCH):
                for run in order:
                    run.step(images[batch], labels[batch])
                order = order[1:] + order[:1]
                bar.set_postfix(loss=f"{runs['fastparam'].losses[-1]:.4f}", refresh=False)
                bar.update()
