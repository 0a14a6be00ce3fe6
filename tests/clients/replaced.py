"""A plugin of pytest for the test suites of other packages. It replaces their functions by ours, and reports
how often each one was called.
"""

from collections import Counter

import pytest

from fastparam.functional import cayley, matrix_exp, skew, skew_cayley_packed, symmetric

CALLS = Counter()


def counted(name, f):
    CALLS[name] = 0

    def call(*args, **options):
        CALLS[name] += 1
        return f(*args, **options)

    return call


def replace_geotorch():
    from geotorch.skew import Skew
    from geotorch.so import SO
    from geotorch.symmetric import Symmetric

    SO.trivializations["cayley"] = counted("cayley", lambda A: cayley(A, alpha=-0.5))
    SO.trivializations["expm"] = counted("expm", matrix_exp)
    Skew.frame = staticmethod(counted("skew", skew))
    Symmetric.frame = staticmethod(counted("symmetric", symmetric))


def replace_peft():
    from peft.tuners.boft.layer import BOFTLayer
    from peft.tuners.oft.layer import OFTRotationModule
    from peft.tuners.psoft.layer import OrthLayer

    def oft(self, v, block_size, use_cayley_neumann=True, num_neumann_terms=5):
        return skew_cayley_packed(v, alpha=-1.0 if use_cayley_neumann else 1.0)

    def psoft(self):
        R = skew_cayley_packed(self.weight, alpha=-1.0)
        R = R if self.vector_b is None else self.vector_b[:, None] * R
        return R if self.vector_a is None else R * self.vector_a

    ours, theirs = counted("psoft", psoft), OrthLayer.get_matrix
    OFTRotationModule._cayley_batch = counted("oft", oft)
    BOFTLayer.cayley_batch = counted("boft", lambda self, X: cayley(0.5 * (X - X.mT)))
    OrthLayer.get_matrix = lambda self: ours(self) if self.orth else theirs(self)


def pytest_addoption(parser):
    parser.addoption("--replace", choices=["geotorch", "peft"])


def pytest_configure(config):
    {"geotorch": replace_geotorch, "peft": replace_peft}[config.getoption("--replace")]()


@pytest.fixture(scope="session", autouse=True)
def calls(record_testsuite_property):
    yield
    for name, number in CALLS.items():
        record_testsuite_property(name, number)
