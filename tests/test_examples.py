"""The examples run, and their claims hold: each one asserts them itself."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch.distributed as dist

ROOT = Path(__file__).resolve().parents[1]

pytestmark = pytest.mark.slow


def run(name, *arguments, launcher=()):
    result = subprocess.run(
        [sys.executable, *launcher, ROOT / "examples" / f"{name}.py", *arguments],
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_tutorial():
    assert "tutorial: all claims hold" in run("tutorial")


def test_gru():
    for package in ("sklearn", "tqdm"):
        pytest.importorskip(package)
    assert "loss curves: largest difference" in run("orthogonal_gru", "--epochs", "1")


def test_covariance():
    pytest.importorskip("sklearn")
    assert "relative distance from the sample covariance" in run("spd")


@pytest.mark.parametrize("name", ["orthogonal_rnn", "train_digits"])
def test_training(name, tmp_path):
    for package in ("sklearn", "matplotlib", "tqdm"):
        pytest.importorskip(package)
    assert "loss curves: largest difference" in run(
        name, "--epochs", "1", "--out", str(tmp_path / "plot.png")
    )
    assert (tmp_path / "plot.png").stat().st_size > 0


@pytest.mark.skipif(
    not (dist.is_available() and dist.is_gloo_available()), reason="torch is built without gloo"
)
def test_two_processes_save_and_one_resumes(tmp_path):
    for package in ("sklearn", "tqdm"):
        pytest.importorskip(package)
    two = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
    saved = run("distributed", "--epochs", "1", "--save", str(tmp_path), launcher=two)
    resumed = run("distributed", "--resume", str(tmp_path))
    assert saved.startswith("processes: 2") and resumed.startswith("processes: 1")
    losses = [float(text.split()[-1]) for text in (saved, resumed)]
    assert abs(losses[0] - losses[1]) < 2e-6 and losses[0] < 2.2  # untrained: 2.3
