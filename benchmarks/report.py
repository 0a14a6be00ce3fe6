"""The report of a run: one row a case, as a Markdown table, a JSON file a device, and a plot.

``python benchmarks/report.py benchmarks/results/*.json`` prints the tables of saved runs. Numbers in the
documentation come from those files only: ``--write FILE`` fills the part of a document between its "results"
marks from them, ``--check FILE`` fails if it differs.
"""

from __future__ import annotations

import json
import math
import os
import platform
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from measure import Case, Result

Row = dict[str, Any]

ROOT = Path(__file__).resolve().parent
RESULTS = ROOT / "results"
FLOOR = 1.3  # a row above this many floors is marked
NOISE = 2.0  # so is one whose median round took this many times its quickest,
SHARE = 0.9  # and one whose thread did not have a core to itself: something else was running

COLUMNS = (
    "op",
    "shape",
    "dtype",
    "device",
    "pass",
    "eager us",
    "fastparam us",
    "over eager",
    "over compile",
    "of floor",
    "memory of eager",
    "peak bytes",
    "error",
    "note",
)

CONTENDERS = (*COLUMNS[:5], "contender", "us", "of fastparam", "peak bytes", "error", "orthogonality")

LEGEND = f"""Times are medians of rounds in which the contenders take turns; "over eager", "over compile" and
"of floor" (our time as a multiple of the floor's) are medians of the quotients within a round. Peak bytes
count the result and everything allocated on the way to it, not what is there before: a weight, or its mask,
which takes 4 bytes per entry in float32, 1 as bool, 1/8 packed. The error is the largest one against float64,
relative to the largest entry: of the result, or of the gradient. Bold: here we lose, or take more than
{FLOOR} floors. "disturbed (a, b)": a median round took a times the quickest, or the thread had only the part
b of a core; measure again. Orthogonality is the largest entry of |Q^T Q - I|; beside it, the error is judged
in each contender's own convention of the map.
"""


def make_row(family: str, case: Case, results: dict[str, Result]) -> Row:
    """Returns a case's row. Ratios are medians over rounds of neighbours' quotients, which drift of the
    machine cancels in.
    """
    ours, eager = results["fastparam"], results["eager"]
    timed = {name: result for name, result in results.items() if result.seconds}

    def quotient(name: str) -> float:
        return statistics.median(
            theirs / mine for theirs, mine in zip(timed[name].seconds, ours.seconds, strict=True)
        )

    floor = timed.get("floor")
    return {
        "family": family,
        **case.labels,
        "us": {name: 1e6 * statistics.median(result.seconds) for name, result in timed.items()},
        "over": {name: quotient(name) for name in timed if name not in ("fastparam", "floor")},
        "of_floor": 1 / quotient("floor") if floor else None,
        "beyond_floor_us": 1e6
        * statistics.median(a - b for a, b in zip(ours.seconds, floor.seconds, strict=True))
        if floor
        else None,
        "peak_bytes": {name: result.peak for name, result in timed.items()},
        "error": ours.error,
        "eager_error": eager.error,
        "errors": {name: result.error for name, result in timed.items() if name != "floor"},
        "defects": {name: result.defect for name, result in timed.items() if not math.isnan(result.defect)},
        "failures": {name: result.failure for name, result in results.items() if result.failure},
        "rounds": len(ours.seconds),
        "share": ours.share,
        "noise": max(statistics.median(result.seconds) / min(result.seconds) for result in timed.values()),
    }


def disturbed(row: Row) -> bool:
    """Says whether something else ran on the machine meanwhile, so that the row proves nothing."""
    return bool(row["noise"] > NOISE or row["share"] < SHARE)


def notes(row: Row) -> str:
    """Says where we lose, and what the fixed columns have no room for."""
    found = [
        f"{ratio:.2f}x {name}" for name, ratio in row["over"].items() if name not in ("eager", "compile")
    ]
    found += [f"**slower than {name}**" for name, ratio in row["over"].items() if ratio < 1]
    if row["op"].startswith("layer."):
        found.append(f"{row['beyond_floor_us']:+.1f} us over the identity")
    elif row["of_floor"] is not None and row["of_floor"] > FLOOR:
        found.append(f"**> {FLOOR} floor**")
    found += [f"{name} absent" for name, failure in row.get("failures", {}).items() if failure == "absent"]
    if disturbed(row):
        found.append(f"disturbed ({row['noise']:.1f}, {row['share']:.0%})")
    return ", ".join(found)


def cells(row: Row) -> tuple[str, ...]:
    """Returns a row's cells, in the order of COLUMNS."""

    def ratio(value: float | None) -> str:
        return "-" if value is None else f"{value:.2f}x"

    peak = row["peak_bytes"]
    return (
        *(row[key] for key in COLUMNS[:5]),
        f"{row['us']['eager']:.1f}",
        f"{row['us']['fastparam']:.1f}",
        ratio(row["over"].get("eager")),
        ratio(row["over"].get("compile")),
        ratio(row["of_floor"]),
        ratio(peak["fastparam"] / peak["eager"] if peak["eager"] else None),
        str(peak["fastparam"]),
        f"{row['error']:.0e}" if row["error"] else "0",
        notes(row),
    )


def contenders(row: Row) -> Iterator[tuple[str, ...]]:
    """Yields the cells of all that took part in a row, in the order of CONTENDERS."""
    labels = tuple(row[key] for key in COLUMNS[:5])
    times = {"fastparam": 1.0, "floor": 1 / row["of_floor"], **row["over"]}
    for name, us in row["us"].items():
        error, defect = (
            f"{row[key][name]:.0e}" if name in row[key] else "-" for key in ("errors", "defects")
        )
        yield (*labels, name, f"{us:.1f}", f"{times[name]:.2f}x", str(row["peak_bytes"][name]), error, defect)
    for name, failure in row["failures"].items():
        yield (*labels, name, failure, "-", "-", "-", "-")


def markdown(rows: Iterable[Row]) -> str:
    """Returns the table of all rows, and below it that of all contenders of those whose results should be
    orthogonal.
    """
    rows = list(rows)
    tables = [aligned([COLUMNS, *map(cells, rows)], range(5, len(COLUMNS) - 1))]
    if detailed := [row for row in rows if row.get("defects")]:
        tables.append(
            aligned(
                [CONTENDERS, *(line for row in detailed for line in contenders(row))],
                range(6, len(CONTENDERS)),
            )
        )
    return "\n\n".join(tables)


def aligned(table: list[tuple[str, ...]], numbers: range) -> str:
    """Returns a Markdown table whose columns are aligned, so that it reads the same in a terminal and in a
    document.
    """
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]

    def line(row: tuple[str, ...]) -> str:
        padded = (
            cell.rjust(width) if i in numbers else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        return f"| {' | '.join(padded)} |"

    rule = "|".join("-" * (width + 1) + (":" if i in numbers else "-") for i, width in enumerate(widths))
    return "\n".join([line(table[0]), f"|{rule}|", *map(line, table[1:])])


def _output(*command: str) -> str:
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""


def cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    match = re.search(r"^model name\s*:\s*(.+)$", info.read_text(), re.MULTILINE) if info.exists() else None
    return match[1] if match else platform.processor() or platform.machine()


def environment() -> dict[str, Any]:
    """Returns what a number depends on."""
    found: dict[str, Any] = {
        "torch": torch.__version__,
        "python": platform.python_version(),
        "cpu": cpu_name(),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
    }
    if torch.cuda.is_available():
        driver = _output("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader").partition("\n")[
            0
        ]
        found |= {"gpu": torch.cuda.get_device_name(0), "cuda": torch.version.cuda, "driver": driver}
    return found


def commit() -> str:
    """Returns the commit that is measured, which a copy without its history is told by FASTPARAM_COMMIT."""
    found = _output("git", "rev-parse", "--short", "HEAD") + (
        "+changes" if _output("git", "status", "--porcelain") else ""
    )
    return found or os.environ.get("FASTPARAM_COMMIT") or "unknown"


def about() -> dict[str, Any]:
    """Returns what stands beside every saved number."""
    return {"date": time.strftime("%Y-%m-%d", time.gmtime()), "commit": commit(), **environment()}


def file_name(device: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", device.lower()).strip("-")


def save(rows: list[Row], folder: Path = RESULTS) -> list[Path]:
    """Writes ``<device>.json`` and ``<device>.md`` for every device of the run; families not run keep what
    they had.
    """
    now = about()
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for device in sorted({row["device"] for row in rows}):
        name = now["gpu"] if device == "cuda" else f"{now['cpu']} {now['threads']} threads"
        path = folder / f"{file_name(name)}.json"
        saved = json.loads(path.read_text()) if path.exists() else {"device": name, "families": {}}
        for family in dict.fromkeys(row["family"] for row in rows if row["device"] == device):
            mine = [row for row in rows if (row["family"], row["device"]) == (family, device)]
            saved["families"][family] = {"environment": now, "rows": mine}
        path.write_text(json.dumps(saved, indent=1) + "\n")
        path.with_suffix(".md").write_text(document(saved))
        written += [path, path.with_suffix(".md")]
    return written


def document(saved: dict[str, Any]) -> str:
    """Returns a saved device's families as Markdown, each under what it was measured with."""
    parts = [f"# {saved['device']}"]
    for family, run in saved["families"].items():
        about = ", ".join(f"{key} {value}" for key, value in run["environment"].items())
        parts += [f"## {family}", about, markdown(run["rows"])]
    return "\n\n".join([*parts, LEGEND])


def plot(rows: list[Row], path: Path) -> None:
    """Draws speed-up over eager and the multiple of the floor over n, for single square float32 matrices."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, (speed, floor) = plt.subplots(1, 2, figsize=(12, 4.5), layout="constrained")
    lines: dict[tuple[str, str, str], list[tuple[int, Row]]] = {}
    for row in rows:
        sizes = row["shape"].split("x")
        square = len(sizes) == 2 and sizes[0] == sizes[1]
        if (
            square
            and row["dtype"] == "float32"
            and row["of_floor"] is not None
            and not row["op"].startswith("layer.")
        ):
            lines.setdefault((row["op"], row["device"], row["pass"]), []).append((int(sizes[-1]), row))
    for label, points in lines.items():
        points.sort(key=lambda point: point[0])
        n = [size for size, _ in points]
        style = {
            "marker": "o",
            "linestyle": "-" if label[2] == "forward" else "--",
            "label": ", ".join(label),
        }
        speed.plot(n, [row["over"]["eager"] for _, row in points], **style)
        floor.plot(n, [row["of_floor"] for _, row in points], **style)
    for axes, title in ((speed, "times faster than eager"), (floor, "time over the floor's")):
        axes.axhline(1, color="black", linewidth=0.8)
        axes.set_xscale("log", base=2)
        axes.set(xlabel="n", ylim=(0, None), title=title)
        axes.xaxis.set_major_formatter("{x:g}")
    speed.legend(fontsize="small")
    figure.savefig(path, dpi=120)


MARKS = re.compile(r"(<!-- results -->\n).*?(<!-- end of results -->)", re.DOTALL)
HIGHLIGHTS = ("1024x1024", "8x512x512", "512x512x3x3", "8x8", "256x32x32", "1024x64")


def highlights(path: Path) -> str:
    """Returns the rows of a saved run that the documentation quotes, and what they were measured with."""
    saved = json.loads(path.read_text())
    lines = []
    for run in saved["families"].values():
        about = run["environment"]
        rows = f"[all rows](benchmarks/results/{path.stem}.md)"
        lines += [f"{saved['device']}, torch {about['torch']}, {about['date']} ({rows}):", ""]
        lines += [
            "| op | shape | pass | eager us | fastparam us | times eager | times the floor |",
            "|---|---|---|--:|--:|--:|--:|",
        ]
        for row in run["rows"]:
            if (
                row["shape"] in HIGHLIGHTS
                and row["dtype"] == "float32"
                and not row["op"].startswith("layer.")
            ):
                us, over = row["us"], row["over"]["eager"]
                cells = (
                    row["op"],
                    row["shape"],
                    row["pass"],
                    f"{us['eager']:.0f}",
                    f"{us['fastparam']:.1f}",
                    f"{over:.1f}",
                    f"{row['of_floor']:.2f}",
                )
                lines.append(f"| {' | '.join(cells)} |")
        lines.append("")
    return "\n".join(lines)


NO_GPU = "There are no GPU numbers yet: the CUDA kernels have not been measured on hardware.\n"


def on_gpu(path: Path) -> bool:
    """Says whether a saved run is a GPU's."""
    families = json.loads(path.read_text())["families"].values()
    return any(row["device"] == "cuda" for run in families for row in run["rows"])


def filled(text: str) -> str:
    """Returns a document with its part between the marks made anew from the saved runs."""
    paths = sorted(RESULTS.glob("*.json"))
    parts = [highlights(path) for path in paths] + ([] if any(map(on_gpu, paths)) else [NO_GPU])
    body = "\n".join(parts)
    return MARKS.sub(lambda marks: f"{marks[1]}{body}{marks[2]}", text)


def main(arguments: list[str]) -> int:
    if arguments[0] not in ("--write", "--check"):
        print("\n".join(document(json.loads(Path(name).read_text())) for name in arguments), end="")
        return 0
    path = Path(arguments[1])
    text = path.read_text()
    if arguments[0] == "--write":
        path.write_text(filled(text))
    elif text != filled(text):
        print(
            f"{path} shows other numbers than the saved results: python benchmarks/report.py --write {path}",
            file=sys.stderr,
        )
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
