"""Trains one network on handwritten digits three times, side by side, and shows the cost of constrained
weights.

The network has symmetric 3 x 3 kernels, a symmetric 512 x 512 weight and a skew-symmetric 512 x 512 weight.
It is trained

- unconstrained: the same layers, with plain weights;
- in plain torch: the maps as in the parametrizations tutorial;
- with fastparam.

All runs start from the same weights and see the same batches. The last two must follow the same loss curve up
to rounding. The whole training step is timed (forward, loss, backward, Adam); the three runs take turns step
by step, and medians are printed. The cost of the constraints is the median of the differences to the
neighbouring unconstrained step.

Run ``python examples/train_digits.py [--epochs 6] [--device cuda] [--out curve.png]``.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable
from pathlib import Path

import matplotlib
import torch
from side_by_side import TEST, Run, digits, train
from torch import Tensor, nn
from torch.nn.utils import parametrize

import fastparam

matplotlib.use("Agg")
import matplotlib.pyplot as plt

HIDDEN = 512


class EagerSymmetric(nn.Module):
    """The map in plain torch, as in the tutorial."""

    def forward(self, X: Tensor) -> Tensor:
        return X.triu() + X.triu(1).mT

    def right_inverse(self, A: Tensor) -> Tensor:
        return A.triu()


class EagerSkew(nn.Module):
    """The map in plain torch, as in the tutorial."""

    def forward(self, X: Tensor) -> Tensor:
        A = X.triu(1)
        return A - A.mT

    def right_inverse(self, A: Tensor) -> Tensor:
        return A.triu(1)


# name: the maps of (kernels, first hidden weight, second hidden weight)
VARIANTS: dict[str, tuple[Callable[[], nn.Module], ...]] = {
    "unconstrained": (),
    "plain torch": (EagerSymmetric, EagerSymmetric, EagerSkew),
    "fastparam": (fastparam.Symmetric, fastparam.Symmetric, fastparam.Skew),
}


def start(maps: tuple[Callable[[], nn.Module], ...], device: str) -> Run:
    """Returns a network with these maps on its weights, and its optimizer."""
    torch.manual_seed(0)
    kernels, first, second = (
        nn.Conv2d(1, 32, 3, padding=1),
        nn.Linear(HIDDEN, HIDDEN),
        nn.Linear(HIDDEN, HIDDEN),
    )
    head = nn.Linear(HIDDEN, 10)
    for layer, make in zip((kernels, first, second), maps, strict=False):
        parametrize.register_parametrization(layer, "weight", make())
    features = nn.Sequential(
        kernels, nn.ReLU(), nn.MaxPool2d(2), nn.Flatten()
    )  # 32 channels of 4 x 4: HIDDEN numbers
    model = nn.Sequential(features, first, nn.ReLU(), second, nn.ReLU(), head).to(device)
    return Run(model, torch.optim.Adam(model.parameters(), lr=1e-3))


def plot(runs: dict[str, Run], path: Path) -> None:
    """Draws the two constrained loss curves, which coincide, and the time per step of all runs."""
    figure, (curve, bars) = plt.subplots(1, 2, figsize=(11, 4), width_ratios=(2, 1), layout="constrained")
    curve.plot(runs["plain torch"].losses, linewidth=5, alpha=0.35, label="plain torch")
    curve.plot(runs["fastparam"].losses, linewidth=1.2, color="black", label="fastparam")
    curve.set(xlabel="step", ylabel="training loss", yscale="log", title="Same loss curve")
    curve.legend()
    bars.bar(
        list(runs),
        [1e3 * statistics.median(run.seconds) for run in runs.values()],
        color=["silver", "C0", "black"],
    )
    bars.set(ylabel="ms", title="Median time per step")
    figure.savefig(path, dpi=120)


def report(runs: dict[str, Run], images: Tensor, labels: Tensor) -> None:
    """Prints the time per step, the cost of the constraints, and the final loss and accuracy on unseen
    images.
    """
    base = runs["unconstrained"].seconds
    print(f"{'':14}{'ms per step':>12}{'constraints add':>17}{'last loss':>11}{'test accuracy':>15}")
    for name, run in runs.items():
        median = statistics.median(run.seconds)
        extra = statistics.median(ours - theirs for ours, theirs in zip(run.seconds, base, strict=True))
        added = f"{1e3 * extra:+.2f} ms" if run.seconds is not base else "-"
        accuracy = run.accuracy(images, labels)
        print(f"{name:14}{1e3 * median:12.2f}{added:>17}{run.losses[-1]:11.4f}{accuracy:15.1%}")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path, default=Path("train_digits.png"), help="where the plot goes")
    args = parser.parse_args()

    images, labels = digits(args.device)
    images = images[:, None]  # one channel
    runs = {name: start(maps, args.device) for name, maps in VARIANTS.items()}
    train(runs, images[TEST:], labels[TEST:], args.epochs)

    report(runs, images[:TEST], labels[:TEST])
    ours, eager = torch.tensor(runs["fastparam"].losses), torch.tensor(runs["plain torch"].losses)
    print(f"loss curves: largest difference {(ours - eager).abs().max():.1e} over {len(ours)} steps")
    torch.testing.assert_close(ours, eager, rtol=1e-3, atol=1e-4)
    plot(runs, args.out)
    print(f"plot: {args.out}")


if __name__ == "__main__":
    main()
