"""``make gpu``: builds for the GPU of this machine, tests, sanitizes, measures and reports, within eight
minutes and without a network.

    python benchmarks/gpu/gpu.py                     every phase
    python benchmarks/gpu/gpu.py test bench          only these phases

build     builds fastparam in place, for the architecture of the first visible device
test      runs the CUDA tests of every family, several files at a time
bench     measures the ceilings of the device, then runs every benchmark, the most important cases first
          (device_bench.py)
graphs    captures and replays every op, cooperative launches included (tests/cuda/test_cuda_graphs.py)
sanitize  runs memcheck, racecheck, initcheck and synccheck on every kernel (every_kernel.py), if
          compute-sanitizer is present
report    writes <device>.json, <device>.md and plots (device_report.py) to --out, by default
          benchmarks/results

It needs torch, pybind11, ninja, pytest and a CUDA toolkit, and uses hypothesis, matplotlib and
compute-sanitizer if they are present. The phases run in the order of what is worth most if the time ends, and
time for the report is reserved. A phase that fails does not stop the next one. Logs and results of the phases
are in build/gpu.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
RESULTS = ROOT / "benchmarks" / "results"
GRAPHS = ROOT / "tests" / "cuda" / "test_cuda_graphs.py"
WORK = ROOT / "build" / "gpu"
TOTAL = 470.0  # seconds
RESERVED = {
    "build": 180.0,
    "test": 90.0,
    "bench": 90.0,
    "graphs": 20.0,
    "sanitize": 70.0,
    "report": 20.0,
}  # the time that a phase can rely on
# racecheck and synccheck look at what happens inside of the blocks of a kernel, so they run only on our
# kernels. The others follow all accesses to memory.
TOOLS = {
    "memcheck": ["--report-api-errors", "no"],
    "racecheck": ["--kernel-name", "kns=fastparam"],
    "initcheck": [],
    "synccheck": ["--kernel-name", "kns=fastparam"],
}
FACTS = """
import json, torch
if torch.cuda.is_available():
    print(json.dumps([torch.cuda.get_device_name(0), "{}.{}".format(*torch.cuda.get_device_capability(0))]))
"""


@dataclass(frozen=True)
class Ended:
    """The end of a command: its status (124 if it ran out of time), its duration and its output."""

    status: int
    seconds: float
    output: str

    @property
    def last(self) -> str:
        """Its last line, which says what was done or what went wrong."""
        return (self.output.strip().splitlines() or [f"status {self.status}"])[-1]


@dataclass(frozen=True)
class Outcome:
    """The outcome of a phase: "ok", "FAILED" or "skipped", and one line about it."""

    status: str
    detail: str
    seconds: float = 0.0


def environment(**more: str) -> dict[str, str]:
    """The environment of the commands: fastparam of this tree, and the tools of this Python (ninja) and of
    the CUDA toolkit on the PATH.
    """
    homes = [
        home for home in (os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH"), "/usr/local/cuda") if home
    ]
    path = [
        str(Path(sys.executable).parent),
        os.environ.get("PATH"),
        *(str(Path(home) / "bin") for home in homes),
    ]
    joined = {"PYTHONPATH": [str(ROOT), os.environ.get("PYTHONPATH")], "PATH": path}
    return {
        **os.environ,
        **{name: os.pathsep.join(filter(None, parts)) for name, parts in joined.items()},
        "PYTHONUNBUFFERED": "1",
        **more,
    }


def run(command: Sequence[str | Path], deadline: float, **env: str) -> Ended:
    """Runs a command until the deadline, when it and all its children are terminated."""
    start = time.monotonic()
    with tempfile.TemporaryFile() as out:  # not a pipe, which a grandchild could hold open
        process = subprocess.Popen(
            list(map(str, command)),
            cwd=ROOT,
            env=environment(**env),
            stdout=out,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            status = process.wait(timeout=max(0.0, deadline - start))
        except subprocess.TimeoutExpired:
            status = 124
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        out.seek(0)
        output = out.read().decode(errors="replace")
    if status == 124:
        output += f"\nended after {time.monotonic() - start:.0f} s: no more time\n"
    return Ended(status, time.monotonic() - start, output)


def run_all(
    commands: dict[str, Sequence[str | Path]], deadline: float, together: int, **env: str
) -> dict[str, Ended]:
    """Runs named commands, several at a time."""
    with ThreadPoolExecutor(together) as pool:
        futures = {name: pool.submit(run, command, deadline, **env) for name, command in commands.items()}
        return {name: future.result() for name, future in futures.items()}


def log(phase: str, ended: dict[str, Ended]) -> None:
    """Saves the output of the commands, and prints the end of it if one failed."""
    WORK.mkdir(parents=True, exist_ok=True)
    text = "".join(
        f"==== {name}: status {e.status}, {e.seconds:.0f} s\n{e.output}\n" for name, e in ended.items()
    )
    (WORK / f"{phase}.log").write_text(text)
    for name, e in ended.items():
        if e.status not in (0, 5):
            print(
                f"---- {name}: status {e.status}; the end of {WORK / f'{phase}.log'}:",
                *e.output.splitlines()[-30:],
                sep="\n",
                flush=True,
            )


# ---- the phases: each one gets the device and its deadline, and returns its outcome ---------------------


def build(capability: str, deadline: float) -> Outcome:
    commands = {
        "setup.py": [sys.executable, "setup.py", "build_ext", "--inplace"],
        "self-check": [sys.executable, "-m", "fastparam"],
    }
    ended = {}
    for name, command in commands.items():
        ended[name] = run(command, deadline, FASTPARAM_BUILD="cuda", TORCH_CUDA_ARCH_LIST=capability)
        if ended[name].status != 0:
            break
    log("build", ended)
    failed = [f"{name}: {e.last}" for name, e in ended.items() if e.status != 0]
    return Outcome("FAILED", failed[0]) if failed else Outcome("ok", f"for compute capability {capability}")


def test_files() -> tuple[list[Path], list[Path]]:
    """Returns the files with tests that run on a device, with those that need one first, and the files that
    cannot run without hypothesis. Those of CUDA graphs have a phase of their own.
    """
    files = sorted(
        path
        for path in (ROOT / "tests").rglob("test_*.py")
        if path != GRAPHS and re.search(r"\bdevice\b|\bgpu\b", path.read_text())
    )
    lacks = importlib.util.find_spec("hypothesis") is None
    left = [
        path
        for path in files
        if lacks and re.search(r"^(from|import) (hypothesis|test_random)", path.read_text(), re.MULTILINE)
    ]
    return sorted(
        (path for path in files if path not in left), key=lambda path: not path.name.startswith("test_cuda")
    ), left


def counts(output: str) -> Counter[str]:
    """Parses the counts in pytest's last line."""
    lines = re.findall(r"^.*\d+ (?:passed|failed|skipped|error|deselected).* in .*$", output, re.MULTILINE)
    found = re.findall(r"(\d+) (passed|failed|skipped|error)", lines[-1]) if lines else []
    return Counter({word: int(number) for number, word in found})


def test(capability: str, deadline: float) -> Outcome:
    return run_tests("test", *test_files(), deadline)


def graphs(capability: str, deadline: float) -> Outcome:
    return run_tests("graphs", [GRAPHS], [], deadline)


def run_tests(phase: str, files: list[Path], left: list[Path], deadline: float) -> Outcome:
    pytest = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-rfE",
        "--no-header",
        "-p",
        "no:cacheprovider",
        "-k",
        "cuda",
    ]
    together = max(1, min(8, (os.cpu_count() or 1) // 2))
    ended = run_all({path.name: [*pytest, path] for path in files}, deadline, together, OMP_NUM_THREADS="2")
    log(phase, ended)
    by_file = {name: counts(e.output) for name, e in ended.items()}
    late = [name for name, e in ended.items() if e.status == 124]
    failed = [
        name for name, e in ended.items() if e.status not in (0, 5, 124)
    ]  # 5: no test of the file needs a GPU
    empty = [
        name
        for name, seen in by_file.items()
        if name.startswith("test_cuda") and not seen["passed"] and name not in failed + late
    ]
    total = sum(by_file.values(), Counter())
    detail = ", ".join(
        f"{total[word]} {word}"
        for word in ("passed", "failed", "error", "skipped")
        if total[word] or word == "passed"
    )
    detail += f" in {len(files)} file{'s' * (len(files) != 1)}"
    missing = [path.name for path in left]
    words = {
        "failed": failed,
        "timed out": late,
        "no test ran in": empty,
        "not run because hypothesis is missing": missing,
    }
    detail += "".join(f"; {word}: {', '.join(names)}" for word, names in words.items() if names)
    return Outcome("FAILED" if failed or late or empty else "ok", detail)


def find_sanitizer() -> str | None:
    return shutil.which("compute-sanitizer", path=environment()["PATH"])


def sanitize(capability: str, deadline: float) -> Outcome:
    sanitizer, program = find_sanitizer(), HERE / "every_kernel.py"
    commands: dict[str, Sequence[str | Path]] = {"kernels": [sys.executable, program, "--names"]}
    for tool, more in TOOLS.items() if sanitizer else ():
        commands[tool] = [
            sanitizer,
            "--tool",
            tool,
            "--error-exitcode",
            "9",
            *more,
            sys.executable,
            program,
            "--small",
        ]
    ended = run_all(
        commands, deadline, len(commands), PYTORCH_NO_CUDA_MEMORY_CACHING="1"
    )  # the end of each tensor is the end of its memory
    log("sanitize", ended)
    kernels = ended.pop("kernels")
    refused = any("Device not supported" in e.output for e in ended.values())
    verdicts = {0: "clean", 124: "timed out"}
    told = [f"{tool} {verdicts.get(e.status, 'FAILED')}" for tool, e in ended.items()]
    if refused:
        told = ["compute-sanitizer does not support this device"]
    elif not ended:
        told = ["compute-sanitizer was not found"]
    detail = "; ".join([*told, kernels.last])
    if kernels.status or (not refused and any(e.status for e in ended.values())):
        return Outcome("FAILED", detail)
    return Outcome("ok" if ended and not refused else "skipped", detail)


def bench(capability: str, deadline: float) -> Outcome:
    seconds = max(
        1.0, deadline - time.monotonic() - 20
    )  # one case, and the start, may take longer than requested
    ended = run(
        [
            sys.executable,
            HERE / "device_bench.py",
            "--seconds",
            f"{seconds:.0f}",
            "--out",
            WORK / "bench.json",
        ],
        deadline,
    )
    log("bench", {"device_bench.py": ended})
    told = [line for line in ended.output.splitlines() if "cases measured" in line] or [ended.last]
    return Outcome("FAILED" if ended.status else "ok", told[-1])


def report(capability: str, deadline: float, folder: Path = RESULTS) -> Outcome:
    ended = run([sys.executable, HERE / "device_report.py", WORK, folder], deadline)
    log("report", {"device_report.py": ended})
    if ended.status:
        return Outcome("FAILED", ended.last)
    return Outcome("ok", ", ".join(Path(line).name for line in ended.output.splitlines()))


Phase = Callable[[str, float], Outcome]
PHASES: dict[str, Phase] = {
    "build": build,
    "test": test,
    "bench": bench,
    "graphs": graphs,
    "sanitize": sanitize,
    "report": report,
}


def perform(names: Sequence[str], phases: dict[str, Phase], capability: str) -> dict[str, Outcome]:
    """Runs the phases one after the other, even if one fails. Time that a phase does not use is available to
    the next ones.
    """
    end = time.monotonic() + TOTAL
    outcomes: dict[str, Outcome] = {}
    for i, name in enumerate(names):
        start = time.monotonic()
        deadline = end - sum(RESERVED[later] for later in names[i + 1 :])
        print(f"== {name}, at most {deadline - start:.0f} s", flush=True)
        try:
            outcome = phases[name](capability, deadline)
        except Exception as error:
            outcome = Outcome("FAILED", f"{type(error).__name__}: {error}".splitlines()[0])
        outcomes[name] = Outcome(outcome.status, outcome.detail, round(time.monotonic() - start, 1))
        remember(outcomes)
    return outcomes


def remember(outcomes: dict[str, Outcome]) -> None:
    """Saves the outcomes of the phases for the report. A phase that is not run now keeps its previous
    outcome.
    """
    WORK.mkdir(parents=True, exist_ok=True)
    path = WORK / "phases.json"
    known = json.loads(path.read_text()) if path.exists() else {}
    known |= {name: asdict(outcome) for name, outcome in outcomes.items()}
    path.write_text(json.dumps({name: known[name] for name in RESERVED if name in known}, indent=1) + "\n")


def device() -> tuple[str, str] | str:
    """Returns the name and the compute capability of the first visible device, or one sentence that says why
    there is none.
    """
    if importlib.util.find_spec("torch") is None:
        return "make gpu: torch is not installed, so no GPU can be detected"
    ended = run([sys.executable, "-c", FACTS], time.monotonic() + 120)
    found = re.findall(r"^\[.*\]$", ended.output, re.MULTILINE)
    if not found:
        return "make gpu: no CUDA device is visible here, so there is nothing to build for, test or measure"
    name, capability = json.loads(found[-1])
    return name, capability


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "phases", nargs="*", metavar="phase", help=f"one or more of {', '.join(PHASES)}; all if none is given"
    )
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the report")
    options = parser.parse_args(arguments)
    unknown = [name for name in options.phases if name not in PHASES]
    if unknown:
        parser.error(f"expected phases among {', '.join(PHASES)}, got {', '.join(unknown)}")
    found = device()
    if isinstance(found, str):
        print(found, file=sys.stderr)
        return 2
    print(f"{found[0]}, compute capability {found[1]}")
    phases = PHASES | {
        "report": lambda capability, deadline: report(capability, deadline, options.out.resolve())
    }
    outcomes = perform([name for name in PHASES if name in (options.phases or PHASES)], phases, found[1])
    print()
    for name, outcome in outcomes.items():
        print(f"{name:9}{outcome.status:8}{outcome.seconds:6.0f} s  {outcome.detail}")
    print(f"{'together':17}{sum(o.seconds for o in outcomes.values()):6.0f} s")
    return int(any(outcome.status == "FAILED" for outcome in outcomes.values()))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
