"""The device code of csrc/*/cuda, compiled by g++ with tests/simt/simt.h and run on the CPU, and its bank
conflicts (tests/simt/README.md).
"""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

HERE = Path(__file__).parent
PROGRAMS = sorted(HERE.glob("test_*.cpp"))
COUNTS = sorted(HERE.glob("banks_*.cpp"))
WARNINGS = ["-Wall", "-Wextra", "-Wno-unknown-pragmas", "-Werror"]
SANITIZED = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
# Without optimization, g++ neither splits an access nor merges two.
RECORDED = [
    "-O0",
    "-fsanitize=thread",
    "-fsanitize-coverage=trace-pc",
    "-D__forceinline__=inline __attribute__((always_inline))",
]


def test_there_are_programs() -> None:
    assert PROGRAMS and COUNTS


def gcc(*arguments: str | Path) -> None:
    compiler = shutil.which("g++")
    if compiler is None:
        pytest.skip("no g++ found: the device code is not tested")
    compiled = subprocess.run(
        [compiler, "-std=c++20", *WARNINGS, *arguments], capture_output=True, text=True, check=False
    )
    if "cannot find -l" in compiled.stderr:
        pytest.skip("this g++ has no sanitizer libraries")
    assert compiled.returncode == 0, compiled.stderr


def run(binary: Path) -> None:
    ran = subprocess.run([binary], capture_output=True, text=True, check=False, timeout=3600)
    print(ran.stdout)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert ", 0 failures" in ran.stdout


@pytest.mark.sanitize
@pytest.mark.parametrize("program", PROGRAMS, ids=lambda path: path.stem)
def test_device_code(program: Path, tmp_path: Path) -> None:
    binary = tmp_path / program.stem
    gcc("-O1", "-g", *SANITIZED, program, "-o", binary)
    run(binary)


@pytest.mark.sanitize
@pytest.mark.parametrize("program", COUNTS, ids=lambda path: path.stem)
def test_bank_conflicts(program: Path, tmp_path: Path) -> None:
    kernels, recorder = tmp_path / "kernels.o", tmp_path / "recorder.o"
    gcc(*RECORDED, "-c", program, "-o", kernels)
    gcc("-O1", "-c", HERE / "wavefronts.cpp", "-o", recorder)
    gcc("-rdynamic", kernels, recorder, "-ldl", "-o", tmp_path / program.stem)
    run(tmp_path / program.stem)
