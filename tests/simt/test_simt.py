"""The device code of csrc/*/cuda, compiled by g++ with tests/simt/simt.h and run on the CPU
(tests/simt/README.md).
"""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

PROGRAMS = sorted((Path(__file__).parent).glob("test_*.cpp"))
WARNINGS = ["-Wall", "-Wextra", "-Wno-unknown-pragmas", "-Werror"]
SANITIZED = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"]


def test_there_are_programs() -> None:
    assert PROGRAMS


@pytest.mark.sanitize
@pytest.mark.parametrize("program", PROGRAMS, ids=lambda path: path.stem)
def test_device_code(program: Path, tmp_path: Path) -> None:
    compiler = shutil.which("g++")
    if compiler is None:
        pytest.skip("no g++ found: the device code is not tested")
    binary = tmp_path / program.stem
    compiled = subprocess.run(
        [compiler, "-std=c++20", "-O1", "-g", *WARNINGS, *SANITIZED, program, "-o", binary],
        capture_output=True,
        text=True,
        check=False,
    )
    if "cannot find -l" in compiled.stderr:
        pytest.skip("this g++ has no sanitizer libraries")
    assert compiled.returncode == 0, compiled.stderr
    ran = subprocess.run([binary], capture_output=True, text=True, check=False, timeout=3600)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert ", 0 failures" in ran.stdout
