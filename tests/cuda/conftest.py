"""The device of the CUDA tests."""

import cuda_dry
import pytest
import torch

from fastparam import _built


@pytest.fixture(params=["cuda"] if torch.cuda.is_available() else ["cuda", "dry"])
def gpu(request, monkeypatch):
    """A CUDA device. Where there is none the test is skipped, and its logic is tried on a CPU that plays one:
    see cuda_dry.py.
    """
    if request.param == "dry":
        cuda_dry.play(monkeypatch)
        return "cpu"
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    if _built.cuda is None:
        pytest.skip("needs a build with CUDA kernels: FASTPARAM_BUILD=cuda")
    return "cuda"
