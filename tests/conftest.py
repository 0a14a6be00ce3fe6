"""The initial state of every test: a seed, and no graph compiled by another test."""

import os

# Before torch. On busy cores, spinning threads cost the suite minutes. A graph that another run has cached
# may be compiled for another instruction level.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
os.environ.setdefault("TORCHINDUCTOR_FORCE_DISABLE_CACHES", "1")

import pytest
import table
import torch

IGNORED = (
    # test_errors.py tests it in a separate process
    "ignore:fastparam. complex dtypes have no kernels:UserWarning",
    "ignore:`torch.jit:DeprecationWarning",
    "ignore:Anomaly Detection has been enabled:UserWarning",
    "ignore:Complex modules are a new feature:UserWarning",
    "ignore:Sparse CSR tensor support is in beta:UserWarning",
    "ignore:torch.quantize_per_tensor:UserWarning",
    "ignore:.isinstance.treespec, LeafSpec:FutureWarning",
    "ignore:Attempted to insert a get_attr Node:UserWarning",
)


def pytest_configure(config):
    for line in IGNORED:
        config.addinivalue_line("filterwarnings", line)


@pytest.fixture(autouse=True)
def seed():
    torch.default_generator.manual_seed(0)
    # without a device, torch.manual_seed formats the stack three times for later
    if torch.cuda.is_available():
        torch.cuda.manual_seed_all(0)


@pytest.fixture(params=table.DEVICES)
def device(request):
    return request.param


@pytest.fixture
def dynamo():
    torch._dynamo.reset()
    yield torch._dynamo
    torch._dynamo.reset()
