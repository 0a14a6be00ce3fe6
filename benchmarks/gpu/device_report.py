"""Writes the report of a GPU from the files that the phases of ``make gpu`` left: <device>.json, <device>.md
and one plot per op.

``python benchmarks/gpu/device_report.py build/gpu benchmarks/results``
"""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import report

COLUMNS = (
    "op",
    "shape",
    "dtype",
    "pass",
    "eager us",
    "fastparam us",
    "over eager",
    "over compile",
    "of ceiling",
    "of floor",
    "error",
    "note",
)

LEGEND = """Times are medians of rounds in which the contenders take turns, measured by CUDA events, with
several weights as input, so that the data does not fit in the caches. "over eager", "over compile" and "of
floor" (our time as a multiple of that of the floor, which is `clone()` for memory-bound ops) are medians
of the quotients within a round. "of ceiling" is the minimum time for the counted bytes at the measured
copy rate, or for the counted operations at the measured rate of a matrix product, divided by our time.
Only data that stays in a cache can exceed 100 %. The error is the largest one compared with float64,
relative to the largest entry. "-" means not measured."""


def collect(bench: dict[str, Any], phases: dict[str, Any]) -> dict[str, Any]:
    """Returns the content of <device>.json: the same families as every saved run, and the parts that only the
    report of a GPU has.
    """
    about, names = bench["about"], dict.fromkeys(row["family"] for row in bench["rows"])
    families = {
        name: {"environment": about, "rows": [row for row in bench["rows"] if row["family"] == name]}
        for name in names
    }
    kept = {key: bench[key] for key in ("ceilings", "left_out", "failed")}
    return {"device": about.get("gpu") or about["cpu"], **kept, "phases": phases, "families": families}


def document(saved: dict[str, Any], plots: list[Path]) -> str:
    """Returns the report as Markdown."""
    rates = dict(saved["ceilings"])
    copy = f"a copy moves {rates.pop('copy') / 1e12:.2f} TB/s (read + written)"
    products = ", ".join(f"{name} {rate / 1e12:.1f} TFLOP/s" for name, rate in rates.items())
    phases = [("phase", "result", "seconds", "what")]
    phases += [(name, p["status"], f"{p['seconds']:.0f}", p["detail"]) for name, p in saved["phases"].items()]
    parts = [
        f"# {saved['device']}",
        report.aligned(phases, numbers=range(2, 3)),
        f"Ceilings, measured: {copy}; matrix products {products}.",
    ]
    for family, run in saved["families"].items():
        parts += [*report.heading(family, run), report.table(run["rows"], COLUMNS)]
        parts += [
            f"![{path.stem}]({path.name})"
            for path in plots
            if path.stem.endswith(tuple(map(suffix, ops_of(run["rows"]))))
        ]
    parts += [f"Failed: {label}: {error}" for label, error in saved["failed"].items()]
    if saved["left_out"]:
        parts.append(f"Left out for lack of time or memory: {', '.join(saved['left_out'])}.")
    return "\n\n".join([*parts, LEGEND]) + "\n"


def ops_of(rows: list[report.Row]) -> list[str]:
    return list(dict.fromkeys(row["op"] for row in rows))


def suffix(op: str) -> str:
    return f"--{report.file_name(op)}"


def lines(rows: list[report.Row]) -> Iterator[tuple[str, list[tuple[int, report.Row]]]]:
    """Yields the float32 rows of an op by pass, single matrices and batches apart, over the order of a
    matrix.
    """
    found: dict[str, dict[int, report.Row]] = {}
    for row in rows:
        sizes = [int(size) for size in row["shape"].split("x")]
        if row["dtype"] == "float32" and len(sizes) >= 2 and sizes[-1] == sizes[-2]:
            of_one = found.setdefault(f"{row['pass']}, {'single' if len(sizes) == 2 else 'batch'}", {})
            of_one[sizes[-1]] = row  # among batches of one order the last one listed, which is the largest
    for label, points in found.items():
        yield label, sorted(points.items())


def plot(op: str, rows: list[report.Row], path: Path) -> None:
    """Draws the speed-up over eager and, where it is known, the fraction of the ceiling, over n."""
    ceiling = ("fraction of the measured ceiling", lambda row: row.get("of_ceiling"))
    speed = (f"{op}: times faster than eager", report.speed_up)
    report.draw_beside(path, list(lines(rows)), speed, ceiling)


def write(work: Path, folder: Path) -> list[Path]:
    """Writes the report into the folder and returns its files."""
    bench = json.loads((work / "bench.json").read_text())
    phases_file = work / "phases.json"
    saved = collect(bench, json.loads(phases_file.read_text()) if phases_file.exists() else {})
    rows = [row for run in saved["families"].values() for row in run["rows"]]
    folder.mkdir(parents=True, exist_ok=True)
    base = folder / report.file_name(saved["device"])
    by_op = {op: [row for row in rows if row["op"] == op] for op in ops_of(rows)}
    plots = {
        op: base.with_name(f"{base.name}{suffix(op)}.png") for op, mine in by_op.items() if any(lines(mine))
    }
    if importlib.util.find_spec("matplotlib") is None:
        print("no plots: matplotlib is not installed here")
        plots = {}
    texts = {
        base.with_name(f"{base.name}.json"): json.dumps(saved, indent=1) + "\n",
        base.with_name(f"{base.name}.md"): document(saved, list(plots.values())),
    }
    for path, text in texts.items():
        path.write_text(text)
    for op, path in plots.items():
        plot(op, by_op[op], path)
    return [*texts, *plots.values()]


def main(arguments: list[str]) -> int:
    work, folder = map(Path, arguments)
    for path in write(work, folder):
        print(path)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
