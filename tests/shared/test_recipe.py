"""The recipe "Adding an op" of csrc/README.md, followed to the letter: its lines make a whole op, and none
can be left out.
"""

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
import torch
from torch.utils.cpp_extension import get_cxx_compiler, include_paths, library_paths

from fastparam import _C

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.skipif(
    not (ROOT / "csrc").exists() or shutil.which(get_cxx_compiler()) is None,
    reason="needs the source tree and a compiler",
)

# The positions of the lines that the recipe adds to a file: after the first match of this.
PLACES = {
    "fastparam/_reference.py": r"\Z",
    "fastparam/_C.pyi": r"\Z",
    "csrc/ops.h": r"namespace fastparam \{\n",
    "csrc/module.cpp": r"PYBIND11_MODULE.*\n.*using namespace fastparam;\n",
    "fastparam/_ops.py": r"OPS = \(\n",
    "fastparam/__main__.py": r"SAMPLES: .* = \{\n",
    "fastparam/functional.py": r"__all__ = \[\n",
    "tests/table.py": r"\nCASES = \[",
    "README.md": r"\n\|---\|---\|---\|\n",
}


def steps():
    """The lines of the recipe by the file that they belong to, in its order."""
    recipe = (ROOT / "csrc" / "README.md").read_text().split("\n## ")
    (text,) = (part for part in recipe if part.startswith("Adding an op"))
    return dict(re.findall(r"^`([\w/.]+)`[^\n]*:\n```\w+\n(.*?)```", text, re.MULTILINE | re.DOTALL))


STEPS = steps()
IN_CPP = [path for path in STEPS if path.startswith("csrc/null/")]


@pytest.fixture(scope="module")
def library():
    """The C++ part, compiled by itself into the build folder, and again only if one of its lines
    has changed.
    """
    with_op = added((ROOT / "csrc" / "ops.h").read_text(), "csrc/ops.h")
    core = sorted((ROOT / "csrc" / "core").rglob("*.h"))
    parts = [torch.__version__, with_op, *(STEPS[path] for path in IN_CPP), *(p.read_text() for p in core)]
    name = hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]
    folder = ROOT / "build" / "recipe" / name
    made = folder / "null.so"
    if made.exists():
        return made
    work = folder.with_suffix(f".{os.getpid()}")
    shutil.copytree(ROOT / "csrc" / "core", work / "csrc" / "core")
    for path in IN_CPP:
        (work / path).parent.mkdir(parents=True, exist_ok=True)
        (work / path).write_text(STEPS[path])
    (work / "csrc" / "ops.h").write_text(with_op)
    together = work / "null.cpp"
    together.write_text("".join(f'#include "{path}"\n' for path in IN_CPP if path.endswith(".cpp")))
    headers = [f"-I{path}" for path in (*include_paths(), sysconfig.get_paths()["include"])]
    libraries = [*(f"-L{path}" for path in library_paths()), "-lc10", "-ltorch_cpu", "-ltorch"]
    command = [get_cxx_compiler(), "-O0", "-std=c++20", "-fPIC", "-shared", *headers, str(together)]
    compiled = subprocess.run(
        [*command, "-o", str(work / "null.so"), *libraries], capture_output=True, text=True
    )
    assert compiled.returncode == 0, compiled.stderr
    folder.mkdir(parents=True, exist_ok=True)
    os.replace(work / "null.so", made)
    shutil.rmtree(work)
    return made


def added(text, path):
    lines = STEPS[path]
    if path == "fastparam/functional.py":
        first, lines = lines.split("\n", 1)
        text = re.sub(r"^from", f"{first}\nfrom", text, count=1, flags=re.MULTILINE)
    place = re.search(PLACES[path], text)
    return text[: place.end()] + lines + text[place.end() :]


# The C++ of this build, together with the new op. Its line in module.cpp, which is not compiled here, stands
# for the direct entry.
EXTENSION = """
import importlib.util
from pathlib import Path

import torch

spec = importlib.util.spec_from_file_location("fastparam._C", {built!r})
module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
torch.ops.load_library({library!r})
globals().update({{name: thing for name, thing in vars(module).items() if not name.startswith("__")}})
if 'm.def("null", ' in (Path(__file__).parents[1] / "csrc" / "module.cpp").read_text():
    null = torch.ops.fastparam.null.default
"""

# The parts that the op lacks, with all lines of the recipe and without those of each file. Each one runs in
# a process that starts with torch loaded.
CHECK = """
import json, os, sys
import pytest, torch, numpy
from pathlib import Path

root, steps = Path(sys.argv[1]), json.loads(sys.argv[2])
sys.path[:0] = [str(root), str(root / "tests"), str(root / "tests" / "shared")]

def lacks():
    try:
        from test_house import missing
        return missing("null")
    except Exception as error:
        return [f"{type(error).__name__}: {error}"]

def forked():
    read, write = os.pipe()
    if os.fork() == 0:
        os.write(write, json.dumps(lacks()).encode())
        os._exit(0)
    os.close(write)
    with os.fdopen(read) as told:
        return json.loads(told.read())

found = {"": forked()}
for path, before in steps.items():
    complete = (root / path).read_text()
    (root / path).write_text(before) if before is not None else (root / path).unlink()
    found[path] = forked()
    (root / path).write_text(complete)
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def house(library, tmp_path_factory):
    """A copy of the tree to which the recipe was applied."""
    root = tmp_path_factory.mktemp("house")
    kept = shutil.ignore_patterns("*.so", "__pycache__", "results")
    for name in ("csrc", "fastparam", "tests", "benchmarks"):
        shutil.copytree(ROOT / name, root / name, ignore=kept)
    for name in ("README.md", "pyproject.toml"):
        shutil.copy(ROOT / name, root / name)
    for path in STEPS:
        file = root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(added(file.read_text(), path) if path in PLACES else STEPS[path])
    shutil.copy(Path(_C.__file__).with_name("_built.py"), root / "fastparam")
    extension = EXTENSION.format(built=_C.__file__, library=str(library))
    (root / "fastparam" / "_C.py").write_text(extension)
    return root


def run(house, *command):
    environment = {**os.environ, "PYTHONPATH": str(house), "PYTHONDONTWRITEBYTECODE": "1"}
    return subprocess.run(
        [sys.executable, *command], cwd=house, capture_output=True, text=True, env=environment
    )


@pytest.fixture(scope="module")
def outcomes(house):
    files = [path for path in STEPS if path not in IN_CPP]
    before = {path: (ROOT / path).read_text() if path in PLACES else None for path in files}
    told = run(house, "-c", CHECK, str(house), json.dumps(before))
    assert told.returncode == 0, told.stderr
    return json.loads(told.stdout)


def test_the_recipe_makes_a_whole_op(outcomes):
    assert outcomes[""] == []


@pytest.mark.parametrize("path", [path for path in STEPS if path not in IN_CPP])
def test_no_step_can_be_left_out(outcomes, path):
    assert any(path in line or "null" in line for line in outcomes[path]) or (
        path.startswith("benchmarks/") and outcomes[path] == ["benchmarks"]
    )


def test_every_check_runs_on_the_new_op(house):
    told = run(
        house, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/shared/test_values.py", "-k", "null"
    )
    passed = re.search(r"^(\d+) passed", told.stdout, re.MULTILINE)
    assert told.returncode == 0 and passed and int(passed[1]) > 20, told.stdout
