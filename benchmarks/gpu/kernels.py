"""Lists the registers, shared memory and spills of every compiled CUDA kernel, read from the library. It
needs no GPU.

``python benchmarks/gpu/kernels.py LIBRARY`` prints one line per kernel and architecture, and fails on spills.
With ``--markdown`` it prints the table of NOTES.md, one line per kernel template.
"""

from __future__ import annotations

import importlib.util
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

FOUND = re.compile(r"arch = (\w+)|Function (?:void )?(.+):\s+REG:(\d+) STACK:(\d+) SHARED:(\d+) LOCAL:(\d+)")
TYPES = {
    "unsigned long long": "u64",
    "unsigned long": "u64",
    "unsigned short": "u16",
    "unsigned char": "u8",
    "unsigned int": "u32",
    "c10::BFloat16": "bfloat16",
    "c10::Half": "float16",
}


@dataclass(frozen=True, order=True)
class Kernel:
    name: str
    arch: str
    registers: int
    shared: int  # static bytes per block
    spilled: int  # bytes of local memory per thread

    @property
    def family(self) -> str:
        return self.name.partition("<")[0]


def readable(name: str) -> str:
    """The name of a demangled kernel without its arguments, the namespaces and redundant words."""
    name = re.sub(r"\(\w+\)(?=\w)", "", name)  # (int)4 as a template argument
    name = name.split("(")[0].replace("fastparam::cuda::", "").replace("fastparam::", "")
    for long, short in TYPES.items():
        name = name.replace(long, short)
    return name


def generation(arch: str) -> int:
    return int(re.sub(r"\D", "", arch))


def parse(usage: str) -> list[Kernel]:
    """Parses the output of ``cuobjdump --dump-resource-usage`` into kernels with demangled names."""
    found, arch = set(), ""
    for new_arch, name, *numbers in FOUND.findall(usage):
        if new_arch:
            arch = new_arch
        elif "fastparam" in name:
            registers, stack, shared, local = map(int, numbers)
            found.add(Kernel(readable(name), arch, registers, shared, stack + local))
    return sorted(found, key=lambda kernel: (kernel.name, generation(kernel.arch)))


def reader() -> str:
    """Finds NVIDIA's reader of compiled kernels: that of the toolkit, or the one in triton, which torch
    installs.
    """
    triton = importlib.util.find_spec("triton")
    bundled = (
        Path(triton.origin).parent / "backends/nvidia/bin/cuobjdump" if triton and triton.origin else None
    )
    found = shutil.which("cuobjdump") or (str(bundled) if bundled and bundled.exists() else None)
    if found is None:
        sys.exit("kernels: no cuobjdump on the PATH, and no triton that brings one")
    return found


def read(library: Path) -> list[Kernel]:
    usage = subprocess.run(
        [reader(), "--dump-resource-usage", library], check=True, capture_output=True, text=True
    ).stdout
    return parse(subprocess.run(["c++filt"], input=usage, check=True, capture_output=True, text=True).stdout)


def listing(kernels: Iterable[Kernel]) -> str:
    lines = [f"{'':7}{'kernel':56}{'registers':>10}{'shared':>8}"]
    lines += [f"{k.arch:7}{k.name:56}{k.registers:10}{k.shared:8}" for k in kernels]
    return "\n".join(lines)


def markdown(kernels: Iterable[Kernel]) -> str:
    """One line per kernel template: its instances, the fewest and the most registers on each architecture,
    shared memory, spilled bytes.
    """
    families: dict[str, list[Kernel]] = {}
    for kernel in kernels:
        families.setdefault(kernel.family, []).append(kernel)
    archs = sorted({kernel.arch for found in families.values() for kernel in found}, key=generation)
    lines = [
        f"| kernel | instances | {' | '.join(archs)} | shared bytes, at most | spilled bytes |",
        f"|---|--:|{'---|' * len(archs)}--:|--:|",
    ]
    for family, found in families.items():
        cells = [f"`{family}`", str(len({kernel.name for kernel in found}))]
        for arch in archs:
            registers = [kernel.registers for kernel in found if kernel.arch == arch] or [0]
            cells.append("-".join(map(str, dict.fromkeys((min(registers), max(registers))))))
        cells += [str(max(kernel.shared for kernel in found)), str(sum(kernel.spilled for kernel in found))]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main(arguments: list[str]) -> int:
    (library,) = (Path(a) for a in arguments if not a.startswith("--"))
    kernels = read(library)
    if not kernels:
        sys.exit(f"kernels: none in {library}")
    print(markdown(kernels) if "--markdown" in arguments else listing(kernels))
    spilled = [f"{kernel.name} ({kernel.arch})" for kernel in kernels if kernel.spilled]
    if spilled:
        print(f"kernels: local memory is used by {', '.join(spilled)}", file=sys.stderr)
    return int(bool(spilled))


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
