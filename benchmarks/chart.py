"""The chart and the numbers of README, made from the saved results.

``python benchmarks/chart.py --write`` draws ``docs/images/speed-light.svg`` and ``speed-dark.svg``, and fills
the part of README between its "headline" marks. ``--check`` fails if any of them shows other numbers than the
results. The SVG is written by hand, so that the same results give the same bytes everywhere.
"""

from __future__ import annotations

import json
import math
import re
import sys
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from html import escape

from report import NO_GPU, RESULTS, ROOT, Row, on_gpu

README = ROOT.parent / "README.md"
IMAGES = ROOT.parent / "docs" / "images"
MARKS = re.compile(r"(<!-- headline -->\n).*?(<!-- end of headline -->)", re.DOTALL)
DEVICE = "amd-epyc-avx512-1-thread"  # the device whose results are drawn
PASS = "forward+backward"


@dataclass(frozen=True)
class Panel:
    """A row of the results, and the contenders with the names that are familiar to a reader."""

    title: str
    family: str
    op: str
    shape: str
    names: dict[str, str]

    def row(self, saved: Row) -> Row:
        wanted = {"op": self.op, "shape": self.shape, "dtype": "float32", "pass": PASS}
        rows = saved["families"][self.family]["rows"]
        (found,) = (row for row in rows if wanted.items() <= row.items())
        return dict(found)


OURS = "fastparam"
PANELS = (
    Panel(
        "448 OFT blocks, 32 x 32",
        "cayley",
        "skew_cayley_packed",
        "448x32x32",
        {OURS: OURS, "PEFT Neumann-5": "PEFT, inexact", "PEFT exact": "PEFT, exact", "eager": "the tutorial"},
    ),
    Panel(
        "Orthogonal by Cayley, 256 x 256",
        "cayley",
        "skew_cayley",
        "256x256",
        {OURS: OURS, "eager": "the tutorial", "torch orthogonal": "torch", "geotorch": "geotorch"},
    ),
    Panel(
        "Orthogonal by Cayley, 1024 x 64",
        "cayley",
        "stiefel_cayley",
        "1024x64",
        {OURS: OURS, "eager": "torch", "geotorch": "geotorch"},
    ),
    Panel(
        "Orthogonal by the exponential, 256 x 256",
        "exponential",
        "skew_exp",
        "256x256",
        {OURS: OURS, "geotorch": "geotorch", "eager": "the tutorial"},
    ),
    Panel(
        "Householder reflections, 1024 x 64",
        "householder",
        "householder",
        "1024x64",
        {OURS: OURS, "eager": "torch"},
    ),
    Panel(
        "Symmetric, 1024 x 1024",
        "triangular",
        "symmetric",
        "1024x1024",
        {OURS: OURS, "compile": "torch.compile", "eager": "the tutorial"},
    ),
)

# The panel, the contender, and the words around the numbers.
HEADLINE = (
    (0, "PEFT exact", "PEFT's exact OFT rotations (448 blocks of 32 x 32)"),
    (2, "eager", "torch's `orthogonal` by Cayley (a weight of 1024 x 64)"),
    (3, "eager", "`torch.matrix_exp` of a skew matrix (256 x 256, norm 1)"),
)


def saved() -> Row:
    found: Row = json.loads((RESULTS / f"{DEVICE}.json").read_text())
    return found


def machine(results: Row) -> str:
    about = [run["environment"] for run in results["families"].values()]
    versions = " and ".join(sorted({run["torch"].split("+")[0] for run in about}))
    first, last = min(run["date"] for run in about), max(run["date"] for run in about)
    name = re.sub(r" (\w+) (\d+ threads?)$", r", \1, \2", results["device"])
    dates = first if first == last else f"{first} to {last}"
    return f"{name}, torch {versions}, float32, forward and backward, {dates}"


# ---- the numbers -----------------------------------------------------------------------------------------


def headline(results: Row) -> str:
    lines = []
    for panel, name, words in HEADLINE:
        row = PANELS[panel].row(results)
        ours, theirs = (row["us"][who] / 1e3 for who in (OURS, name))
        # ~ is a space without a line break
        times, both = row["over"][name], f"{ours:.2g}~ms instead of {theirs:.3g}~ms"
        line = f"- **{times:.0f} times** as fast as {words}: {both}."
        wrapped = textwrap.wrap(line, 110, subsequent_indent="  ", break_on_hyphens=False)
        lines += [part.replace("~", " ") for part in wrapped]
    gpu = [] if any(map(on_gpu, RESULTS.glob("*.json"))) else [NO_GPU.rstrip()]
    where = f"Machine: {machine(results)}."
    return "\n".join([*lines, "", where, *gpu, ""])


def filled(text: str, results: Row) -> str:
    return MARKS.sub(lambda marks: f"{marks[1]}{headline(results)}{marks[2]}", text)


# ---- the chart -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Theme:
    ink: str
    faint: str
    grid: str
    ours: str
    theirs: str


THEMES = {
    "light": Theme("#1f2328", "#59636e", "#d1d9e0", "#c4320a", "#8c959f"),
    "dark": Theme("#f0f6fc", "#9198a1", "#3d444d", "#ff8a5c", "#8b949e"),
}
WIDTH, MARGIN, GAP = 880, 12, 36
COLUMN = (WIDTH - 2 * MARGIN - GAP) / 2
NAMES, VALUES = 100, 112  # the space for the name on the left of a line, and for the number on its right
LINE, TITLE, SPACE, AXIS = 19, 24, 16, 34
LOW, HIGH = 0.1, 300.0  # milliseconds at the ends of the axis
TICKS = (0.1, 1.0, 10.0, 100.0)


def place(ms: float) -> float:
    """Returns the position of a time on the axis of a column."""
    return NAMES + math.log(ms / LOW) / math.log(HIGH / LOW) * (COLUMN - NAMES - VALUES)


def number(ms: float) -> str:
    return f"{ms:.2f} ms" if ms < 1 else f"{ms:.1f} ms" if ms < 100 else f"{ms:.0f} ms"


def text(
    x: float, y: float, words: str, fill: str, size: int = 12, anchor: str = "start", bold: bool = False
) -> str:
    weight = ' font-weight="600"' * bold
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" fill="{fill}" font-size="{size}" text-anchor="{anchor}"{weight}>'
        f"{escape(words)}</text>"
    )


def lines_of(panel: Panel, row: Row, theme: Theme) -> Iterator[str]:
    """Draws a panel from its upper left corner."""
    height = LINE * len(panel.names)
    for x in map(place, TICKS):
        yield f'<path d="M{x:.1f} {TITLE}V{TITLE + height}" stroke="{theme.grid}"/>'
    yield text(0, TITLE - 10, panel.title, theme.ink, 13, bold=True)
    for i, (key, name) in enumerate(panel.names.items()):
        ms, y, ours = row["us"][key] / 1e3, TITLE + LINE * (i + 0.5), key == OURS
        ink, dot = (theme.ours, theme.ours) if ours else (theme.faint, theme.theirs)
        x = place(ms)
        times = "" if ours else f", {row['over'][key]:.1f}x"
        yield text(NAMES - 8, y + 4, name, ink, anchor="end", bold=ours)
        yield f'<path d="M{NAMES} {y:.1f}H{x:.1f}" stroke="{dot}" stroke-width="{3 if ours else 2}"/>'
        yield f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{5.5 if ours else 4.5}" fill="{dot}"/>'
        yield text(x + 10, y + 4, number(ms) + times, ink, bold=ours)


def axis(theme: Theme) -> Iterator[str]:
    for tick in TICKS:
        yield text(place(tick), 14, f"{tick:g} ms", theme.faint, 11, anchor="middle")


def chart(results: Row, theme: Theme) -> str:
    rows = [PANELS[i : i + 2] for i in range(0, len(PANELS), 2)]
    heights = [TITLE + LINE * max(len(panel.names) for panel in pair) + SPACE for pair in rows]
    total = sum(heights) + AXIS + 2 * MARGIN
    described = "; ".join(
        f"{panel.title}: "
        + ", ".join(
            f"{name} {number(panel.row(results)['us'][key] / 1e3)}" for key, name in panel.names.items()
        )
        for panel in PANELS
    )
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{total}" '
        f'viewBox="0 0 {WIDTH} {total}" role="img" '
        'font-family="system-ui, -apple-system, Segoe UI, Helvetica, Arial, sans-serif" fill="none">',
        "<title>Milliseconds of one forward and backward pass, on a logarithmic scale</title>",
        f"<desc>{escape(described)}</desc>",
    ]
    top = float(MARGIN)
    lefts = (MARGIN, MARGIN + COLUMN + GAP)
    for pair, height in zip(rows, heights, strict=True):
        for left, panel in zip(lefts, pair, strict=True):
            inside = "".join(lines_of(panel, panel.row(results), theme))
            parts.append(f'<g transform="translate({left:.1f} {top:.1f})">{inside}</g>')
        top += height
    parts += [
        f'<g transform="translate({left:.1f} {top - SPACE:.1f})">{"".join(axis(theme))}</g>' for left in lefts
    ]
    parts.append(text(WIDTH / 2, total - MARGIN + 2, machine(results), theme.faint, 11, anchor="middle"))
    return "\n".join([*parts, "</svg>", ""])


# ---- both ------------------------------------------------------------------------------------------------


def main(arguments: list[str]) -> int:
    results = saved()
    made = {IMAGES / f"speed-{name}.svg": chart(results, theme) for name, theme in THEMES.items()}
    made[README] = filled(README.read_text(), results)
    if arguments == ["--write"]:
        for path, content in made.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(content)
        return 0
    stale = [str(path) for path, content in made.items() if not path.exists() or path.read_text() != content]
    if stale:
        print(
            f"other numbers than the saved results: {', '.join(stale)}; python benchmarks/chart.py --write",
            file=sys.stderr,
        )
    return int(bool(stale))


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
