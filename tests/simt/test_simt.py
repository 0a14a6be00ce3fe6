"""The device code of csrc/*/cuda, compiled by g++ against tests/simt/simt.h and run on the CPU
(tests/simt/README.md).
"""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

PROGRAMS = sorted((Path(__file__).parent).glob("test_*.cpp"))
BUILDS = {
    "plain": ["-O1", "-Wall", "-Wextra", "-Wno-unknown-pragmas", "-Werror"],
    "sanitized": ["-O1", "-g", "-w", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"],
}
every_build = pytest.mark.parametrize(
    "build", ["plain", pytest.param("sanitized", marks=pytest.mark.sanitize)]
)


def test_there_are_programs() -> None:
    assert PROGRAMS


@every_build
@pytest.mark.parametrize("program", PROGRAMS, ids=lambda path: path.stem)
def test_device_code(program: Path, build: str, tmp_path: Path) -> None:
    compiler = shutil.which("g++")
    if compiler is None:
        pytest.skip("no g++ found: the device code is not tested")
    binary = tmp_path / program.stem
    compiled = subprocess.run(
        [compiler, "-std=c++20", *BUILDS[build], program, "-o", binary],
        capture_output=True,
        text=True,
        check=False,
    )
    if build == "sanitized" and "cannot find -l" in compiled.stderr:
        pytest.skip("this g++ has no sanitizer libraries")
    assert compiled.returncode == 0, compiled.stderr
    quick = ["quick"] if build == "plain" else []
    ran = subprocess.run([binary, *quick], capture_output=True, text=True, check=False, timeout=3600)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert ", 0 failures" in ran.stdout
