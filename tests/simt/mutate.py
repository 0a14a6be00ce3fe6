"""Changes the device headers one token at a time and lists the changes that no test detects.

    python tests/simt/mutate.py [cayley/cuda/warp.cuh ...] [--limit N]

It takes two minutes per hundred changes, with MAX_JOBS at a time (by default one per core). It deletes
barriers, shifts and flips comparisons, and changes small numbers. Changes that the plain program does not
detect run again under the address and undefined-behaviour sanitizers. A change that survives is equivalent,
or shows a gap in the tests. README.md lists the known ones.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
SOURCES = ROOT / "csrc"
# headers without a test program of their own
BY_OTHERS = {
    "cayley/cuda/given.cuh": "test_cayley_warp.cpp",
    "core/cuda/teams.cuh": "test_exponential_team.cpp",
    "core/cuda/tiles.cuh": "test_triangular.cpp",
    "exponential/cuda/batch.cuh": "test_exponential_lanes.cpp",
    "core/cuda/panels.cuh": "test_exponential_team.cpp",
}

COMPILE = ["g++", "-std=c++20", "-O1", "-w"]
STRICTER = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
BARRIER = re.compile(r"(__sync(threads|warp)\([^)]*\)|\bbarrier\(\));")
COMPARISON = re.compile(r"(?<= )(<=|>=|==|!=|<|>)(?= )")
SHIFTED = {"<": "<=", "<=": "<", ">": ">=", ">=": ">"}
FLIPPED = {"<": ">=", "<=": ">", ">": "<=", ">=": "<", "==": "!=", "!=": "=="}
JOINED = re.compile(r"(?<= )(&&|\|\|)(?= )")
ADDED = re.compile(r"(?<= )[+-](?= )")


def mutants(text: str) -> Iterator[tuple[int, str, str]]:
    """Yields the line number, the description and the whole changed text."""
    lines = text.split("\n")
    for number, line in enumerate(lines):
        code = line.split("//")[0]
        if code.lstrip().startswith(("#", "template", "asm")):
            continue

        def changed(match: re.Match[str], new: str, number: int = number, line: str = line) -> str:
            return "\n".join(
                [*lines[:number], line[: match.start()] + new + line[match.end() :], *lines[number + 1 :]]
            )

        for m in BARRIER.finditer(code):
            yield number + 1, "barrier deleted", changed(m, ";")
        for m in COMPARISON.finditer(code):
            for table in (SHIFTED, FLIPPED):
                if m.group() in table:
                    yield (
                        number + 1,
                        f"{m.group()} -> {table[m.group()]} at {m.start() + 1}",
                        changed(m, table[m.group()]),
                    )
        for m in JOINED.finditer(code):
            other = "||" if m.group() == "&&" else "&&"
            yield number + 1, f"{m.group()} -> {other} at {m.start() + 1}", changed(m, other)
        for m in ADDED.finditer(code):
            other = "-" if m.group() == "+" else "+"
            yield number + 1, f"{m.group()} -> {other} at {m.start() + 1}", changed(m, other)


def passes(tree: Path, test: str, flags: list[str]) -> str:
    """Returns the outcome of the test program in a copy of the tree: an empty string if it passed."""
    program = tree / "program"
    source = tree / "tests" / "simt" / test
    if subprocess.run([*COMPILE, *flags, source, "-o", program], capture_output=True, check=False).returncode:
        return "does not compile"
    try:
        run = subprocess.run(
            [program, "quick"],
            capture_output=True,
            check=False,
            timeout=60,
            env={**os.environ, "STOP_EARLY": "1"},
        )
    except subprocess.TimeoutExpired:
        return "hangs"
    return "caught" if run.returncode else ""


def verdict(header: str, test: str, text: str) -> str:
    # The whole tree is copied, because a quoted include is first looked up next to the including file, which
    # would find the unchanged header.
    with tempfile.TemporaryDirectory() as folder:
        tree = Path(folder)
        shutil.copytree(HERE, tree / "tests" / "simt")
        shutil.copytree(SOURCES, tree / "csrc")
        (tree / "csrc" / header).write_text(text)
        return passes(tree, test, []) or (
            "caught by a sanitizer" if passes(tree, test, STRICTER) else "SURVIVES"
        )


def test_of(header: str) -> str:
    family, stem = Path(header).parts[0], Path(header).stem
    return BY_OTHERS.get(header, f"test_{family if stem == family else f'{family}_{stem}'}.cpp")


def score(header: str, limit: int) -> None:
    test = test_of(header)
    text = (SOURCES / header).read_text()
    every = list(mutants(text))
    if limit and len(every) > limit:  # all barriers, and an even selection of the rest
        barriers = [m for m in every if m[1] == "barrier deleted"]
        rest = [m for m in every if m[1] != "barrier deleted"]
        count = max(0, limit - len(barriers))
        every = barriers + [rest[i * len(rest) // count] for i in range(count)]
    began = time.time()
    if verdict(header, test, text) != "SURVIVES":
        raise SystemExit(f"{test} fails unchanged")
    with ThreadPoolExecutor(int(os.environ.get("MAX_JOBS", os.cpu_count() or 1))) as pool:
        results = list(pool.map(lambda mutant: verdict(header, test, mutant[2]), every))
    for (number, what, _), result in zip(every, results, strict=True):
        if result == "SURVIVES":
            print(f"{header}:{number}: {what}: {text.splitlines()[number - 1].strip()}")
    print(
        f"{header}: {len(every)} changes, {dict(Counter(results))}, {time.time() - began:.0f} s", flush=True
    )


def main() -> None:
    parser = argparse.ArgumentParser(description="Mutation check of the device headers.")
    parser.add_argument("headers", nargs="*", help="paths in csrc; default: every header with a test")
    parser.add_argument("--limit", type=int, default=0, help="maximum number of changes per header")
    arguments = parser.parse_args()
    headers = sorted(path.relative_to(SOURCES).as_posix() for path in SOURCES.glob("*/cuda/*.cuh"))
    tested = [header for header in headers if (HERE / test_of(header)).exists()]
    for header in arguments.headers or tested:
        score(header, arguments.limit)


if __name__ == "__main__":
    main()
