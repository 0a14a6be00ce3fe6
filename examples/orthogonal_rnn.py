"""Trains an orthogonal recurrent network on handwritten digits, row by row, in plain torch and with
fastparam.

The network reads an image of 8 x 8 pixels as 8 steps of 8 pixels. Its recurrent kernel, 160 x 160, is

- unconstrained: it starts orthogonal and drifts away;
- in plain torch: ``Skew`` and ``CayleyMap`` as in the parametrizations tutorial;
- with fastparam: ``fastparam.SkewCayley``, which fuses the two.

All runs start from the same kernel and see the same batches. ``parametrize.cached()`` computes the kernel
once per sequence. The last two must follow the same loss curve up to rounding. The whole training step is
timed (forward, loss, backward, Adam); the three runs take turns step by step, and medians are printed. The
cost of the constraint is the median of the differences to the neighbouring unconstrained step.

Run ``python examples/orthogonal_rnn.py [--epochs 12] [--device cuda] [--out orthogonal_rnn.png]``.
"""

from __future__ import annotations

import argparse
import math
import statistics
from pathlib import Path

import matplotlib
import torch
from side_by_side import TEST, Run, digits, train
from torch import Tensor, nn
from torch.nn.utils import parametrize

import fastparam

matplotlib.use("Agg")
import matplotlib.pyplot as plt

HIDDEN = 160


class EagerSkew(nn.Module):
    """The map in plain torch, as in the tutorial."""

    def forward(self, X: Tensor) -> Tensor:
        A = X.triu(1)
        return A - A.mT


class EagerCayley(nn.Module):
    """The map in plain torch, as in the tutorial."""

    Id: Tensor

    def __init__(self, n: int) -> None:
        super().__init__()
        self.register_buffer("Id", torch.eye(n))

    def forward(self, A: Tensor) -> Tensor:
        return torch.linalg.solve(self.Id + A, self.Id - A)


# name: a function that makes the maps of the recurrent kernel
VARIANTS = {
    "unconstrained": lambda: (),
    "plain torch": lambda: (EagerSkew(), EagerCayley(HIDDEN)),
    "fastparam": lambda: (fastparam.SkewCayley(),),
}


def rotations() -> Tensor:
    """Returns X for the skew-symmetric A of rotations by random angles of at most 90 degrees, in independent
    planes.
    """
    angles = (torch.rand(HIDDEN // 2, generator=torch.Generator().manual_seed(0)) - 0.5) * math.pi
    X = torch.zeros(HIDDEN, HIDDEN)
    X.diagonal(1)[::2] = (angles / 2).tan()
    return X


class Network(nn.Module):
    """h <- modrelu(K h + U x + b), and a linear layer after the last row."""

    def __init__(self, maps: tuple[nn.Module, ...]) -> None:
        super().__init__()
        self.read, self.recur = nn.Linear(8, HIDDEN, bias=False), nn.Linear(HIDDEN, HIDDEN, bias=False)
        self.shift, self.head = nn.Parameter(torch.zeros(HIDDEN)), nn.Linear(HIDDEN, 10)
        for module in maps:
            parametrize.register_parametrization(self.recur, "weight", module)
        with torch.no_grad():
            if maps:
                self.recur.parametrizations.weight.original.copy_(rotations())
            else:
                self.recur.weight.copy_(fastparam.functional.skew_cayley(rotations()))

    def forward(self, images: Tensor) -> Tensor:
        h = images.new_zeros(len(images), HIDDEN)
        with parametrize.cached():  # the kernel is used eight times and computed once
            for row in images.unbind(1):
                z = self.recur(h) + self.read(row)
                h = z.sign() * (z.abs() + self.shift).relu()
        return self.head(h)


class OrthogonalRun(Run):
    """A run that also records the orthogonality error after each step."""

    def __init__(self, maps: tuple[nn.Module, ...], device: str) -> None:
        torch.manual_seed(0)
        model = Network(maps).to(device)
        # Adam divides each gradient by its size. A small eps would magnify gradients that are only rounding
        # errors, and the curves would diverge.
        super().__init__(model, torch.optim.Adam(model.parameters(), lr=1e-3, eps=1e-4))
        self.defects: list[float] = []

    def step(self, images: Tensor, labels: Tensor) -> None:
        super().step(images, labels)
        self.defects.append(self.defect())

    @torch.no_grad()
    def defect(self) -> float:
        """Returns the largest entry of |K^T K - I|, computed in float64."""
        K = self.model.recur.weight.double()
        return (K.mT @ K - torch.eye(HIDDEN, device=K.device, dtype=K.dtype)).abs().max().item()


def plot(runs: dict[str, OrthogonalRun], path: Path) -> None:
    """Draws the two constrained loss curves, which coincide, the orthogonality of the kernels, and the time
    per step of all runs.
    """
    figure, (curve, defect, bars) = plt.subplots(
        1, 3, figsize=(16, 4), width_ratios=(2, 2, 1.5), layout="constrained"
    )
    colors = {"unconstrained": "silver", "plain torch": "C0", "fastparam": "black"}
    curve.plot(runs["plain torch"].losses, linewidth=5, alpha=0.35, label="plain torch")
    curve.plot(runs["fastparam"].losses, linewidth=1.2, color="black", label="fastparam")
    curve.set(xlabel="step", ylabel="training loss", yscale="log", title="Same loss curve")
    curve.legend()
    for name, run in runs.items():
        defect.plot(run.defects, color=colors[name], label=name)
    defect.set(
        xlabel="step", ylabel="max |K^T K - I|", yscale="log", title="Orthogonality of the recurrent kernel"
    )
    defect.legend()
    bars.bar(
        list(runs),
        [1e3 * statistics.median(run.seconds) for run in runs.values()],
        color=list(colors.values()),
    )
    bars.set(ylabel="ms", title="Median time per step")
    figure.savefig(path, dpi=120)


def report(runs: dict[str, OrthogonalRun], images: Tensor, labels: Tensor) -> None:
    """Prints the time per step, the cost of the constraint, the worst orthogonality error, and the final loss
    and accuracy on unseen images.
    """
    base = runs["unconstrained"].seconds
    heads = ("constraint adds", 17), ("max |K^T K - I|", 17), ("last loss", 11), ("test accuracy", 15)
    print(f"{'':14}{'ms per step':>12}" + "".join(f"{head:>{width}}" for head, width in heads))
    for name, run in runs.items():
        median = statistics.median(run.seconds)
        extra = statistics.median(ours - theirs for ours, theirs in zip(run.seconds, base, strict=True))
        added = f"{1e3 * extra:+.2f} ms" if run.seconds is not base else "-"
        accuracy = run.accuracy(images, labels)
        defect = max(run.defects)
        times = f"{1e3 * median:12.2f}{added:>17}"
        print(f"{name:14}{times}{defect:17.1e}{run.losses[-1]:11.4f}{accuracy:15.1%}")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path, default=Path("orthogonal_rnn.png"), help="where the plot goes")
    args = parser.parse_args()

    images, labels = digits(args.device)
    runs = {name: OrthogonalRun(maps(), args.device) for name, maps in VARIANTS.items()}
    train(runs, images[TEST:], labels[TEST:], args.epochs)

    report(runs, images[:TEST], labels[:TEST])
    ours, eager = torch.tensor(runs["fastparam"].losses), torch.tensor(runs["plain torch"].losses)
    print(f"loss curves: largest difference {(ours - eager).abs().max():.1e} over {len(ours)} steps")
    first = len(ours) // args.epochs  # training amplifies rounding: after more epochs the curves may part
    torch.testing.assert_close(ours[:first], eager[:first], rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(ours, eager, rtol=0.2, atol=0.02)
    assert max(runs["fastparam"].defects) < 1e-5
    plot(runs, args.out)
    print(f"plot: {args.out}")


if __name__ == "__main__":
    main()
