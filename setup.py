"""Builds fastparam._C against the installed torch, from csrc/**/*.cpp and, if CUDA is built, csrc/**/*.cu.

FASTPARAM_BUILD
    auto (default): CUDA kernels are built if nvcc and a torch with CUDA are found. cpu: they are never built.
    cuda: the build fails and says what is missing if they cannot be built.
TORCH_CUDA_ARCH_LIST
    Architectures, in torch's syntax.
FASTPARAM_SANITIZE
    If set, the C++ sources are compiled with AddressSanitizer and UndefinedBehaviorSanitizer, for
    `make sanitize`.
MAX_JOBS
    Number of parallel compilers. The default depends on cores and memory.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from glob import glob
from pathlib import Path

from setuptools import Extension, setup

ROOT = Path(__file__).resolve().parent
# The commands that compile. The other ones (sdist, egg_info) work without torch.
COMPILING = {"build", "build_ext", "bdist_wheel", "develop", "dist_info", "editable_wheel", "install"}
GIB_PER_JOB = 2.5
OPENMP = (
    [] if sys.platform == "darwin" else ["-fopenmp"]
)  # at::parallel_for is a header: without it the loops are serial
CXX = ["-O3", "-g0", "-fno-math-errno", "-fno-trapping-math", "-Wall", "-Wno-psabi", *OPENMP]
# Unrolled kernels have tens of thousands of checks. As calls instead of inlined code, they reduce the time
# to compile one source from 176 s to 49 s.
SANITIZED = [
    "-O1",
    "-g1",
    "-fsanitize=address,undefined",
    "-fno-sanitize=vptr,null,alignment,object-size",
    "-fno-sanitize-recover=undefined",
    "--param=asan-instrumentation-with-call-threshold=0",
]
NVCC = ["-O3", "--expt-relaxed-constexpr"]


def find_cuda_home() -> None:
    """Sets CUDA_HOME from nvcc, which may be a script outside of its toolkit. torch reads CUDA_HOME when
    cpp_extension is imported.
    """
    nvcc = shutil.which("nvcc")
    if nvcc and not (os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH")):
        said = subprocess.run(
            [nvcc, "--dryrun", "-x", "cu", "-c", os.devnull], capture_output=True, text=True
        ).stderr
        top = re.search(r"^#\$ TOP=(.*)$", said, re.M)
        if top:
            os.environ["CUDA_HOME"] = os.path.realpath(top[1])


def toolkit_version(home: str) -> tuple[int, int]:
    said = subprocess.run(
        [os.path.join(home, "bin", "nvcc"), "--version"], capture_output=True, text=True
    ).stdout
    found = re.search(r"release (\d+)\.(\d+)", said)
    return (int(found[1]), int(found[2])) if found else (0, 0)


def what_cuda_lacks(torch_cuda: str | None, home: str | None) -> str | None:
    """Returns a clause that says why the CUDA sources cannot be compiled, or None."""
    if torch_cuda is None:
        return "the installed torch is a CPU build (torch.version.cuda is None)"
    if home is None or not os.path.exists(os.path.join(home, "bin", "nvcc")):
        return "nvcc was not found (put the CUDA toolkit's bin on the PATH, or set CUDA_HOME)"
    if toolkit_version(home)[0] != int(torch_cuda.split(".")[0]):
        toolkit = ".".join(map(str, toolkit_version(home)))
        return (
            f"nvcc is from CUDA {toolkit}, but torch was built with CUDA {torch_cuda}; "
            "the major versions must match"
        )
    return None


def default_architectures(toolkit: tuple[int, int], devices: list[tuple[int, int]]) -> str:
    """Returns Ampere up to the newest generation that the toolkit knows, the generations of these devices,
    and PTX for later ones. Code for 8.6 runs on 8.7 but not on 11.0, and neither does PTX for 12.0.
    """
    known = [(8, 0), (8, 6), (8, 9), (9, 0)] + ([(10, 0), (12, 0)] if toolkit >= (12, 8) else [])
    for major, minor in devices:
        serves = any(m == major and n <= minor for m, n in known) or (major, minor) > max(known)
        known += [] if serves else [(major, minor)]
    return ";".join(f"{major}.{minor}" for major, minor in sorted(known)) + "+PTX"


def default_jobs() -> int:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30 if hasattr(os, "sysconf") else 8
    return max(1, min(cores, int(memory / GIB_PER_JOB)))


def with_cuda() -> bool:
    from torch.utils.cpp_extension import CUDA_HOME
    from torch.version import cuda

    wanted = os.environ.get("FASTPARAM_BUILD", "auto")
    if wanted not in ("auto", "cpu", "cuda"):
        sys.exit(f"fastparam: expected FASTPARAM_BUILD to be auto, cpu or cuda, got {wanted}")
    lack = what_cuda_lacks(cuda, CUDA_HOME)
    if wanted == "cuda" and lack:
        sys.exit(f"fastparam: FASTPARAM_BUILD=cuda, but {lack}")
    if wanted == "auto" and cuda and lack:
        print(f"fastparam: building without CUDA kernels, because {lack}", file=sys.stderr)
    return wanted != "cpu" and lack is None


def extension_and_command() -> tuple[Extension, type]:
    import torch
    from torch.utils.cpp_extension import CUDA_HOME, BuildExtension, CppExtension, CUDAExtension

    cuda = with_cuda()
    if cuda:
        devices = [torch.cuda.get_device_capability(i) for i in range(torch.cuda.device_count())]
        architectures = default_architectures(toolkit_version(CUDA_HOME), devices)
        os.environ.setdefault("TORCH_CUDA_ARCH_LIST", architectures)
    os.environ.setdefault("MAX_JOBS", str(default_jobs()))
    sources = glob("csrc/**/*.cpp", recursive=True) + (glob("csrc/**/*.cu", recursive=True) if cuda else [])
    kind = CUDAExtension if cuda else CppExtension
    sanitized = SANITIZED if os.environ.get("FASTPARAM_SANITIZE") else []
    cxx, link = [*CXX, *sanitized], [*OPENMP, *sanitized]
    flags = {"cxx": cxx, "nvcc": NVCC} if cuda else cxx

    class Build(BuildExtension):  # type: ignore[misc]
        def finalize_options(self) -> None:
            super().finalize_options()
            # pip builds in a temporary folder. The objects are kept here, so that they are compiled once.
            # Objects of another torch, Python or set of flags are never linked.
            kind = f"torch{torch.__version__}-{'cuda' if cuda else 'cpu'}{'-sanitized' * bool(sanitized)}"
            self.build_temp = str(ROOT / "build" / f"objects-{sys.implementation.cache_tag}-{kind}")

        def run(self) -> None:
            super().run()
            facts = {
                "version": self.distribution.get_version(),
                "torch": torch.__version__,
                "cuda": torch.version.cuda if cuda else None,
                "architectures": os.environ["TORCH_CUDA_ARCH_LIST"] if cuda else None,
            }
            lines = ['"""What this copy was built for; written by setup.py."""', ""] + [
                f"{name} = {value!r}" for name, value in facts.items()
            ]
            Path(self.get_ext_fullpath("fastparam._C")).with_name("_built.py").write_text(
                "\n".join(lines) + "\n"
            )

    return kind("fastparam._C", sorted(sources), extra_compile_args=flags, extra_link_args=link), Build


def main() -> None:
    if not COMPILING & set(sys.argv):
        setup(ext_modules=[Extension("fastparam._C", [])])
        return
    find_cuda_home()
    try:
        import torch  # noqa: F401
    except ImportError:
        sys.exit(
            "fastparam: the extension is compiled against the installed torch, and this build finds none: "
            "install torch, then run `pip install --no-build-isolation .` (without --no-build-isolation, pip "
            "hides the installed torch)"
        )
    extension, command = extension_and_command()
    setup(ext_modules=[extension], cmdclass={"build_ext": command})


if __name__ == "__main__":
    main()
