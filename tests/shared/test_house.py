"""The house is complete and in order: every op has all of its parts, and files include only what they may."""

import importlib
import re
import sys
from collections import defaultdict
from pathlib import Path

import pytest
import torch
from table import CASES, NOT_MAPS

import fastparam
from fastparam import _C, _ops, _reference
from fastparam import __main__ as self_check

ROOT = Path(__file__).resolve().parents[2]
CSRC = ROOT / "csrc"
pytestmark = pytest.mark.skipif(not CSRC.exists(), reason="needs the source tree")

WORDS = [op.name for op in _ops.OPS]
FAMILIES = {path.name for path in CSRC.glob("*/") if path.is_dir()} - {"core"}
SOURCES = (".cpp", ".h", ".cu", ".cuh")


def relative(path):
    return path.relative_to(ROOT).as_posix()


def sources(*folders):
    """The files of code in these folders of the tree, or these files."""
    for folder in map(ROOT.joinpath, folders):
        found = [folder] if folder.is_file() else sorted(folder.rglob("*"))
        yield from (path for path in found if path.suffix in (".py", ".pyi", *SOURCES))


# ---- every op has all of its parts -----------------------------------------------------------------------


def benchmarked():
    """The ops that a benchmark times, in the forward pass or in the backward pass of the map that they belong
    to.
    """
    sys.path.insert(0, str(ROOT / "benchmarks"))
    modules = [importlib.import_module(path.stem) for path in (ROOT / "benchmarks").glob("bench_*.py")]
    return {case.op.name.split()[0] for module in modules for case in module.CASES}


def missing(word):
    """The parts that the op lacks, as the files in which they are missing, in the order of the recipe of
    csrc/README.md.
    """
    op = next((op for op in _ops.OPS if op.name == word), None)
    registered = "fastparam::" + word
    keys = ("Meta", "CPU", "CompositeExplicitAutograd", "Autograd")
    meta, kernel, expression, autograd = (
        torch._C._dispatch_has_kernel_for_dispatch_key(registered, key) for key in keys
    )
    if torch._C._dispatch_has_kernel_for_dispatch_key(registered, "CompositeImplicitAutograd"):
        meta = kernel = expression = autograd = True  # made of other ops, whose kernels serve it
    forward = word.removesuffix("_adjoint").removesuffix("_backward")
    is_public = op is not None and op.public
    named = f"fastparam.functional.{word}(" if is_public else f"`{word}`"
    documents = ROOT / "README.md" if is_public else CSRC / "README.md"
    done = {
        "fastparam/_reference.py": hasattr(_reference, word),
        "csrc: Meta": meta,
        "csrc: Autograd": autograd or registered in NOT_MAPS,
        "csrc: expression": expression,
        "csrc: CPU": kernel,
        "csrc/ops.h": f'"{registered}"' in (CSRC / "ops.h").read_text(),
        "csrc/module.cpp": not is_public or hasattr(_C, word),
        "fastparam/_C.pyi": not is_public or f"def {word}(" in (ROOT / "fastparam" / "_C.pyi").read_text(),
        "fastparam/_ops.py": op is not None,
        "fastparam/functional.py": is_public == (word in fastparam.functional.__all__),
        "fastparam/__main__.py": word in self_check.SAMPLES,
        "tests/table.py": registered in {case.op.name() for case in CASES} | NOT_MAPS,
        "benchmarks": forward in benchmarked(),
        relative(documents): named in documents.read_text(),
    }
    return [step for step, is_done in done.items() if not is_done]


def registered():
    names = torch._C._dispatch_get_all_op_names()
    return sorted(name.removeprefix("fastparam::") for name in names if name.startswith("fastparam::"))


@pytest.mark.parametrize("word", registered())
def test_an_op_lacks_nothing(word):
    assert missing(word) == []


def test_nothing_is_listed_that_is_no_op():
    assert sorted(WORDS) == registered() and sorted(self_check.SAMPLES) == registered()


def test_functions_are_the_public_ops_and_those_made_of_torchs_own():
    public = {op.name for op in _ops.OPS if op.public}
    assert set(fastparam.functional.__all__) - public == {
        "cayley_inverse",
        "log_orthogonal",
        "log_positive_definite",
        "stiefel_exp",
    }
    assert public <= set(fastparam.functional.__all__)


# ---- includes --------------------------------------------------------------------------------------------


def room(path):
    """core or a family, and the folder inside it: "" (the op), "cpu" or "cuda"."""
    parts = path.relative_to(CSRC).parts[:-1]
    return (parts[0] if parts else path.name, parts[1] if len(parts) > 1 else "")


def may_include(file, other):
    (family, layer), (theirs, their_layer) = room(file), room(other)
    if file.name == "module.cpp":
        return theirs in ("core", "ops.h") or their_layer == ""
    if file.name == "ops.h":
        return theirs == "core"
    if theirs == "ops.h":  # the access to other ops
        return family in FAMILIES and layer == ""
    return theirs in ("core", family) and their_layer in ("", layer)


def test_includes_run_one_way():
    for file in sources("csrc"):
        for name in re.findall(r'^#include "(.*)"', file.read_text(), re.MULTILINE):
            other = (file.parent / name).resolve()
            assert other.exists() and may_include(file, other), f"{relative(file)} includes {name}"


def test_the_rule_of_includes_would_find_each_fault():
    core, ops = CSRC / "core" / "shapes.h", CSRC / "ops.h"
    kernel = CSRC / "cayley" / "cpu" / "batch.h"
    for file, other in (
        (core, CSRC / "cayley" / "guard.h"),
        (CSRC / "prune" / "prune.cpp", CSRC / "cayley" / "cayley.h"),
        (kernel, ops),
        (kernel, CSRC / "cayley" / "cuda" / "launch.h"),
        (CSRC / "cayley" / "cayley.cpp", kernel),
        (ops, CSRC / "cayley" / "cayley.h"),
        (CSRC / "module.cpp", kernel),
    ):
        assert other.exists() and not may_include(file, other)


def code_lines(path):
    comment = "#" if path.suffix.startswith(".py") else "//"
    lines = (line.strip() for line in path.read_text().splitlines())
    return [line for line in lines if line and not line.startswith(comment)]


def test_no_ten_lines_stand_in_two_files():
    where = defaultdict(set)
    for path in sources("csrc", "fastparam", "benchmarks", "examples", "setup.py"):
        lines = code_lines(path)
        for i in range(len(lines) - 9):
            where["\n".join(lines[i : i + 10])].add(relative(path))
    assert [(files, lines) for lines, files in where.items() if len(files) > 1] == []


def test_lines_are_no_longer_than_110():
    """Except for tables of Markdown, links, and parts of a document that a script writes."""
    names = ("README.md", "CHANGELOG.md", "CONTRIBUTING.md", "csrc/README.md", "benchmarks/NOTES.md")
    documents = [*map(ROOT.joinpath, names), *(ROOT / "docs").glob("*.md")]
    code = sources("csrc", "fastparam", "benchmarks", "examples", "tests", "setup.py")
    longer = []
    for path in [*documents, *code]:
        text = re.sub(r"<!-- results -->.*<!-- end of results -->", "", path.read_text(), flags=re.DOTALL)
        is_exempt = re.compile(r"\s*\||\S*https?://\S*$" if path.suffix == ".md" else r"(?!)").match
        lines = (line for line in text.splitlines() if len(line) > 110 and not is_exempt(line))
        longer += [f"{relative(path)}: {line}" for line in lines]
    assert longer == []


def test_documents_name_constants_and_files_that_are_there():
    code = {path: path.read_text() for path in sources("csrc")}
    words = set(re.findall(r"\bk[A-Z]\w+", "\n".join(code.values())))
    for name in ("csrc/README.md", "benchmarks/NOTES.md"):
        text = (ROOT / name).read_text().split("\n## Adding an op")[0]
        assert set(re.findall(r"`(k[A-Z]\w+)", text)) <= words
        for named in re.findall(r"`(?:csrc/)?([\w/]+\.(?:cpp|cuh?|h))`", text):
            assert any(path.as_posix().endswith(f"/{named}") for path in code), f"{name} names {named}"
