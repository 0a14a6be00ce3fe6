"""The measurements and the report of ``make gpu``, on the CPU and with made-up numbers in temporary
folders.
"""

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
sys.path[:0] = [str(ROOT / "benchmarks" / "gpu"), str(ROOT / "benchmarks")]

import ceilings  # noqa: E402
import device_bench  # noqa: E402
import device_report  # noqa: E402
import report  # noqa: E402
from measure import Case, Op, Work  # noqa: E402

RIVALS = {"eager": torch.triu, "fastparam": torch.triu, "floor": torch.clone}
SKEW = Op("skew", lambda X: dict(RIVALS), contenders=tuple(RIVALS), work=Work(words=(1.5, 3.5)))
RATES = {"copy": 1e9, "float32": 1e12, "float64": 5e11, "bfloat16": 1e13}


def test_every_benchmark_is_found_and_counted_work_is_a_floor():
    families = device_bench.families()
    assert {path.stem for path in (ROOT / "benchmarks").glob("bench_*.py")} == {
        f"bench_{name}" for name in families
    }
    assert all(families.values()) and {"triangular", "prune"} <= set(families)
    case = Case(SKEW, (1024, 1024))
    assert ceilings.floor_seconds(case, RATES) == pytest.approx(1.5 * 4 * 2**20 / 1e9)
    assert (
        ceilings.floor_seconds(dataclasses.replace(case, backward=True, dtype=torch.bfloat16), RATES)
        == 3.5 * 2 * 2**20 / 1e9
    )
    solved = Op("solved", SKEW.build, work=Work(words=(2, 5), flops=(2, 6)))
    assert ceilings.floor_seconds(Case(solved, (8, 512, 512)), RATES) == pytest.approx(
        max(2 * 4 * 2**21 / 1e9, 2 * 8 * 512**3 / 1e12)
    )
    assert math.isnan(ceilings.floor_seconds(Case(dataclasses.replace(SKEW, work=None), (8, 8)), RATES))


def test_ceilings_are_measured():
    rates = ceilings.measured("cpu", size=2**20, order=64)
    assert set(rates) == set(RATES) and all(0 < rate < 1e16 for rate in rates.values())


def test_jobs_take_turns_and_end_with_what_compiles_slowly():
    with_compile = dataclasses.replace(SKEW, contenders=("eager", "compile", *SKEW.contenders[1:]))
    cases = {
        "a": [Case(SKEW, (8, 8)), Case(SKEW, (16, 16), quick=True)],
        "b": [Case(with_compile, (32, 32), quick=True)],
    }
    order = [(family, case.shape[0], compiled) for family, case, compiled in device_bench.jobs(cases, "cpu")]
    assert order == [("a", 16, False), ("b", 32, False), ("a", 8, False), ("b", 32, True)]
    assert not list(device_bench.jobs(cases, "cuda"))
    assert [case.shape[0] for _, case, _ in device_bench.jobs(cases, "cpu", only="skew-8x8-")] == [8]


def test_the_most_important_cases_come_first():
    cases = {"a": [Case(SKEW, (16, 16), quick=True), Case(SKEW, (4096, 4096))]}
    assert [case.shape[0] for _, case, _ in device_bench.jobs(cases, "cpu")] == [4096, 16]


@pytest.mark.slow
def test_the_most_important_cases_exist_where_the_program_is_started():
    code = (
        "import torch, sys; torch.cuda.is_available = lambda: True; import device_bench; "
        "found = {device_bench.rank(c) for cases in device_bench.families().values() for c in cases "
        "if c.device == 'cuda'}; sys.exit(found != set(range(len(device_bench.FIRST) + 1)))"
    )
    found = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": f"{ROOT}:{ROOT / 'benchmarks' / 'gpu'}"},
    )
    assert found.returncode == 0, found.stderr


@pytest.fixture
def measured(tmp_path, capsys):
    """The output of device_bench.py, measured here on a CPU: two sizes, a case that fails, and no time for
    the last one.
    """

    def wrong(X):
        raise RuntimeError("no such kernel")

    broken = dataclasses.replace(SKEW, name="broken", build=lambda X: RIVALS | {"fastparam": wrong})
    jobs = [("triangular", Case(op, (n, n)), False) for op, n in ((SKEW, 32), (SKEW, 64), (broken, 8))]
    out = tmp_path / "bench.json"
    failed = device_bench.run(jobs, out, "cpu", RATES, time.monotonic() + 100)
    assert failed == 1 and "2 cases measured, 1 failed, 0 left out" in capsys.readouterr().out
    late = device_bench.run(jobs, tmp_path / "late.json", "cpu", RATES, deadline=time.monotonic() - 1)
    assert late == 1 and len(json.loads((tmp_path / "late.json").read_text())["left_out"]) == 3, (
        "nothing measured is a failure"
    )
    return out


def test_bench_rows(measured):
    saved = json.loads(measured.read_text())
    assert saved["failed"] == {"broken-8x8-float32-cpu-forward": "RuntimeError: no such kernel"}
    row = saved["rows"][0]
    assert row["counted_us"] == pytest.approx(1e6 * 1.5 * 4 * 32**2 / 1e9)
    assert row["of_ceiling"] == row["counted_us"] / row["us"]["fastparam"]
    assert saved["about"]["commit"] and saved["about"]["date"]


@pytest.fixture
def made_up(measured, tmp_path):
    """The report of a GPU that does not exist, in a temporary folder."""
    bench = json.loads(measured.read_text())
    bench["about"] |= {"gpu": "Imaginary GPU 9000", "cuda": "13.0", "driver": "999.1"}
    shapes = [(row, shape) for row in bench["rows"] for shape in (row["shape"], f"8x{row['shape']}", "8x8")]
    bench["rows"] = [row | {"device": "cuda", "shape": shape} for row, shape in shapes]
    uncounted = {
        key: value for key, value in bench["rows"][0].items() if key not in ("counted_us", "of_ceiling")
    }
    bench["rows"].append(uncounted | {"op": "layer.weight"})
    measured.write_text(json.dumps(bench))
    (tmp_path / "phases.json").write_text(
        json.dumps({"test": {"status": "ok", "detail": "7 passed in 3 files", "seconds": 12.4}})
    )
    folder = tmp_path / "results"
    return folder, device_report.write(tmp_path, folder)


def test_report_of_a_device(made_up):
    folder, files = made_up
    assert all(path.parent == folder and path.stat().st_size > 0 for path in files)
    assert [path.name for path in files[:2]] == ["imaginary-gpu-9000.json", "imaginary-gpu-9000.md"]
    if importlib.util.find_spec("matplotlib"):
        assert [path.name for path in files[2:]] == [
            "imaginary-gpu-9000--skew.png",
            "imaginary-gpu-9000--layer-weight.png",
        ]
        assert "![imaginary-gpu-9000--skew](imaginary-gpu-9000--skew.png)" in files[1].read_text()
    saved = json.loads(files[0].read_text())
    about = saved["families"]["triangular"]["environment"]
    assert saved["device"] == about["gpu"] and {"date", "commit", "torch", "cuda", "driver"} <= set(about)
    text = files[1].read_text()
    assert (
        re.search(r"\| test +\| ok +\| +12 \| 7 passed in 3 files \|", text)
        and "a copy moves 0.00 TB/s" in text
    )
    assert (
        len(re.findall(r"^\| skew +\| 32x32 ", text, re.MULTILINE)) == 1
        and "Failed: broken-8x8-float32-cpu-forward: RuntimeError: no such kernel" in text
    )
    assert report.document(saved).startswith("# Imaginary GPU 9000"), (
        "`python benchmarks/report.py FILE` reads it too"
    )


def test_without_matplotlib_the_report_says_so(made_up, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(device_report.importlib.util, "find_spec", lambda name: None)
    files = device_report.write(tmp_path, tmp_path / "plain")
    assert len(files) == 2 and "no plots: matplotlib is not installed here" in capsys.readouterr().out


def test_documentation_shows_gpu_numbers_from_saved_results_only(made_up, tmp_path, monkeypatch):
    text = (ROOT / "docs" / "benchmarks.md").read_text()
    monkeypatch.setattr(report, "RESULTS", tmp_path / "none")
    assert "There are no GPU numbers yet" in report.filled(text) and "AMD" not in report.filled(text)
    monkeypatch.setattr(report, "RESULTS", made_up[0])
    filled = report.filled(text)
    assert "There are no GPU numbers yet" not in filled
    about = json.loads(made_up[1][0].read_text())["families"]["triangular"]["environment"]
    assert (
        f"Imaginary GPU 9000, torch {about['torch']}, {about['date']}" in filled
        and "| skew | 8x8 | forward |" in filled
    )


GPU_NAMES = re.compile(r"\b(A100|A10G?|A30|A40|H100|H200|GH200|B200|GB200|L4|L40S?|T4|V100|MI300X?|RTX)\b")


def test_documents_name_no_gpu_outside_generated_parts():
    for path in [ROOT / "README.md", ROOT / "CHANGELOG.md", *(ROOT / "docs").rglob("*.md")]:
        by_hand = report.MARKS.sub("", path.read_text())
        assert not GPU_NAMES.search(by_hand), f"{path} speaks of a GPU's numbers in text that no script made"
