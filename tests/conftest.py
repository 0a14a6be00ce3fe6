"""What every test starts from: a seed, and no graph compiled by another test."""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # before torch: on busy cores, threads that spin cost the suite minutes

import cases
import cuda_dry
import pytest
import torch

from fastparam import _built

IGNORED = (
    "ignore:fastparam. complex dtypes have no kernels:UserWarning",  # test_errors.py asks for it in a process of its own
    "ignore:`torch.jit:DeprecationWarning",
    "ignore:Anomaly Detection has been enabled:UserWarning",
    "ignore:Complex modules are a new feature:UserWarning",
    "ignore:Sparse CSR tensor support is in beta:UserWarning",
    "ignore:torch.quantize_per_tensor:UserWarning",
    "ignore:.isinstance.treespec, LeafSpec:FutureWarning",
    "ignore:Attempted to insert a get_attr Node:UserWarning",
)


def pytest_configure(config):
    config.addinivalue_line("markers", "slow: compiles with inductor, or starts several processes")
    for line in IGNORED:
        config.addinivalue_line("filterwarnings", line)


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


@pytest.fixture(params=cases.DEVICES)
def device(request):
    return request.param


@pytest.fixture(params=["cuda"] if torch.cuda.is_available() else ["cuda", "dry"])
def gpu(request, monkeypatch):
    """A CUDA device. Where there is none the test is skipped, and its logic is tried on a CPU that plays one: see cuda_dry.py."""
    if request.param == "dry":
        cuda_dry.play(monkeypatch)
        return "cpu"
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    if _built.cuda is None:
        pytest.skip("needs a build with CUDA kernels: FASTPARAM_BUILD=cuda")
    return "cuda"


@pytest.fixture
def dynamo():
    torch._dynamo.reset()
    yield torch._dynamo
    torch._dynamo.reset()
