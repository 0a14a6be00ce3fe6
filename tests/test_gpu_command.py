"""``make gpu``, as far as a machine without a GPU can test it: its output, its phases and its time. Its
report is tested in test_device_report.py.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
pytestmark = pytest.mark.skipif(not (ROOT / "benchmarks").exists(), reason="needs the source tree")
sys.path.insert(0, str(ROOT / "benchmarks" / "gpu"))

import gpu as command  # noqa: E402
import kernels  # noqa: E402

PROGRAM = ROOT / "benchmarks" / "gpu" / "gpu.py"


@pytest.fixture
def work(tmp_path, monkeypatch):
    monkeypatch.setattr(command, "WORK", tmp_path / "work")
    return tmp_path / "work"


def soon(seconds: float = 60) -> float:
    return time.monotonic() + seconds


# ---- the command -----------------------------------------------------------------------------------------


def test_without_a_device_one_sentence_before_any_work():
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    result = subprocess.run([sys.executable, PROGRAM], capture_output=True, text=True, env=environment)
    assert result.returncode == 2 and not result.stdout
    assert (
        result.stderr
        == "make gpu: no CUDA device is visible here, so there is nothing to build for, test or measure\n"
    )


def test_without_torch_one_sentence():
    code = (
        "import sys, runpy; sys.modules['torch'] = None; sys.argv = ['gpu.py']; "
        f"runpy.run_path({str(PROGRAM)!r}, run_name='__main__')"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (
        result.returncode == 2
        and result.stderr == "make gpu: torch is not installed, so no GPU can be detected\n"
    )


def test_an_unknown_phase_is_refused():
    result = subprocess.run([sys.executable, PROGRAM, "polish"], capture_output=True, text=True)
    assert (
        result.returncode == 2
        and "expected phases among build, test, bench, graphs, sanitize, report, got polish" in result.stderr
    )


def test_a_phase_that_fails_hides_no_other(work):
    limits = {}

    def phase(name, outcome):
        def run(capability, deadline):
            limits[name] = deadline - time.monotonic()
            if isinstance(outcome, Exception):
                raise outcome
            return outcome

        return run

    given = {
        "build": phase("build", command.Outcome("FAILED", "no compiler")),
        "test": phase("test", RuntimeError("broken\nat length")),
        "report": phase("report", command.Outcome("ok", "written")),
    }
    outcomes = command.perform(list(given), given, "9.0")
    assert [(o.status, o.detail) for o in outcomes.values()] == [
        ("FAILED", "no compiler"),
        ("FAILED", "RuntimeError: broken"),
        ("ok", "written"),
    ]
    reserved = command.RESERVED
    assert limits["build"] == pytest.approx(command.TOTAL - reserved["test"] - reserved["report"], abs=5)
    assert limits["report"] == pytest.approx(command.TOTAL, abs=5), (
        "time that a phase leaves, the next ones may use"
    )
    command.perform(["report"], given, "9.0")
    assert list(json.loads((work / "phases.json").read_text())) == ["build", "test", "report"], (
        "phases run apart add up"
    )


def test_the_phases_fit_into_eight_minutes_the_most_important_ones_first():
    assert list(command.PHASES) == ["build", "test", "bench", "graphs", "sanitize", "report"]
    assert (
        list(command.RESERVED) == list(command.PHASES)
        and sum(command.RESERVED.values()) <= command.TOTAL < 480
    )


def test_main_runs_what_is_asked_and_its_status_tells(work, monkeypatch, capsys):
    monkeypatch.setattr(command, "device", lambda: ("A Device", "9.0"))
    monkeypatch.setattr(
        command, "PHASES", {name: lambda *_, n=name: command.Outcome("ok", n) for name in command.PHASES}
    )
    assert command.main(["bench", "test"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[-3:]] == ["test", "bench", "together"]
    command.PHASES["test"] = lambda *_: command.Outcome("FAILED", "2 failed")
    assert command.main(["bench", "test"]) == 1


def test_a_command_out_of_time_ends_with_all_it_started(tmp_path):
    child = f"import time, pathlib; time.sleep(3); pathlib.Path({str(tmp_path / 'alive')!r}).touch()"
    call = f"subprocess.run([sys.executable, '-c', {child!r}])"
    code = f"import subprocess, sys; print('started', flush=True); {call}"
    ended = command.run([sys.executable, "-c", code], soon(2))
    assert ended.status == 124 and "started" in ended.output and "no more time" in ended.output
    time.sleep(4)
    assert not (tmp_path / "alive").exists()


# ---- its phases ------------------------------------------------------------------------------------------


def test_a_phase_says_what_went_wrong(work, tmp_path, monkeypatch):
    (tmp_path / "device_report.py").write_text("raise SystemExit('no rows to report')")
    (tmp_path / "device_bench.py").write_text(
        "print('7 cases measured, 1 failed'); print('FAILED skew'); raise SystemExit(1)"
    )
    monkeypatch.setattr(command, "HERE", tmp_path)
    assert command.report("9.0", soon(), tmp_path) == command.Outcome("FAILED", "no rows to report")
    assert command.bench("9.0", soon()) == command.Outcome("FAILED", "7 cases measured, 1 failed")


def test_counts_of_pytest():
    assert command.counts("...\n== 3 failed, 12 passed, 1 skipped in 4.2s ==\n") == {
        "failed": 3,
        "passed": 12,
        "skipped": 1,
    }
    assert command.counts("31 passed, 4 deselected in 61.02s (0:01:01)") == {"passed": 31}
    assert command.counts("Segmentation fault") == {}


def test_the_files_with_tests_for_a_device():
    files, left = command.test_files()
    names = [path.name for path in files + left]
    assert names[0].startswith("test_cuda") and {"test_values.py", "test_system.py", "test_prune.py"} <= set(
        names
    )
    of_cuda = {path.name for path in (ROOT / "tests" / "cuda").glob("test_*.py")}
    assert of_cuda - set(names) == {command.GRAPHS.name}, "graphs are a phase of their own"


@pytest.mark.slow
def test_test_phase_names_what_failed_and_what_never_ran(work, tmp_path, monkeypatch):
    sources = {
        "test_cuda_good.py": "def test_a(): pass",
        "test_cuda_bad.py": "def test_a(): assert False",
        "test_cuda_idle.py": "import pytest\n@pytest.mark.skip\ndef test_a(): pass",
        "test_other.py": "def test_a(): pass",
    }
    paths = [tmp_path / name for name in sources]
    for path in paths:
        path.write_text(sources[path.name])
    monkeypatch.setattr(command, "test_files", lambda: (paths, []))
    outcome = command.test("9.0", soon(120))
    assert outcome.status == "FAILED"
    counts, idle = "1 passed, 1 failed, 1 skipped in 4 files", "no test ran in: test_cuda_idle.py"
    assert outcome.detail == f"{counts}; failed: test_cuda_bad.py; {idle}"
    late = command.test("9.0", soon(-1))
    assert late.status == "FAILED" and late.detail.endswith(f"timed out: {', '.join(sources)}")
    monkeypatch.setattr(command, "test_files", lambda: ([paths[0], paths[3]], [Path("test_random.py")]))
    outcome = command.test("9.0", soon(120))
    assert (outcome.status, outcome.detail) == (
        "ok",
        "1 passed in 2 files; not run because hypothesis is missing: test_random.py",
    )


FAKE_SANITIZER = """#!/bin/sh
tool=$2
echo "========= COMPUTE-SANITIZER $*"
if [ "$tool" = racecheck ]; then exit 9; fi
while [ "$1" != {python} ]; do shift; done
"$@"
"""


def test_sanitize_phase(work, tmp_path, monkeypatch):
    monkeypatch.setattr(command, "HERE", tmp_path)
    (tmp_path / "every_kernel.py").write_text("print('6 of 6 kernels ran')")
    monkeypatch.setattr(command, "find_sanitizer", lambda: None)
    assert command.sanitize("9.0", soon()) == command.Outcome(
        "skipped", "compute-sanitizer was not found; 6 of 6 kernels ran"
    )
    tool = tmp_path / "compute-sanitizer"
    tool.write_text(FAKE_SANITIZER.format(python=sys.executable))
    tool.chmod(0o755)
    monkeypatch.undo()
    monkeypatch.setattr(command, "WORK", work)
    monkeypatch.setattr(command, "HERE", tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    outcome = command.sanitize("9.0", soon())
    assert outcome.status == "FAILED"
    assert (
        outcome.detail
        == "memcheck clean; racecheck FAILED; initcheck clean; synccheck clean; 6 of 6 kernels ran"
    )
    assert "--tool initcheck --error-exitcode 9" in (work / "sanitize.log").read_text()


@pytest.mark.slow
def test_the_program_for_the_sanitizers_runs():
    program = ROOT / "benchmarks" / "gpu" / "every_kernel.py"
    result = subprocess.run(
        [sys.executable, program, "--device", "cpu", "--small"], capture_output=True, text=True
    )
    assert result.returncode == 0 and re.fullmatch(r"[1-9]\d* runs, forward and backward\n", result.stdout), (
        result.stderr
    )


USAGE = """
Fatbin elf code:
arch = sm_90
 Function void fastparam::cuda::triangular_flat<float, false>(fastparam::cuda::Triangular<unsigned int>):
  REG:32 STACK:0 SHARED:0 LOCAL:0 CONSTANT[0]:580 TEXTURE:0 SURFACE:0 SAMPLER:0
arch = sm_100
 Function void fastparam::cuda::triangular_flat<float, false>(fastparam::cuda::Triangular<unsigned int>):
  REG:34 STACK:8 SHARED:0 LOCAL:0 CONSTANT[0]:580 TEXTURE:0 SURFACE:0 SAMPLER:0
 Function void at::native::other<float>(float):
  REG:99 STACK:0 SHARED:0 LOCAL:0 CONSTANT[0]:580 TEXTURE:0 SURFACE:0 SAMPLER:0
"""


def test_kernels_are_read():
    flat, larger = kernels.parse(USAGE)
    assert (
        flat == kernels.Kernel("triangular_flat<float, false>", "sm_90", 32, 0, 0)
        and flat.family == "triangular_flat"
    )
    assert (larger.arch, larger.registers, larger.spilled) == ("sm_100", 34, 8)
    assert "| `triangular_flat` | 1 | 32 | 34 | 0 | 8 |" in kernels.markdown([flat, larger])
