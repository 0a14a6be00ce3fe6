"""Trains a GRU whose three recurrent weights are orthogonal on handwritten digits, row by row.

``torch.nn.GRU`` stores the weights of its gates in one tensor, ``weight_hh_l0`` of shape (3n, n).
``fastparam.SkewCayley(blocks=3)`` makes each of them orthogonal. The same model in plain torch is trained
side by side with it. Both start from the same weights and see the same batches, so their loss curves agree up
to rounding. The steps take turns, and the medians of their times are printed.

Run ``python examples/orthogonal_gru.py [--epochs 8] [--device cuda]``.
"""

from __future__ import annotations

import argparse
import statistics

import torch
from side_by_side import TEST, Run, digits, train
from torch import Tensor, nn
from torch.nn.utils import parametrize

import fastparam

HIDDEN = 96


class EagerBlocks(nn.Module):
    """The map of the kernel of each gate in plain torch."""

    def forward(self, X: Tensor) -> Tensor:
        T = X.unflatten(0, (3, -1)).triu(1)
        A, I = T - T.mT, torch.eye(X.shape[1], device=X.device)
        return torch.linalg.solve(I + A, I - A).flatten(0, 1)


class Network(nn.Module):
    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.recur, self.head = nn.GRU(8, HIDDEN, batch_first=True), nn.Linear(HIDDEN, 10)
        parametrize.register_parametrization(self.recur, "weight_hh_l0", module)

    def forward(self, images: Tensor) -> Tensor:
        with parametrize.cached():  # the GRU reads its weights several times
            return self.head(self.recur(images)[0][:, -1])


def run(module: nn.Module, device: str) -> Run:
    torch.manual_seed(0)
    model = Network(module).to(device)
    # eps is larger than Adam's default, because Adam would otherwise magnify gradients that are only
    # rounding errors.
    return Run(model, torch.optim.Adam(model.parameters(), lr=3e-3, eps=1e-4))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()

    images, labels = digits(args.device)
    runs = {
        "plain torch": run(EagerBlocks(), args.device),
        "fastparam": run(fastparam.SkewCayley(blocks=3), args.device),
    }
    train(runs, images[TEST:], labels[TEST:], args.epochs)

    for name, one in runs.items():
        gates = one.model.recur.weight_hh_l0.detach().double().unflatten(0, (3, -1))
        defect = (gates.mT @ gates - torch.eye(HIDDEN, device=args.device)).abs().max().item()
        accuracy = one.accuracy(images[:TEST], labels[:TEST])
        milliseconds = 1e3 * statistics.median(one.seconds)
        print(f"{name:12} {milliseconds:6.2f} ms per step, test accuracy {accuracy:.1%}, defect {defect:.1e}")
        assert defect < 1e-5
    ours, eager = (torch.tensor(runs[name].losses) for name in ("fastparam", "plain torch"))
    print(f"loss curves: largest difference {(ours - eager).abs().max():.1e} over {len(ours)} steps")
    torch.testing.assert_close(ours, eager, rtol=1e-3, atol=1e-3)


if __name__ == "__main__":
    main()
