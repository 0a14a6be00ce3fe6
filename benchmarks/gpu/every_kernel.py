"""Runs every op of tests/table.py once, forward and backward, at sizes that reach each of its kernels, for
compute-sanitizer.

``--names`` prints which kernels of the library ran, ``--small`` limits the large batches to float32, and
``--device cpu`` tries the script on the CPU. Inputs are made on the CPU and copied, so that hardly any other
kernels run.
"""

from __future__ import annotations

import argparse
import dataclasses
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

import kernels  # noqa: E402
from table import CASES, Case  # noqa: E402

import fastparam  # noqa: E402
from fastparam.functional import pack_mask, unpack_mask  # noqa: E402

# (batch, n): around the sizes at which the choice of a kernel changes; accesses have 16 bytes if 4 divides n
SHAPES = (
    (5, 3),
    (3, 4),
    (3, 8),
    (3, 16),
    (2, 17),
    (2, 24),
    (2, 32),
    (2, 33),
    (2, 40),
    (2, 64),
    (1, 68),
    (1, 100),
    (1, 128),
    (1, 130),
)
MANY = ((256, 33), (256, 40))  # enough for tiles of 64
DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
LENGTHS = (1, 7, 64, 1001)


def runs(small: bool) -> Iterator[tuple[Case, int, int, torch.dtype]]:
    for case in CASES:
        for dtype in DTYPES + (
            (torch.complex128,) if case.word == "masked_prune" else ()
        ):  # other ops have no kernels for it
            for batch, n in SHAPES + (MANY if case.linear and (dtype == torch.float32 or not small) else ()):
                yield case, batch, n, dtype


def on(device: str, value: object) -> object:
    return value.to(device) if isinstance(value, Tensor) else value


def step(case: Case, batch: int, n: int, dtype: torch.dtype, device: str) -> None:
    """Runs forward and backward, and copies both results to the host, which reports errors of kernels."""
    cpu = case.inputs(batch, n=n, dtype=dtype, grad=False)
    X = tuple(x.to(device).requires_grad_() for x in cpu)
    there = dataclasses.replace(case, others=tuple(on(device, a) for a in case.arguments(cpu[0])))
    Y = there.bind(there.entry)(*X)
    gradients = torch.autograd.grad(Y, X, torch.randn(Y.shape, dtype=Y.dtype).to(device))
    for t in (Y, *gradients):
        t.detach().cpu()


def everything(device: str, small: bool) -> int:
    torch.manual_seed(0)
    todo = list(runs(small))
    for arguments in todo:
        step(*arguments, device)
    for n in LENGTHS:
        mask = torch.arange(n) % 3 > 0
        for given in (mask.to(device), torch.cat([mask[:1], mask]).to(device)[1:]):  # aligned, and not
            assert torch.equal(unpack_mask(pack_mask(given), (n,)).cpu(), mask)
    return len(todo)


def names(device: str) -> str:
    """Returns one sentence that lists the kernels of the library that ran."""
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as seen:
        everything(device, small=False)
    ran = {found[1] for event in seen.events() if (found := re.search(r"fastparam::cuda::(\w+)", event.name))}
    library = next(Path(fastparam.__file__).parent.glob("_C*.so"))
    built = {kernel.family for kernel in kernels.read(library)}
    never = sorted(built - ran)
    return f"{len(built & ran)} of {len(built)} kernels ran" + f", never: {' '.join(never)}" * bool(never)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--names", action="store_true")
    parser.add_argument("--small", action="store_true")
    options = parser.parse_args()
    if options.names:
        print(names(options.device))
    else:
        print(f"{everything(options.device, options.small)} runs, forward and backward")
    return 0


if __name__ == "__main__":
    sys.exit(main())
