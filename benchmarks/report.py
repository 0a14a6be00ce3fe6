"""The report of a run: one row per case, as a Markdown table, one JSON file per device, and a plot.

``python benchmarks/report.py benchmarks/results/*.json`` prints the tables of saved runs. Numbers in the
documentation come only from those files: ``--write FILE`` fills the part of a document between its "results"
marks with them, and ``--check FILE`` fails if it differs.
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
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from measure import Case, Result

Row = dict[str, Any]

ROOT = Path(__file__).resolve().parent
RESULTS = ROOT / "results"
FLOOR = 1.3  # a row above this many floors is marked
NOISE = 2.0  # so is a row whose median round took this many times its shortest round
SHARE = 0.9  # and a row whose thread did not have a core to itself, because something else was running

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
    """Returns the row of a case. Ratios are medians over rounds of the quotients of neighbours, in which
    drift of the machine cancels.
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
    """Returns whether something else ran on the machine during the measurement, so that the row proves
    nothing.
    """
    return bool(row["noise"] > NOISE or row["share"] < SHARE)


def notes(row: Row) -> str:
    """Returns the remarks on a row: where we are slower, and values that have no column of their own."""
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


def ratio(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}x"


def memory_of_eager(row: Row) -> float | None:
    peak = row["peak_bytes"]
    return peak["fastparam"] / peak["eager"] if peak["eager"] else None


# The text of a row in each column. Columns that are not listed here are labels of the row.
CELLS: dict[str, Callable[[Row], str]] = {
    "eager us": lambda row: f"{row['us']['eager']:.1f}",
    "fastparam us": lambda row: f"{row['us']['fastparam']:.1f}",
    "over eager": lambda row: ratio(row["over"].get("eager")),
    "over compile": lambda row: ratio(row["over"].get("compile")),
    "of ceiling": lambda row: f"{row['of_ceiling']:.0%}" if "of_ceiling" in row else "-",
    "of floor": lambda row: ratio(row["of_floor"]),
    "memory of eager": lambda row: ratio(memory_of_eager(row)),
    "peak bytes": lambda row: str(row["peak_bytes"]["fastparam"]),
    "error": lambda row: f"{row['error']:.0e}" if row["error"] else "0",
    "note": notes,
}


def table(rows: Iterable[Row], columns: tuple[str, ...] = COLUMNS) -> str:
    """Returns the table of all rows: labels first, then numbers, and notes last."""
    labels = sum(column not in CELLS for column in columns)
    lines = (tuple(CELLS[c](row) if c in CELLS else row[c] for c in columns) for row in rows)
    return aligned([columns, *lines], range(labels, len(columns) - 1))


def contenders(row: Row) -> Iterator[tuple[str, ...]]:
    """Yields the cells of all contenders of a row, in the order of CONTENDERS."""
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
    """Returns the table of all rows and, below it, the table of all contenders for the rows whose results
    should be orthogonal.
    """
    rows = list(rows)
    tables = [table(rows)]
    if detailed := [row for row in rows if row.get("defects")]:
        tables.append(
            aligned(
                [CONTENDERS, *(line for row in detailed for line in contenders(row))],
                range(6, len(CONTENDERS)),
            )
        )
    return "\n\n".join(tables)


def aligned(table: list[tuple[str, ...]], numbers: range) -> str:
    """Returns a Markdown table with aligned columns, which reads the same in a terminal and in a document."""
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
    """Returns the parts of the environment that a number depends on."""
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
    """Returns the commit that is measured. A copy without history gets it from FASTPARAM_COMMIT."""
    found = _output("git", "rev-parse", "--short", "HEAD") + (
        "+changes" if _output("git", "status", "--porcelain", "--", ":/", ":(exclude)results") else ""
    )
    return found or os.environ.get("FASTPARAM_COMMIT") or "unknown"


def about() -> dict[str, Any]:
    """Returns the description that is saved with every number."""
    return {"date": time.strftime("%Y-%m-%d", time.gmtime()), "commit": commit(), **environment()}


def file_name(device: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", device.lower()).strip("-")


def save(rows: list[Row], folder: Path = RESULTS) -> list[Path]:
    """Writes ``<device>.json`` and ``<device>.md`` for every device of the run. Families that were not run
    keep their previous results.
    """
    now = about()
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for device in sorted({row["device"] for row in rows}):
        threads = f"{now['threads']} thread{'s' * (now['threads'] != 1)}"
        name = now["gpu"] if device == "cuda" else f"{now['cpu']} {now['capability']} {threads}"
        path = folder / f"{file_name(name)}.json"
        saved = json.loads(path.read_text()) if path.exists() else {"device": name, "families": {}}
        for family in dict.fromkeys(row["family"] for row in rows if row["device"] == device):
            mine = [row for row in rows if (row["family"], row["device"]) == (family, device)]
            saved["families"][family] = {"environment": now, "rows": mine}
        path.write_text(json.dumps(saved, indent=1) + "\n")
        path.with_suffix(".md").write_text(document(saved))
        written += [path, path.with_suffix(".md")]
    return written


def heading(family: str, run: dict[str, Any]) -> list[str]:
    """Returns the lines above the rows of a family: its name, and the conditions of the measurement."""
    return [f"## {family}", ", ".join(f"{key} {value}" for key, value in run["environment"].items())]


def document(saved: dict[str, Any]) -> str:
    """Returns the families of a saved device as Markdown."""
    parts = [f"# {saved['device']}"]
    for family, run in saved["families"].items():
        parts += [*heading(family, run), markdown(run["rows"])]
    return "\n\n".join([*parts, LEGEND])


Points = list[tuple[int, Row]]


def over_n(
    title: str, lines: Iterable[tuple[str, Points]], value: Callable[[Row], float | None], axes: Any
) -> None:
    """Draws a value of the rows of each line over the order of the matrix, and a line at 1."""
    drawn = False
    for label, points in lines:
        known = [(n, y) for n, row in points if (y := value(row)) is not None]
        style = "--" if "backward" in label else "-"
        axes.plot([n for n, _ in known], [y for _, y in known], style, marker="o", label=label)
        drawn |= bool(known)
    axes.axhline(1, color="black", linewidth=0.8)
    axes.set_title(title if drawn else f"{title}: not counted")
    if drawn:
        axes.set_xscale("log", base=2)
        axes.set(xlabel="n", ylim=(0, None))
        axes.xaxis.set_major_formatter("{x:g}")


def draw_beside(
    path: Path, lines: list[tuple[str, Points]], *drawings: tuple[str, Callable[[Row], float | None]]
) -> None:
    """Draws several values over n side by side into a PNG."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, every = plt.subplots(1, len(drawings), figsize=(12, 4.5), layout="constrained")
    for axes, (title, value) in zip(every, drawings, strict=True):
        over_n(title, lines, value, axes)
    every[0].legend(fontsize="small")
    figure.savefig(path, dpi=100)
    plt.close(figure)


def speed_up(row: Row) -> float:
    return float(row["over"]["eager"])


def plot(rows: list[Row], path: Path) -> None:
    """Draws speed-up over eager and the multiple of the floor over n, for single square float32 matrices."""
    lines: dict[str, Points] = {}
    for row in rows:
        sizes = row["shape"].split("x")
        is_square = len(sizes) == 2 and sizes[0] == sizes[1]
        is_layer = row["op"].startswith("layer.")
        if is_square and row["dtype"] == "float32" and row["of_floor"] is not None and not is_layer:
            label = f"{row['op']}, {row['device']}, {row['pass']}"
            lines.setdefault(label, []).append((int(sizes[-1]), row))
    by_order = [(label, sorted(points, key=lambda point: point[0])) for label, points in lines.items()]
    floor = ("time over the floor's", lambda row: row["of_floor"])
    draw_beside(path, by_order, ("times faster than eager", speed_up), floor)


MARKS = re.compile(r"(<!-- results -->\n).*?(<!-- end of results -->)", re.DOTALL)
HIGHLIGHTS = (
    "1024x1024",
    "8x512x512",
    "512x512x3x3",
    "8x8",
    "256x32x32",
    "64x32x32",
    "1024x8x8",
    "1024x64",
    "900x48",
)


def highlights(path: Path) -> str:
    """Returns the rows of a saved run that the documentation quotes, and its conditions."""
    saved = json.loads(path.read_text())
    lines = []
    for family, run in saved["families"].items():
        about = run["environment"]
        rows = f"[all rows](../benchmarks/results/{path.stem}.md)"
        lines += [f"### {family} on {saved['device']}", ""]
        lines += [f"{saved['device']}, torch {about['torch']}, {about['date']} ({rows}):", ""]
        lines += [
            "| op | shape | pass | eager us | fastparam us | speedup | vs. floor |",
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
    """Returns whether a saved run is from a GPU."""
    families = json.loads(path.read_text())["families"].values()
    return any(row["device"] == "cuda" for run in families for row in run["rows"])


def filled(text: str) -> str:
    """Returns a document in which the part between the marks is replaced by the tables of the saved runs."""
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
