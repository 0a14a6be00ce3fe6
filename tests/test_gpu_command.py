"""``make gpu`` as far as a machine without a GPU can test it: its phases, its time, its report from made-up numbers."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import math
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]
pytestmark = pytest.mark.skipif(not (ROOT / "benchmarks").exists(), reason="needs the source tree")
sys.path.insert(0, str(ROOT / "benchmarks"))

import ceilings  # noqa: E402
import device_bench  # noqa: E402
import device_report  # noqa: E402
import gpu as command  # noqa: E402
import kernels  # noqa: E402
import report  # noqa: E402
from measure import Case, Op, Work  # noqa: E402

PROGRAM = ROOT / "benchmarks" / "gpu.py"


@pytest.fixture
def work(tmp_path, monkeypatch):
    monkeypatch.setattr(command, "WORK", tmp_path / "work")
    return tmp_path / "work"


def soon(seconds: float = 60) -> float:
    return time.monotonic() + seconds


# ---- the command ----


def test_without_a_device_one_sentence_before_any_work():
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    result = subprocess.run([sys.executable, PROGRAM], capture_output=True, text=True, env=environment)
    assert result.returncode == 2 and not result.stdout
    assert result.stderr == "make gpu: no CUDA device is visible here, so there is nothing to build for, test or measure\n"


def test_without_torch_one_sentence():
    code = f"import sys, runpy; sys.modules['torch'] = None; sys.argv = ['gpu.py']; runpy.run_path({str(PROGRAM)!r}, run_name='__main__')"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 2 and result.stderr == "make gpu: torch is not installed here, so no GPU can be asked for\n"


def test_an_unknown_phase_is_refused():
    result = subprocess.run([sys.executable, PROGRAM, "polish"], capture_output=True, text=True)
    assert result.returncode == 2 and "expected phases among build, test, sanitize, bench, report, got polish" in result.stderr


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
    assert limits["report"] == pytest.approx(command.TOTAL, abs=5), "time that a phase leaves, the next ones may use"
    command.perform(["report"], given, "9.0")
    assert list(json.loads((work / "phases.json").read_text())) == ["build", "test", "report"], "phases run apart add up"


def test_the_phases_fit_into_eight_minutes():
    assert list(command.RESERVED) == list(command.PHASES) and sum(command.RESERVED.values()) <= command.TOTAL < 480


def test_main_runs_what_is_asked_and_its_status_tells(work, monkeypatch, capsys):
    monkeypatch.setattr(command, "device", lambda: ("A Device", "9.0"))
    monkeypatch.setattr(command, "PHASES", {name: lambda *_, n=name: command.Outcome("ok", n) for name in command.PHASES})
    assert command.main(["bench", "test"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[-3:]] == ["test", "bench", "together"]
    command.PHASES["test"] = lambda *_: command.Outcome("FAILED", "2 failed")
    assert command.main(["bench", "test"]) == 1


def test_a_command_out_of_time_ends_with_all_it_started(tmp_path):
    child = f"import time, pathlib; time.sleep(3); pathlib.Path({str(tmp_path / 'alive')!r}).touch()"
    code = f"import subprocess, sys; print('started', flush=True); subprocess.run([sys.executable, '-c', {child!r}])"
    ended = command.run([sys.executable, "-c", code], soon(2))
    assert ended.status == 124 and "started" in ended.output and "no more time" in ended.output
    time.sleep(4)
    assert not (tmp_path / "alive").exists()


# ---- its phases ----


def test_counts_of_pytest():
    assert command.counts("...\n== 3 failed, 12 passed, 1 skipped in 4.2s ==\n") == {"failed": 3, "passed": 12, "skipped": 1}
    assert command.counts("31 passed, 4 deselected in 61.02s (0:01:01)") == {"passed": 31}
    assert command.counts("Segmentation fault") == {}


def test_the_files_with_tests_for_a_device():
    files, left = command.test_files()
    names = [path.name for path in files + left]
    assert names[0].startswith("test_cuda") and {"test_values.py", "test_system.py", "test_prune.py"} <= set(names)
    assert {path.name for path in (ROOT / "tests").glob("test_cuda*.py")} <= set(names)


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
    assert outcome.detail == "1 passed, 1 failed, 1 skipped in 4 files; failed: test_cuda_bad.py; nothing ran in: test_cuda_idle.py"
    monkeypatch.setattr(command, "test_files", lambda: ([paths[0], paths[3]], [Path("test_random.py")]))
    outcome = command.test("9.0", soon(120))
    assert (outcome.status, outcome.detail) == ("ok", "1 passed in 2 files; not run, as hypothesis is missing: test_random.py")


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
    assert command.sanitize("9.0", soon()) == command.Outcome("skipped", "compute-sanitizer is not here")
    tool = tmp_path / "compute-sanitizer"
    tool.write_text(FAKE_SANITIZER.format(python=sys.executable))
    tool.chmod(0o755)
    monkeypatch.undo()
    monkeypatch.setattr(command, "WORK", work)
    monkeypatch.setattr(command, "HERE", tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    outcome = command.sanitize("9.0", soon())
    assert outcome.status == "FAILED"
    assert outcome.detail == "6 of 6 kernels ran; memcheck clean; racecheck FAILED; initcheck clean; synccheck clean"
    assert "--tool initcheck --error-exitcode 9" in (work / "sanitize.log").read_text()


def test_the_program_for_the_sanitizers_runs():
    program = ROOT / "benchmarks" / "every_kernel.py"
    result = subprocess.run([sys.executable, program, "--device", "cpu", "--small"], capture_output=True, text=True)
    assert result.returncode == 0 and re.fullmatch(r"[1-9]\d* runs, forward and backward\n", result.stdout), result.stderr


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
    assert flat == kernels.Kernel("triangular_flat<float, false>", "sm_90", 32, 0, 0) and flat.family == "triangular_flat"
    assert (larger.arch, larger.registers, larger.spilled) == ("sm_100", 34, 8)
    assert "| `triangular_flat<float, false>` | 32 / 34 | 0 | 8 |" in kernels.markdown([flat, larger])


# ---- benchmarks and report ----

RIVALS = {"eager": torch.triu, "fastparam": torch.triu, "floor": torch.clone}
SKEW = Op("skew", lambda X: dict(RIVALS), contenders=tuple(RIVALS), work=Work(words=(1.5, 3.5)))
RATES = {"copy": 1e9, "float32": 1e12, "float64": 5e11, "bfloat16": 1e13}


def test_every_benchmark_is_found_and_counted_work_is_a_floor():
    families = device_bench.families()
    assert {path.stem for path in (ROOT / "benchmarks").glob("bench_*.py")} == {f"bench_{name}" for name in families}
    assert all(families.values()) and {"triangular", "prune"} <= set(families)
    case = Case(SKEW, (1024, 1024))
    assert ceilings.floor_seconds(case, RATES) == pytest.approx(1.5 * 4 * 2**20 / 1e9)
    assert ceilings.floor_seconds(dataclasses.replace(case, backward=True, dtype=torch.bfloat16), RATES) == 3.5 * 2 * 2**20 / 1e9
    solved = Op("solved", SKEW.build, work=Work(words=(2, 5), flops=(2, 6)))
    assert ceilings.floor_seconds(Case(solved, (8, 512, 512)), RATES) == pytest.approx(max(2 * 4 * 2**21 / 1e9, 2 * 8 * 512**3 / 1e12))
    assert math.isnan(ceilings.floor_seconds(Case(dataclasses.replace(SKEW, work=None), (8, 8)), RATES))


def test_ceilings_are_measured():
    rates = ceilings.measured("cpu", size=2**20, order=64)
    assert set(rates) == set(RATES) and all(0 < rate < 1e16 for rate in rates.values())


def test_jobs_take_turns_and_end_with_what_compiles_slowly():
    with_compile = dataclasses.replace(SKEW, contenders=("eager", "compile", *SKEW.contenders[1:]))
    cases = {"a": [Case(SKEW, (8, 8)), Case(SKEW, (16, 16), quick=True)], "b": [Case(with_compile, (32, 32), quick=True)]}
    order = [(family, case.shape[0], compiled) for family, case, compiled in device_bench.jobs(cases, "cpu")]
    assert order == [("a", 16, False), ("b", 32, False), ("a", 8, False), ("b", 32, True)]
    assert not list(device_bench.jobs(cases, "cuda"))


@pytest.fixture
def measured(tmp_path, capsys):
    """What device_bench.py writes, measured here on a CPU: two sizes, a case that fails, and no time for the last."""

    def wrong(X):
        raise RuntimeError("no such kernel")

    broken = dataclasses.replace(SKEW, name="broken", build=lambda X: RIVALS | {"fastparam": wrong})
    jobs = [("triangular", Case(op, (n, n)), False) for op, n in ((SKEW, 32), (SKEW, 64), (broken, 8))]
    out = tmp_path / "bench.json"
    failed = device_bench.run(jobs, out, "cpu", RATES, soon(100))
    assert failed == 1 and "2 cases measured, 1 failed, 0 left out" in capsys.readouterr().out
    late = device_bench.run(jobs, tmp_path / "late.json", "cpu", RATES, deadline=time.monotonic() - 1)
    assert late == 1 and len(json.loads((tmp_path / "late.json").read_text())["left_out"]) == 3, "nothing measured is a failure"
    return out


def test_bench_rows(measured):
    saved = json.loads(measured.read_text())
    assert saved["failed"] == {"broken-8x8-float32-cpu-forward": "RuntimeError: no such kernel"}
    row = saved["rows"][0]
    assert row["counted_us"] == pytest.approx(1e6 * 1.5 * 4 * 32**2 / 1e9) and row["of_ceiling"] == row["counted_us"] / row["us"]["fastparam"]
    assert saved["about"]["commit"] and saved["about"]["date"]


@pytest.fixture
def made_up(measured, tmp_path):
    """The report of a GPU that does not exist, in a temporary folder."""
    bench = json.loads(measured.read_text())
    bench["about"] |= {"gpu": "Imaginary GPU 9000", "cuda": "13.0", "driver": "999.1"}
    bench["rows"] = [row | {"device": "cuda", "shape": shape} for row in bench["rows"] for shape in (row["shape"], f"8x{row['shape']}", "8x8")]
    measured.write_text(json.dumps(bench))
    (tmp_path / "phases.json").write_text(json.dumps({"test": {"status": "ok", "detail": "7 passed in 3 files", "seconds": 12.4}}))
    folder = tmp_path / "results"
    return folder, device_report.write(tmp_path, folder)


def test_report_of_a_device(made_up):
    folder, files = made_up
    assert all(path.parent == folder and path.stat().st_size > 0 for path in files)
    assert [path.name for path in files[:2]] == ["imaginary-gpu-9000.json", "imaginary-gpu-9000.md"]
    if importlib.util.find_spec("matplotlib"):
        assert [path.name for path in files[2:]] == ["imaginary-gpu-9000--skew.png"]
        assert "![imaginary-gpu-9000--skew](imaginary-gpu-9000--skew.png)" in files[1].read_text()
    saved = json.loads(files[0].read_text())
    about = saved["families"]["triangular"]["environment"]
    assert saved["device"] == about["gpu"] and {"date", "commit", "torch", "cuda", "driver"} <= set(about)
    text = files[1].read_text()
    assert re.search(r"\| test +\| ok +\| +12 \| 7 passed in 3 files \|", text) and "copy 0.00 TB/s (read + written)" in text
    assert text.count("| skew | 32x32 ") == 1 and "Failed: broken-8x8-float32-cpu-forward: RuntimeError: no such kernel" in text
    assert report.document(saved).startswith("# Imaginary GPU 9000"), "`python benchmarks/report.py FILE` reads it too"


def test_without_matplotlib_the_report_says_so(made_up, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(device_report.importlib.util, "find_spec", lambda name: None)
    files = device_report.write(tmp_path, tmp_path / "plain")
    assert len(files) == 2 and "no plots: matplotlib is not installed here" in capsys.readouterr().out


def test_documentation_shows_gpu_numbers_from_saved_results_only(made_up, tmp_path, monkeypatch):
    text = (ROOT / "README.md").read_text()
    monkeypatch.setattr(report, "RESULTS", tmp_path / "none")
    assert "There are no GPU numbers yet" in report.filled(text) and "AMD" not in report.filled(text)
    monkeypatch.setattr(report, "RESULTS", made_up[0])
    filled = report.filled(text)
    assert "There are no GPU numbers yet" not in filled
    about = json.loads(made_up[1][0].read_text())["families"]["triangular"]["environment"]
    assert f"Imaginary GPU 9000, torch {about['torch']}, {about['date']}" in filled and "| skew | 8x8 | forward |" in filled


GPU_NAMES = re.compile(r"\b(A100|A10G?|A30|A40|H100|H200|GH200|B200|GB200|L4|L40S?|T4|V100|MI300X?|RTX)\b")


def test_documents_name_no_gpu_outside_generated_parts():
    for path in [ROOT / "README.md", ROOT / "CHANGELOG.md", *(ROOT / "docs").rglob("*.md")]:
        by_hand = report.MARKS.sub("", path.read_text())
        assert not GPU_NAMES.search(by_hand), f"{path} speaks of a GPU's numbers in text that no script made"
