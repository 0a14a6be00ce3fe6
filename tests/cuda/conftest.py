"""The device of the CUDA tests."""

import cuda_dry
import pytest
import torch

from fastparam import _built

DRY = pytest.param("dry", marks=pytest.mark.dry)


@pytest.fixture(params=["cuda"] if torch.cuda.is_available() else ["cuda", DRY])
def gpu(request, monkeypatch):
    """A CUDA device. If there is none, the test is skipped, and the code of its function is tried once on a
    CPU that emulates one (see cuda_dry.py).
    """
    if request.param == "dry":
        cuda_dry.play(monkeypatch)
        return "cpu"
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    if _built.cuda is None:
        pytest.skip("needs a build with CUDA kernels: FASTPARAM_BUILD=cuda")
    return "cuda"


def pytest_collection_modifyitems(items):
    """Without a device, one case of each function is skipped, so that it is visible, and one is emulated."""
    if torch.cuda.is_available():
        return
    tried, kept = set(), []
    for item in items:
        case = item.function, item.get_closest_marker("dry") is not None
        if "gpu" not in item.fixturenames or case not in tried:
            kept.append(item)
        tried.add(case)
    items[:] = kept
