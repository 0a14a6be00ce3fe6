"""Measures every case of every bench_*.py on one device within a given time, and writes one JSON file.

``python benchmarks/gpu/device_bench.py --seconds 100 --out build/gpu/bench.json`` first measures the ceilings
of the device and then each case without torch.compile. The quick cases and the large ones are then measured
again with torch.compile, which takes seconds to compile them. Cases that did not fit into the time are
listed.
"""

from __future__ import annotations

import argparse
import importlib
import json
import math
import os
import re
import sys
import time
from collections.abc import Iterable, Iterator
from itertools import zip_longest
from pathlib import Path
from typing import Any

import torch

BENCHMARKS = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(BENCHMARKS), str(BENCHMARKS.parent / "tests")]  # eager modules are in tests/tutorial.py

import ceilings  # noqa: E402
import report  # noqa: E402
from measure import Case, Settings, race  # noqa: E402

BUDGET = 0.1  # seconds of rounds per case
COMPILED_FROM = 2**26  # bytes: larger cases are worth the seconds that torch.compile takes
COMPILING = 25  # seconds that must be left before a case with torch.compile, whose first call is slow
# The cases that answer the most important questions, in this order, by the beginning of their labels. They
# are measured first.
FIRST = (
    # maps that move memory: the fraction of the copy rate, and times eager
    r"(symmetric|skew|masked_prune)-(4096x4096|4096x64x64|1000000x8x8)-float32",
    # batches of Cayley maps
    r"skew_cayley-(16384x4x4|4096x8x8|1024x16x16|256x32x32|64x64x64)-float32",
    r"skew_cayley_packed-(128x32x32|32x96x96)-",
    # single matrices, and tall ones
    r"skew_cayley-(256x256|512x512|1024x1024|2048x2048|4096x4096)-float32",
    r"stiefel_cayley-(1024x64|4096x128)-",
    # exponentials and signs
    r"(skew_exp|symmetric_exp|matrix_exp)-(1024x8x8|64x32x32|256x256)-float32",
    r"skew_cayley signs-",
    # small weights, whose time is that of the call
    r"(symmetric|masked_prune|skew_cayley)-16x16-float32",
)
Job = tuple[str, Case, bool]  # family, case, with torch.compile


def families() -> dict[str, list[Case]]:
    """Returns the cases of every bench_<family>.py."""
    paths = sorted(BENCHMARKS.glob("bench_*.py"))
    return {path.stem.removeprefix("bench_"): importlib.import_module(path.stem).CASES for path in paths}


def jobs(cases: dict[str, list[Case]], device: str, only: str = "") -> Iterator[Job]:
    """Yields the measurements, the most informative first, so that the least important ones are cut when time
    runs out. After the cases of FIRST, families take turns.
    """
    mine = {
        family: [case for case in listed if case.device == device and re.search(only, str(case))]
        for family, listed in cases.items()
    }
    first = [(family, case) for family, listed in mine.items() for case in listed if rank(case) < len(FIRST)]
    yield from ((family, case, False) for family, case in sorted(first, key=lambda job: rank(job[1])))
    plain = [
        [
            (family, case, False)
            for case in sorted(listed, key=lambda case: not case.quick)
            if rank(case) == len(FIRST)
        ]
        for family, listed in mine.items()
    ]
    compiled = [
        [(family, case, True) for case in listed if worth_compiling(case)] for family, listed in mine.items()
    ]
    for stage in (plain, compiled):
        for turn in zip_longest(*stage):
            yield from (job for job in turn if job is not None)


def rank(case: Case) -> int:
    """The position in FIRST."""
    return next((i for i, pattern in enumerate(FIRST) if re.match(pattern, str(case))), len(FIRST))


def worth_compiling(case: Case) -> bool:
    large = math.prod(case.shape) * case.dtype.itemsize >= COMPILED_FROM
    return "compile" in case.op.contenders and case.dtype == torch.float32 and (case.quick or large)


def measure(job: Job, rates: dict[str, float]) -> report.Row:
    family, case, compiled = job
    row = report.make_row(family, case, race(case, Settings(BUDGET, compile=compiled)))
    floor = 1e6 * ceilings.floor_seconds(case, rates)
    return (
        row
        if math.isnan(floor)
        else row | {"counted_us": floor, "of_ceiling": floor / row["us"]["fastparam"]}
    )


def run(todo: Iterable[Job], out: Path, device: str, rates: dict[str, float], deadline: float) -> int:
    """Measures until all jobs are done or the deadline has passed. The file is complete after every case.
    Returns the number of cases that failed.
    """
    rows: dict[str, report.Row] = {}
    saved: dict[str, Any] = {
        "device": device,
        "about": report.about(),
        "ceilings": rates,
        "rows": [],
        "left_out": [],
        "failed": {},
    }
    for job in todo:
        _, case, compiled = job
        label = f"{case}{', with torch.compile' if compiled else ''}"
        if time.monotonic() > deadline - COMPILING * compiled:
            saved["left_out"].append(label)
            continue
        try:
            rows[str(case)] = measure(job, rates)  # the one with torch.compile replaces the one without
        except torch.OutOfMemoryError:
            saved["left_out"].append(f"{label} (memory)")
        except Exception as error:
            saved["failed"][label] = f"{type(error).__name__}: {error}".splitlines()[0]
        if device == "cuda":
            torch.cuda.empty_cache()
        write(out, saved | {"rows": list(rows.values())})
    write(out, saved | {"rows": list(rows.values())})
    for row in rows.values():
        of_ceiling = f"{row['of_ceiling']:.0%} of the ceiling" if "of_ceiling" in row else ""
        label = f"{row['op']:24}{row['shape']:16}{row['dtype']:10}{row['pass']:18}"
        print(f"{label}{row['us']['fastparam']:10.1f} us  {of_ceiling}")
    failed, left_out = len(saved["failed"]), len(saved["left_out"])
    print(f"{len(rows)} cases measured, {failed} failed, {left_out} left out for lack of time or memory")
    for label, error in saved["failed"].items():
        print(f"FAILED {label}: {error}")
    return len(saved["failed"]) + (not rows)


def write(out: Path, saved: dict[str, Any]) -> None:
    out.parent.mkdir(parents=True, exist_ok=True)
    part = out.with_suffix(".part")
    part.write_text(json.dumps(saved, indent=1) + "\n")
    os.replace(part, out)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=100)
    parser.add_argument("--device", default="cuda")
    parser.add_argument(
        "--only",
        default="",
        metavar="REGEX",
        help="cases whose label matches, such as symmetric-4096x4096-float32-cuda-forward",
    )
    parser.add_argument("--out", type=Path, default=BENCHMARKS.parent / "build" / "gpu" / "bench.json")
    options = parser.parse_args()
    deadline = time.monotonic() + options.seconds
    rates = ceilings.measured(options.device)
    print(", ".join(f"{name} {rate:.3g}/s" for name, rate in rates.items()))
    return int(
        run(jobs(families(), options.device, options.only), options.out, options.device, rates, deadline) > 0
    )


if __name__ == "__main__":
    sys.exit(main())
