"""The examples run and hold what they claim: each asserts it itself."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


def run(name, *arguments):
    result = subprocess.run(
        [sys.executable, ROOT / "examples" / f"{name}.py", *arguments],
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    assert result.returncode == 0, result.stderr[-2000:]
    return result.stdout


def test_tutorial():
    assert "tutorial: all claims hold" in run("tutorial")


@pytest.mark.parametrize("name", ["orthogonal_rnn", "train_digits"])
def test_training(name, tmp_path):
    for package in ("sklearn", "matplotlib", "tqdm"):
        pytest.importorskip(package)
    assert "loss curves: largest difference" in run(
        name, "--epochs", "1", "--out", str(tmp_path / "plot.png")
    )
    assert (tmp_path / "plot.png").stat().st_size > 0
