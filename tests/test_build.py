"""The errors of a build or an import when something is missing, each in one sentence."""

import importlib.util
import os
import platform
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
import torch

import fastparam
from fastparam import _built, _ops

ROOT = Path(__file__).resolve().parents[1]

pytestmark = pytest.mark.skipif(not (ROOT / "setup.py").exists(), reason="needs the source tree")


def run(code, *arguments, cwd=ROOT, **environment):
    return subprocess.run(
        [sys.executable, "-c", code, *arguments],
        cwd=cwd,
        capture_output=True,
        text=True,
        env={**os.environ, **environment},
    )


@pytest.fixture(scope="module")
def setup_py():
    spec = importlib.util.spec_from_file_location("fastparam_setup", ROOT / "setup.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


# ---- building --------------------------------------------------------------------------------------------

SETUP = (
    "import sys, runpy; sys.argv = ['setup.py', *sys.argv[1:]]; "
    "runpy.run_path('setup.py', run_name='__main__')"
)
ONLY_HERE = "sys.meta_path = [finder for finder in sys.meta_path if 'editable' not in repr(finder).lower()]"
WITHOUT_TORCH = f"import sys; sys.modules['torch'] = None; {SETUP}"


@pytest.mark.parametrize("command", ["dist_info", "bdist_wheel", "editable_wheel"])
def test_an_isolated_build_stops_before_anything_is_downloaded(command):
    result = run(WITHOUT_TORCH, command)
    assert result.returncode != 0
    (sentence,) = result.stderr.strip().splitlines()
    assert "install torch, then run `pip install --no-build-isolation .`" in sentence


@pytest.fixture
def source(tmp_path):
    """A copy of the source tree, like a clone."""
    kept = shutil.ignore_patterns(
        ".git",
        ".venv*",
        "build",
        "dist",
        "*.egg-info",
        "*.so",
        "_built.py",
        "__pycache__",
        ".*_cache",
        ".hypothesis",
    )
    return Path(shutil.copytree(ROOT, tmp_path / "source", ignore=kept))


def test_sdist_needs_no_torch_and_holds_what_a_build_needs(source, tmp_path):
    result = run(WITHOUT_TORCH, "-q", "sdist", "-d", str(tmp_path), cwd=source)
    assert result.returncode == 0, result.stderr
    (archive,) = tmp_path.glob("*.tar.gz")
    with tarfile.open(archive) as tar:
        held = {name.split("/", 1)[1] for name in tar.getnames() if "/" in name}
    needed = {
        str(path.relative_to(ROOT))
        for kind in ("cpp", "h", "cu", "cuh")
        for path in (ROOT / "csrc").rglob(f"*.{kind}")
    }
    assert (
        needed
        | {"setup.py", "pyproject.toml", "README.md", "LICENSE", "CMakeLists.txt", "fastparam/py.typed"}
        <= held
    )
    assert not any(name.endswith((".so", "_built.py")) for name in held)


def test_a_wheel_holds_every_module(source, tmp_path):
    """The wheel is built with the library that is installed, and installed, and each of its modules is
    imported.
    """
    assert run(WITHOUT_TORCH, "-q", "build_py", cwd=source).returncode == 0
    installed, (lib,) = Path(fastparam.__file__).parent, source.glob("build/lib*")
    for file in (*installed.glob("_C*.so"), installed / "_built.py"):
        shutil.copy(file, lib / "fastparam")
    wheel = run(SETUP, "-q", "bdist_wheel", "--skip-build", "-b", str(tmp_path / "b"), cwd=source)
    assert wheel.returncode == 0, wheel.stderr
    site = tmp_path / "site"
    with zipfile.ZipFile(*source.glob("dist/*.whl")) as archive:
        archive.extractall(site)
    files = {path.relative_to(ROOT) for path in (ROOT / "fastparam").rglob("*.py*") if path.suffix != ".pyc"}
    assert {path for path in files if not (site / path).exists()} == set()
    names = [".".join(path.with_suffix("").parts) for path in files if path.suffix == ".py"]
    modules = sorted(name.removesuffix(".__init__") for name in names if not name.endswith("__main__"))
    code = (
        f"import sys; {ONLY_HERE}; sys.path.insert(0, {str(site)!r}); import importlib, fastparam; "
        f"[importlib.import_module(name) for name in {modules}]; print(fastparam.__file__)"
    )
    result = run(code, cwd=tmp_path)
    assert result.stdout.strip() == str(site / "fastparam" / "__init__.py"), result.stderr


@pytest.mark.slow
def test_an_unknown_kind_of_build_is_refused():
    result = run(SETUP, "build_ext", FASTPARAM_BUILD="gpu")
    assert result.stderr.strip() == "fastparam: expected FASTPARAM_BUILD to be auto, cpu or cuda, got gpu"


@pytest.mark.slow
@pytest.mark.skipif(torch.version.cuda is not None, reason="this torch could build CUDA kernels")
def test_a_cuda_build_says_what_is_missing():
    result = run(SETUP, "build_ext", FASTPARAM_BUILD="cuda")
    lack = "the installed torch is a CPU build (torch.version.cuda is None)"
    assert result.stderr.strip() == f"fastparam: FASTPARAM_BUILD=cuda, but {lack}"


def test_what_cuda_lacks(setup_py, tmp_path):
    assert "nvcc was not found" in setup_py.what_cuda_lacks("13.0", str(tmp_path))
    nvcc = tmp_path / "bin" / "nvcc"
    nvcc.parent.mkdir()
    nvcc.write_text("#!/bin/sh\necho 'Cuda compilation tools, release 12.6, V12.6.20'\n")
    nvcc.chmod(0o755)
    assert setup_py.what_cuda_lacks("12.8", str(tmp_path)) is None
    assert "CUDA 12.6, but torch was built with CUDA 13.0" in setup_py.what_cuda_lacks("13.0", str(tmp_path))


def test_architectures_end_in_ptx(setup_py):
    assert setup_py.default_architectures((12, 6), []) == "8.0;8.6;8.9;9.0+PTX"
    assert setup_py.default_architectures((13, 0), []) == "8.0;8.6;8.9;9.0;10.0;12.0+PTX"


def test_devices_of_the_machine_are_architectures(setup_py):
    """Where the default has neither code nor PTX that serves them."""
    plain = setup_py.default_architectures((13, 0), [])
    for served in ((8, 7), (9, 0), (10, 3), (12, 1), (13, 0)):
        assert setup_py.default_architectures((13, 0), [served, served]) == plain
    assert setup_py.default_architectures((13, 0), [(7, 5), (11, 0), (7, 5)]) == (
        "7.5;8.0;8.6;8.9;9.0;10.0;11.0;12.0+PTX"
    )


def test_a_build_does_not_require_torch():
    text = (ROOT / "pyproject.toml").read_text()
    requires = text.split("[project]")[0]
    assert '"torch' not in requires and 'requires = ["setuptools' in requires


# ---- loading ---------------------------------------------------------------------------------------------


@pytest.fixture
def copy(tmp_path):
    """The installed package in another place, where it can be broken."""
    shutil.copytree(
        Path(fastparam.__file__).parent, tmp_path / "fastparam", ignore=shutil.ignore_patterns("__pycache__")
    )
    return tmp_path


def import_error(folder):
    result = run(
        f"import sys; {ONLY_HERE}; sys.path.insert(0, {str(folder)!r}); import fastparam", cwd=folder
    )
    assert result.returncode != 0
    return result.stderr.strip().splitlines()[-1]


@pytest.mark.slow
def test_a_build_for_another_torch_says_so(copy):
    built = copy / "fastparam" / "_built.py"
    built.write_text(built.read_text().replace(_built.torch, "2.0.1+cu118"))
    running = f"but torch {torch.__version__} is running: rebuild it with `pip install "
    expected = f"ImportError: fastparam was built for torch 2.0.1+cu118, {running}"
    assert import_error(copy).startswith(expected)


@pytest.mark.slow
def test_a_library_that_does_not_load_is_never_a_bare_undefined_symbol(copy):
    (library,) = (copy / "fastparam").glob("_C*.so")
    library.write_bytes(b"not a library")
    assert import_error(copy).startswith(
        f"ImportError: fastparam was built for torch {_built.torch}, but torch {torch.__version__} is running"
    )


@pytest.mark.slow
def test_an_unbuilt_tree_says_so(copy):
    (copy / "fastparam" / "_built.py").unlink()
    remedy = (
        "run `pip install --no-build-isolation .` in its source tree, and import it from another folder, "
        "because the source tree hides the installed package"
    )
    assert import_error(copy) == f"ImportError: fastparam is not built here: {remedy}"


# Run outside of the source tree, where Python would find the unbuilt package before an installed wheel.
@pytest.mark.slow
def test_the_self_check_ends_in_ok(tmp_path):
    code = "import runpy; runpy.run_module('fastparam', run_name='__main__')"
    result = run(code, cwd=tmp_path)
    assert result.returncode == 0 and result.stdout.splitlines()[-1].startswith("ok"), result.stdout


@pytest.mark.slow
def test_the_distance_from_the_floor(tmp_path):
    """There is one line for every public op, and the largest sizes are left out."""
    code = (
        "import sys, runpy, fastparam._measure as m; m.ROUNDS, m.LEAST, rows = 1, 0.0, m.rows; "
        "m.rows = lambda device: (row for row in rows(device) if row.X.numel() < 300000); "
        "sys.argv.append('--measure'); runpy.run_module('fastparam', run_name='__main__')"
    )
    result = run(code, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    lines = [line.split() for line in result.stdout.splitlines()[3:]]
    assert {line[0] for line in lines} >= {op.name for op in _ops.OPS if op.public}
    assert all(float(cell) > 0 for line in lines for cell in line[2:6] if cell != "-")


@pytest.mark.slow
def test_the_self_check_names_the_op_that_is_wrong(tmp_path):
    code = (
        "import runpy, fastparam._ops as o, fastparam._reference as r; r.skew = r.symmetric; "
        "o.OPS = [op for op in o.OPS if op.name in ('symmetric', 'skew')]; "
        "runpy.run_module('fastparam', run_name='__main__')"
    )
    result = run(code, cwd=tmp_path)
    assert result.returncode == 1 and "skew of (33, 33) on cpu: a wrong result" in result.stdout
    assert result.stdout.splitlines()[-1].startswith("not ok: rebuild with")


@pytest.mark.skipif(
    not shutil.which("objdump") or platform.machine() != "x86_64", reason="needs objdump, and its mnemonics"
)
def test_no_kernel_compares_vectors_lane_by_lane():
    """g++ 12 does so where a vector is wider than a register: a guard then takes as long as its map."""
    code = subprocess.run(
        ["objdump", "-dC", "--no-show-raw-insn", fastparam._C.__file__], capture_output=True, text=True
    ).stdout
    found, bodies = {}, 0
    for function in re.split(r"\n(?=[0-9a-f]+ <)", code):
        name = function.split("\n", 1)[0]
        if re.search(r"fastparam::cpu::run_(v4|v3|baseline)<", name):
            bodies += 1
            found[name] = len(re.findall(r"\sv?u?comis[sd]\s", function))
    assert bodies > 100
    # Most kernels compare a few scalars; a guard taken apart has 64 comparisons and more.
    assert {name: count for name, count in found.items() if count > 60} == {}


def test_one_version_number():
    assert f'version = "{fastparam.__version__}"' in (ROOT / "pyproject.toml").read_text()
