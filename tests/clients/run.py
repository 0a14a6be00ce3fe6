"""Runs the tests of this folder, and those of geotorch and PEFT with their functions replaced by ours.

`make clients` installs the versions pinned here into a separate environment, build/clients/venv, and installs
fastparam as a user would, from a copy of the tree. The test suites are in the source distributions of the
packages. They run without a network, first unchanged, and then with the plugin replaced.py. A test that fails
both times is ignored. A test whose outcome differs with our functions is a failure, and so is a function of
ours that was never called.

`python tests/clients/run.py --in-place` uses the build of this tree, which must be for the same torch.
"""

import os
import shutil
import subprocess
import sys
import tarfile
import time
import venv
from collections import Counter
from pathlib import Path
from xml.etree import ElementTree

ROOT = Path(__file__).resolve().parents[2]
HERE = ROOT / "tests" / "clients"
WORK = ROOT / "build" / "clients"
PYTHON = WORK / "venv" / "bin" / "python"
IN_PLACE = "--in-place" in sys.argv[1:]

# The newest version of geotorch whose source distribution includes its tests. It is not the newest version.
VERSIONS = {"geotorch": "0.3.0", "peft": "0.21.2"}
# Of PEFT's tests, those of OFT, BOFT and PSOFT, from the files in which most tests create their own models.
TESTS = {
    "geotorch": ["test"],
    "peft": [*(f"tests/test_{name}.py" for name in ("custom_models", "boft", "initialization")), "-k", "oft"],
}
TRAINERS = "transformers==5.24.0 accelerate==1.15.0 lightning==2.6.6 safetensors==0.8.0"
TOOLS = "pytest==9.2.0 numpy==2.4.6 setuptools==84.2.1 ninja==1.13.2"
IMPORTED_BY_PEFTS_TESTS = "datasets==5.2.0 diffusers==0.42.1 parameterized==0.9.0 scipy==1.17.1"
COLUMNS = ("client", "version", "passed", "skipped", "failed", "theirs")


def pip(command, *args):
    subprocess.run([PYTHON, "-m", "pip", command, "-q", "--disable-pip-version-check", *args], check=True)


def install():
    if not PYTHON.exists():
        venv.create(WORK / "venv", with_pip=True)
    torch = os.environ.get("TORCH", "torch==2.13.0")
    pins = f"{torch} {TRAINERS} {TOOLS} {IMPORTED_BY_PEFTS_TESTS}".split()
    pip("install", *pins, *(f"{name}=={version}" for name, version in VERSIONS.items()))
    if not IN_PLACE:  # the objects of the tree belong to another environment, and stay unchanged
        for stale in ("csrc", "fastparam"):
            shutil.rmtree(WORK / "source" / stale, ignore_errors=True)
        ignored = shutil.ignore_patterns(".*", "build", "*.so", "*.egg-info", "_built.py")
        shutil.copytree(ROOT, WORK / "source", ignore=ignored, dirs_exist_ok=True)
        pip("install", "--no-build-isolation", "--no-deps", "--force-reinstall", WORK / "source")


def unpacked(name):
    """The folder with the tests of a package."""
    folder = WORK / f"{name}-{VERSIONS[name]}"
    if not folder.exists():
        options = ["--no-deps", "--no-build-isolation", "--no-binary", ":all:", "-d", WORK]
        pip("download", *options, f"{name}=={VERSIONS[name]}")
        with tarfile.open(f"{folder}.tar.gz") as archive:
            archive.extractall(WORK, filter="data")
    shutil.rmtree(folder / name, ignore_errors=True)  # the package itself, which is installed
    (folder / TESTS[name][0].split("/")[0] / "__init__.py").touch()  # PEFT's file is not in the distribution
    return folder


def pytest(title, folder, *args):
    """The outcome of every test, and how often our functions were called."""
    print(f"\n== {title}", flush=True)
    report = WORK / f"{title}.xml"
    report.unlink(missing_ok=True)
    paths = os.pathsep.join(map(str, [HERE] + [ROOT] * IN_PLACE))
    environment = os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    options = ["-q", "--tb=short", "--no-showlocals", "--disable-warnings", "-p", "no:cacheprovider"]
    command = [PYTHON, "-m", "pytest", *options, f"--junitxml={report}", *args]
    subprocess.run(command, cwd=folder, env=environment)
    tree, outcomes = ElementTree.parse(report), {}
    for case in tree.iter("testcase"):
        said = {child.tag for child in case}
        outcome = "failed" if said & {"failure", "error"} else "skipped" if "skipped" in said else "passed"
        outcomes[f"{case.get('classname')}::{case.get('name')}"] = outcome
    return outcomes, {p.get("name"): int(p.get("value")) for p in tree.iter("property")}


def trainers():
    outcomes, _ = pytest("trainers", WORK, "-c", ROOT / "pyproject.toml", HERE / "test_trainers.py")
    return {"client": "trainers", "version": "", **Counter(outcomes.values())}


def suite(name):
    folder, args = unpacked(name), ["-o", "addopts=", *TESTS[name]]
    before, _ = pytest(f"{name} as it is", folder, *args)
    after, calls = pytest(f"{name} with our functions", folder, *args, "-p", "replaced", "--replace", name)
    theirs = [test for test in before if before[test] == after.get(test) == "failed"]
    wrong = [f"{test} ends otherwise" for test in before | after if before.get(test) != after.get(test)]
    wrong += [f"{f} was never called" for f, number in calls.items() if not number]
    wrong += [] if calls else ["nothing was replaced"]
    print(
        *(f"{test} fails without our functions too" for test in theirs), *wrong, f"calls: {calls}", sep="\n"
    )
    counts = {**Counter(after.values()), "failed": len(wrong), "theirs": len(theirs)}
    return {"client": name, "version": VERSIONS[name], **counts}


def main():
    begin = time.monotonic()
    install()
    rows = [trainers(), *map(suite, VERSIONS)]
    print()
    for row in [dict(zip(COLUMNS, COLUMNS, strict=True)), *rows]:
        print("".join(f"{row.get(column, 0):<10}" for column in COLUMNS).rstrip())
    print(f"{(time.monotonic() - begin) / 60:.1f} minutes")
    sys.exit(any(row.get("failed") for row in rows))


if __name__ == "__main__":
    main()
