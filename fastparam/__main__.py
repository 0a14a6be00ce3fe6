"""``python -m fastparam``: what this build is, and whether every op works on every device here."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from . import _C, _built, _loader, _reference, functional

LEVELS = {16: "baseline", 32: "AVX2", 64: "AVX-512"}
SIZES = ((3, 3), (5, 7, 7), (33, 33), (2, 130, 130))
# Public function, its plain-torch meaning.
OPS: dict[str, tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]] = {
    "symmetric": (functional.symmetric, _reference.symmetric),
    "skew": (functional.skew, _reference.skew),
    "masked_prune": (
        lambda X: functional.masked_prune(X, functional.pack_mask(X > 0)),
        lambda X: _reference.masked_prune(X, X > 0),
    ),
}


def facts() -> dict[str, str]:
    """What the build is made of."""
    kernels = f"CUDA {_built.cuda}, {_built.architectures}" if _built.cuda else "none in this build"
    return {
        "fastparam": _built.version,
        "torch": f"{torch.__version__} (built for {_built.torch})",
        "python": sys.version.split()[0],
        "compiler": _C.compiler(),
        "CPU kernels": f"{LEVELS[_C.vector_bytes()]} ({torch.get_num_threads()} threads; ATEN_CPU_CAPABILITY lowers the level)",
        "CUDA kernels": kernels,
    }


def devices() -> list[torch.device]:
    return [torch.device("cpu")] + [torch.device("cuda", i) for i in range(torch.cuda.device_count())]


def failures(device: torch.device) -> Iterator[str]:
    """Yields the ops whose values or gradients are not those of the reference, exactly: all are sums of two
    numbers at most.
    """
    generator = torch.Generator().manual_seed(0)
    for name, (op, reference) in OPS.items():
        for size in SIZES:
            X = torch.randn(size, generator=generator).to(device).requires_grad_()
            G = torch.randn(size, generator=generator).to(device)
            try:
                pairs = [(f(X), torch.autograd.grad(f(X), X, G)[0]) for f in (op, reference)]
                right = all(torch.equal(ours, theirs) for ours, theirs in zip(*pairs, strict=True))
                problem = None if right else "a wrong result"
            except RuntimeError as error:
                problem = str(error).splitlines()[0]
            if problem:
                yield f"{name} of {tuple(size)} on {device}: {problem}"


def main() -> int:
    for name, value in facts().items():
        print(f"{name + ':':14}{value}")
    found: list[str] = []
    for device in devices():
        broken = list(failures(device))
        found += broken
        where = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
        print(
            f"{str(device) + ':':14}{where}: {'FAILED' if broken else f'{len(OPS)} ops checked, forward and backward'}"
        )
    for line in found:
        print(f"  {line}")
    if found:
        print(f"not ok: rebuild with `{_loader.REBUILD} fastparam` (or `.` in its source tree)")
    elif torch.cuda.is_available() and not _built.cuda:
        print(
            "ok, but CUDA tensors run plain PyTorch expressions: rebuild with FASTPARAM_BUILD=cuda, which says what is missing"
        )
    else:
        print("ok")
    return int(bool(found))


if __name__ == "__main__":
    raise SystemExit(main())
