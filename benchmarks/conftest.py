"""``pytest benchmarks`` runs every race and ends with one table.

All contenders of a case are timed together when the first of them is run. The rounds of each one are then
passed to pytest-benchmark by a timer that plays them back. So its files contain rounds that were measured
side by side, and ``pytest-benchmark compare`` works.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
import report
from measure import DEVICES, Case, Result, Settings, race


class Playback:
    """A timer whose successive pairs of readings are as far apart as the given rounds were long."""

    def __init__(self) -> None:
        self._readings: Iterator[float] = iter(())

    def load(self, rounds: Iterable[float]) -> None:
        self._readings = (reading for seconds in rounds for reading in (0.0, seconds))

    def __call__(self) -> float:
        return next(self._readings)


PLAYBACK = Playback()


class Races:
    """The races of a session. Each one is run once, when it is first requested, and becomes a row."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.rows: list[report.Row] = []
        self.timed = False
        self._last: tuple[Case, dict[str, Result]] | None = None

    def results(self, family: str, case: Case, timed: bool) -> dict[str, Result]:
        if self._last is None or self._last[0] != case:
            self._last = (case, race(case, self.settings, timed))
            if timed:
                self.rows.append(report.make_row(family, case, self._last[1]))
        return self._last[1]


RACES = pytest.StashKey[Races]()


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("fastparam benchmarks")
    group.addoption("--quick", action="store_true", help="a few representative cases, without torch.compile")
    group.addoption("--device", choices=DEVICES, default=None, help="one device only")
    group.addoption(
        "--no-compile", action="store_true", help="leave torch.compile out, which takes seconds per case"
    )
    group.addoption(
        "--budget", type=float, default=None, metavar="SECONDS", help="time to spend on the rounds of a case"
    )
    group.addoption(
        "--input-sets", type=int, default=None, metavar="N", help="weights that take turns as input"
    )
    group.addoption(
        "--plot", type=Path, default=None, metavar="FILE", help="draw speed-up and floor over n into a PNG"
    )
    group.addoption(
        "--save-results",
        nargs="?",
        type=Path,
        const=report.RESULTS,
        default=None,
        metavar="DIR",
        help="write <device>.json and <device>.md, which the documentation quotes (benchmarks/results)",
    )


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    option = config.option
    partial = (
        option.quick
        or option.no_compile
        or option.keyword
        or option.benchmark_disable
        or any("::" in arg for arg in config.args)
    )
    if option.save_results and partial:
        raise pytest.UsageError(
            "--save-results keeps whole runs: not with --quick, --no-compile, -k, '::' or --benchmark-disable"
        )
    if not option.benchmark_compare:
        option.benchmark_quiet = True  # our table replaces that of pytest-benchmark
    budget = option.budget or (0.25 if option.quick else Settings.budget)
    config.stash[RACES] = Races(
        Settings(budget, option.input_sets, compile=not (option.quick or option.no_compile))
    )


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Groups the contenders of a case for pytest-benchmark, and keeps only those that the options select."""
    kept, dropped = [], []
    for item in items:
        params = getattr(getattr(item, "callspec", None), "params", {})
        case = params.get("case")
        if case is None:
            kept.append(item)
            continue
        item.add_marker(pytest.mark.benchmark(group=str(case), timer=PLAYBACK))
        unwanted = config.option.quick and not case.quick
        unwanted |= config.option.device not in (None, case.device)
        unwanted |= params["contender"] == "compile" and not config.stash[RACES].settings.compile
        (dropped if unwanted else kept).append(item)
    if dropped:
        config.hook.pytest_deselected(items=dropped)
        items[:] = kept


@pytest.fixture
def compete(benchmark: Any, request: pytest.FixtureRequest) -> Callable[[Case, str], None]:
    """Returns the function that a benchmark calls with its case and its contender."""

    def run(case: Case, contender: str) -> None:
        family = request.path.stem.removeprefix("bench_")
        result = request.config.stash[RACES].results(family, case, timed=benchmark.enabled)[contender]
        if result.failure:
            benchmark.skipped = True
            pytest.skip(result.failure)
        benchmark.extra_info.update(case.labels, contender=contender, peak_bytes=result.peak)
        if contender != "floor":
            benchmark.extra_info["error"] = result.error
        PLAYBACK.load(seconds * result.calls for seconds in result.seconds)
        benchmark.pedantic(lambda: None, rounds=max(1, len(result.seconds)), iterations=result.calls)

    return run


def pytest_benchmark_update_machine_info(machine_info: dict[str, Any]) -> None:
    machine_info["fastparam"] = report.environment()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    rows = config.stash[RACES].rows
    if not rows:
        return
    terminalreporter.section("side by side")
    terminalreporter.write_line(f"{report.markdown(rows)}\n\n{report.LEGEND}")
    if count := sum(map(report.disturbed, rows)):
        terminalreporter.write_line(
            f"{count} of {len(rows)} rows were disturbed: measure again on a quiet machine", yellow=True
        )
    if config.option.plot:
        report.plot(rows, config.option.plot)
        terminalreporter.write_line(f"plot: {config.option.plot}")
    if config.option.save_results:
        for path in report.save(rows, config.option.save_results):
            terminalreporter.write_line(f"saved: {path}")
