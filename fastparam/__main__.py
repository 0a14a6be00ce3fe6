"""``python -m fastparam`` prints the facts of this build, and checks every op on every device."""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from . import _C, _built, _loader, _measure, _reference, functional
from ._ops import OPS, Op

LEVELS = {16: "baseline", 32: "AVX2", 64: "AVX-512"}
DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
# Batch and order, on both sides of what decides between kernels (csrc/README.md has the tables).
SIZES = (((3,), 3), ((5,), 7), ((17,), 20), ((), 33), ((2,), 65), ((2,), 130), ((), 200))
# And one matrix in float32: a linear map whose output is written past the caches, blocks of blocks of others.
LARGE = {True: 1800, False: 770}
TOLERANCE = 8.0  # eps, times sqrt(n) and the size of the result

Arguments = dict[str, Any]


def facts() -> dict[str, str]:
    """What the build is made of."""
    kernels = f"CUDA {_built.cuda}, {_built.architectures}" if _built.cuda else "none in this build"
    level, threads = LEVELS[_C.vector_bytes()], torch.get_num_threads()
    count = "1 thread" if threads == 1 else f"{threads} threads"
    return {
        "fastparam": _built.version,
        "torch": f"{torch.__version__} (built for {_built.torch})",
        "python": sys.version.split()[0],
        "compiler": _C.compiler(),
        "CPU kernels": f"{level} ({count}; ATEN_CPU_CAPABILITY lowers the level)",
        "CUDA kernels": kernels,
    }


def devices() -> list[torch.device]:
    return [torch.device("cpu")] + [torch.device("cuda", i) for i in range(torch.cuda.device_count())]


# ---- what every op is tried on ---------------------------------------------------------------------------


class Draw:
    """Random arguments of one batch, order and type, the same for every device.

    Their alpha of 30 is beyond the guard of the Cayley kernels.
    """

    batch: tuple[int, ...]
    n: int
    dtype: torch.dtype
    generator: torch.Generator

    def __init__(self, batch: tuple[int, ...], n: int, dtype: torch.dtype) -> None:
        self.batch, self.n, self.dtype = batch, n, dtype
        self.generator = torch.Generator().manual_seed(n)

    def normal(self, *sizes: int) -> Tensor:
        """Numbers whose matrices have a norm of about 1."""
        X = torch.randn(*self.batch, *sizes, generator=self.generator, dtype=torch.float64)
        return X.div(math.sqrt(self.n)).to(self.dtype)

    def square(self) -> Tensor:
        return self.normal(self.n, self.n)

    def tall(self) -> Tensor:
        return self.normal(self.n, (self.n + 1) // 2)

    def mask(self, *sizes: int) -> Tensor:
        return torch.randn(sizes, generator=self.generator) > 0

    def signs(self, count: int) -> Tensor:
        signs: Tensor = self.normal(count).sign()
        return signs


def _lower(*names: str) -> Callable[[Draw], list[Arguments]]:
    return lambda d: [{**{name: d.square() for name in names}, "lower": lower} for lower in (False, True)]


def _cayley(d: Draw) -> list[Arguments]:
    X = d.square()
    A = X - X.mT
    return [
        {"A": X, "alpha": 0.3},
        {"A": A, "alpha": -0.5, "signs": d.signs(d.n)},
        {"A": A, "alpha": 30.0},
    ]


def _skew_cayley(d: Draw) -> list[Arguments]:
    first = {"X": d.square(), "alpha": 1.0, "lower": False}
    return [first, {"X": d.square(), "alpha": 30.0, "lower": True, "signs": d.signs(d.n)}]


def _stiefel_cayley(d: Draw, far: float = 30.0) -> list[Arguments]:
    first: Arguments = {"X": d.tall(), "alpha": 1.0, "lower": True}
    wide = {"X": d.tall().mT, "alpha": far, "lower": False, "signs": d.signs((d.n + 1) // 2)}
    return [first, wide, {"X": d.square(), "alpha": 1.0, "lower": False}]


def _stiefel_cayley_backward(d: Draw) -> list[Arguments]:
    found = []
    for arguments in _stiefel_cayley(d, far=6.0):
        wide: Arguments = {k: v.double() if isinstance(v, Tensor) else v for k, v in arguments.items()}
        Q = _reference.stiefel_cayley(**wide).to(d.dtype)
        G = d.normal(*Q.shape[-2:])
        found.append({"G": G, "X": arguments["X"], "Q": Q, **arguments})
    return found


def _trivialized_cayley(d: Draw) -> list[Arguments]:
    base = d.square()
    return [{"X": X, "base": base, "alpha": -0.5, "lower": True} for X in (d.tall(), d.tall().mT)]


def _trivialized_cayley_backward(d: Draw) -> list[Arguments]:
    base, Q = d.square(), d.square()
    M = (base.double() + base.double() @ Q.double()).to(d.dtype)
    return [{"G": d.square(), "base": base, "Q": Q, "M": M, "alpha": -0.5, "lower": True}]


def _masked_prune(d: Draw) -> list[Arguments]:
    X, n = d.square(), d.n
    whole = d.mask(*X.shape)
    masks = (whole, d.mask(n), d.mask(n, 1), _reference.pack_mask(whole))
    return [{"X": X, "mask": mask} for mask in masks]


def _gradient(d: Draw) -> Arguments:
    return {"G": d.square(), "Q": d.square(), "alpha": -0.5}


# Of every op of OPS the arguments that it is tried with; floating-point tensors are differentiated.
SAMPLES: dict[str, Callable[[Draw], list[Arguments]]] = {
    "symmetric": _lower("X"),
    "symmetric_adjoint": _lower("G"),
    "skew": _lower("X"),
    "skew_adjoint": _lower("G"),
    "masked_prune": _masked_prune,
    "pack_mask": lambda d: [{"mask": d.mask(*d.batch, d.n, d.n)}],
    "unpack_mask": lambda d: [
        {"packed": _reference.pack_mask(d.mask(d.n, d.n)), "size": (d.n, d.n)},
    ],
    "cayley": _cayley,
    "cayley_backward": lambda d: [{**_gradient(d), "signs": d.signs(d.n)}],
    "skew_cayley": _skew_cayley,
    "skew_cayley_backward": lambda d: [{**_gradient(d), "lower": lower} for lower in (False, True)],
    "skew_cayley_packed": lambda d: [{"v": d.normal(d.n * (d.n - 1) // 2), "alpha": 1.0}],
    "skew_cayley_packed_backward": lambda d: [_gradient(d)],
    "stiefel_cayley": _stiefel_cayley,
    "stiefel_cayley_backward": _stiefel_cayley_backward,
    "matrix_exp": lambda d: [{"A": d.square()}],
    "exp_frechet": lambda d: [{"A": d.square(), "E": d.square()}],
    "skew_exp": _lower("X"),
    "skew_exp_backward": _lower("G", "X"),
    "symmetric_exp": _lower("X"),
    "symmetric_exp_backward": _lower("G", "X"),
    "householder": lambda d: [{"X": d.tall()}, {"X": d.square()}],
    "householder_backward": lambda d: [{"G": d.tall(), "X": d.tall()}],
    "trivialized_cayley": _trivialized_cayley,
    "trivialized_cayley_backward": _trivialized_cayley_backward,
}


def draws(op: Op) -> Iterator[Draw]:
    # The gradients of the exponentials try their derivatives at every size. Those of the derivatives, whose
    # reference exponentiates matrices of four times the order, are tried at small ones.
    dear = op.name == "exp_frechet" or op.name.endswith("_exp_backward")
    for dtype in DTYPES:
        for batch, n in SIZES:
            if n < 130 or not dear:
                yield Draw(batch, n, dtype)
    if "exp" not in op.name:  # no other path serves larger exponentials
        yield Draw((), LARGE[op.exact], torch.float32)


# ---- the check -------------------------------------------------------------------------------------------


def both_ways(
    f: Callable[..., Tensor], arguments: Arguments, change: Callable[[Tensor], Tensor]
) -> list[Tensor]:
    """The result and its gradients, on the CPU, of arguments whose tensors are changed before."""
    given = {k: change(v) if isinstance(v, Tensor) else v for k, v in arguments.items()}
    inputs = [v.requires_grad_() for k, v in given.items() if _is_differentiated(k, v)]
    Y = f(**given)
    results = [Y.detach()]
    if inputs and Y.is_floating_point():
        # the same numbers whatever the type of Y
        G = torch.linspace(-1, 1, Y.numel(), dtype=torch.float64).view(Y.shape).to(Y)
        results += torch.autograd.grad(Y, inputs, G, materialize_grads=True)
    return [result.cpu() for result in results]


def _is_differentiated(name: str, value: Any) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point() and name != "signs"


def is_right(op: Op, ours: Tensor, truth: Tensor, alpha: float) -> bool:
    if op.exact:
        return torch.equal(ours, truth)
    size = truth.abs().max().clamp(min=1) * max(1.0, abs(alpha))
    if "exp" in op.name:  # the reference squares more often than it need
        size = 8 * size
    bound = TOLERANCE * math.sqrt(truth.shape[-1]) * torch.finfo(ours.dtype).eps * size
    return bool((ours.double() - truth).abs().max() <= bound)


def problem(op: Op, arguments: Arguments, device: torch.device) -> str | None:
    """What is wrong with an op on a device, in a few words; None if nothing is."""
    f = getattr(functional, op.name) if op.public else op.overload
    precise = (lambda X: X.clone()) if op.exact else lambda X: X.double() if X.is_floating_point() else X
    try:
        ours = both_ways(f, arguments, lambda X: X.detach().to(device, copy=True))
    except RuntimeError as error:
        return str(error).splitlines()[0]
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # the operations of a reference are too small to be shared
    try:
        truth = both_ways(getattr(_reference, op.name), arguments, precise)
    finally:
        torch.set_num_threads(threads)
    alpha = arguments.get("alpha", 1.0)
    right = all(is_right(op, y, t, alpha) for y, t in zip(ours, truth, strict=True))
    return None if right else "a wrong result"


def failures(device: torch.device) -> Iterator[str]:
    """Yields the ops and sizes whose values or gradients are not those of the reference: exactly where every
    entry is a sum of two numbers at most, to some eps of the type where it is not.
    """
    for op in OPS:
        found: dict[str, str] = {}
        for draw in draws(op):
            samples = SAMPLES[op.name](draw)
            for arguments in samples if draw.n <= SIZES[-1][1] else samples[:1]:
                label = f"{op.name} of {tuple(next(iter(arguments.values())).shape)} on {device}"
                wrong = None if label in found else problem(op, arguments, device)
                if wrong:
                    found[label] = f"{label}: {wrong} ({str(draw.dtype).removeprefix('torch.')})"
        yield from found.values()


def main() -> int:
    for name, value in facts().items():
        print(f"{name + ':':14}{value}")
    print("checking every op takes up to a minute per device", flush=True)
    found: list[str] = []
    for device in devices():
        broken = list(failures(device))
        found += broken
        name = f"{torch.cuda.get_device_name(device)}: " if device.type == "cuda" else ""
        verdict = "FAILED" if broken else f"{len(OPS)} ops checked, forward and backward"
        print(f"{str(device) + ':':14}{name}{verdict}")
    for line in found:
        print(f"  {line}")
    if found:
        print(f"not ok: rebuild with `{_loader.REBUILD} fastparam` (or `.` in its source tree)")
    elif torch.cuda.is_available() and not _built.cuda:
        print(
            "ok, but CUDA tensors run plain PyTorch expressions: "
            "rebuild with FASTPARAM_BUILD=cuda, which says what is missing"
        )
    else:
        print("ok")
    return int(bool(found))


def measure() -> int:
    """Prints how far the ops are from their floors, on each kind of device."""
    for device in {device.type: device for device in devices()}.values():
        print(f"{device.type}, float32{', one thread' * (device.type == 'cpu')}")
        print("floor: the time of a copy, or of the number of matrix products, forward | forward + backward")
        for line in _measure.table(device):
            print(line, flush=True)
    return 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        "python -m fastparam",
        description="Prints the facts of this build, and checks every op on every device.",
    )
    parser.add_argument(
        "--measure",
        action="store_true",
        help="instead, prints the time of every op, and its ratio to a lower bound (the floor)",
    )
    raise SystemExit(measure() if parser.parse_args().measure else main())
