"""The same bits at every instruction level and for any number of threads; forked processes; a
silent import.
"""

import functools
import json
import sys

import pytest
import torch
from table import python

import fastparam

HASHES = """
import hashlib, json, numpy, torch, fastparam
from table import CASES, REAL, bits

SHAPES = [(1, 1), (3, 3), (7, 8, 8), (3, 9, 9), (4, 12, 12), (2, 15, 15), (16, 16), (2, 17, 17), (3, 33, 33),
          (2, 3, 63, 63), (100, 100), (257, 257), (3, 257, 257), (1024, 1024), (301, 2, 2), (302, 3, 3),
          (77, 4, 4), (2000, 5, 5), (500, 12, 12)]
LINEAR = [case for case in CASES if case.linear]  # others are compared by value below
hashes = {}
for dtype in REAL:
    for shape in SHAPES:
        # torch's own random numbers depend on the level.
        X = torch.from_numpy(numpy.random.default_rng(1).standard_normal(shape)).to(dtype)
        X.view(-1)[:: 7] *= 1e-7
        X.view(-1)[1 :: 11] *= float("inf")
        window = torch.cat([X, X], -1)[..., 1 : 1 + shape[-1]]
        for layout, x in (("rows", X), ("columns", X.mT), ("window", window)):
            for case in LINEAR:
                for threads in (1, 2):
                    torch.set_num_threads(threads)
                    Y = case.op(*[x] * case.tensors, *case.arguments(x))
                    Y = torch.where(Y.isnan(), 0, Y)  # the payload of a NaN is the processor's choice
                    key = f"{case.name} {dtype} {shape} {layout}"
                    digest = hashlib.sha1(bits(Y).numpy()).hexdigest()
                    assert hashes.setdefault(key, digest) == digest, f"{key}: {threads} threads, other bits"
print(json.dumps({
    "level": torch.backends.cpu.get_cpu_capability().lower(),
    "vector_bytes": fastparam._C.vector_bytes(),
    "hashes": hashes,
}))
"""
BYTES = {"default": 16, "avx2": 32, "avx512": 64}


def needs(level):
    if level not in fastparam._C.supported_levels():
        pytest.skip(f"this CPU has no {level}")


every_level = pytest.mark.parametrize("level", BYTES)


@functools.cache
def hashes(level):
    done = python(HASHES, timeout=300, ATEN_CPU_CAPABILITY=level)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.slow
@pytest.mark.parametrize("level", ["avx2", "avx512"])
def test_same_bits_at_every_level(level):
    needs(level)
    other, base = hashes(level), hashes("default")
    assert base["vector_bytes"] == 16 and other["vector_bytes"] == BYTES[level]
    assert list(base["hashes"]) == list(other["hashes"])
    assert [key for key in base["hashes"] if base["hashes"][key] != other["hashes"][key]] == []


def test_the_level_is_torchs_own():
    level = torch.backends.cpu.get_cpu_capability().lower()
    if level not in ("avx2", "avx512"):
        level = "default"
    needs(level)
    assert fastparam._C.vector_bytes() == BYTES[level]


@pytest.mark.parametrize("largest", BYTES.values())
def test_no_level_is_above_the_cpus(largest):
    for level, wanted in BYTES.items():
        assert fastparam._C.bytes_at(level.upper(), largest) == min(wanted, largest)
    assert fastparam._C.bytes_at("NO AVX", largest) == 16, "torch's word for its lowest level"


@pytest.mark.slow
@every_level
def test_a_level_that_the_cpu_lacks_ends_no_process(level):
    source = """
import torch, fastparam
fastparam.functional.skew(torch.ones(40, 40))
print(fastparam._C.vector_bytes())
"""
    done = python(source, ATEN_CPU_CAPABILITY=level)
    most = BYTES[fastparam._C.supported_levels()[-1]]
    assert done.stdout.strip() == str(min(BYTES[level], most)), done.stderr


VALUES = """
import torch
for case in CASES:
    for dtype in REAL:
        X = case.inputs(2, n=65, dtype=dtype)
        case.check_values(lambda f, *X: f(*X), X)
        case.check_values(lambda f, *X: torch.autograd.grad(f(*X).sum(), X), X)
"""

LEVEL = "from table import CASES, REAL\n" + VALUES + "print('right')"


@pytest.mark.slow
@every_level
def test_values_at_every_level(level):
    needs(level)
    done = python(LEVEL, ATEN_CPU_CAPABILITY=level)
    assert done.stdout.strip() == "right", done.stderr


# ---- processes -------------------------------------------------------------------------------------------

FORK = """
import multiprocessing, os, sys, torch, fastparam
from table import CASES, REAL

torch.set_num_threads(2)
X = torch.randn(3, 257, 257)
expected = fastparam.functional.skew(X)  # threads have run before the fork


def child():
    torch.set_num_threads(1)  # as DataLoader's workers do: OpenMP's threads do not survive a fork
    assert torch.equal(fastparam.functional.skew(X), expected)
    with torch.no_grad():
        for case in CASES:
            Y = case.bind(case.op)(*case.inputs(2, n=65, dtype=torch.float32))
            assert Y.isfinite().all()
    x = torch.randn(4, 4, requires_grad=True)
    y = fastparam.functional.symmetric(x)
    assert y.requires_grad and y.isfinite().all()


pid = os.fork()
if pid == 0:
    code = 1
    try:
        child()
        code = 0
    finally:
        os._exit(code)
assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0, "os.fork"

workers = [multiprocessing.get_context("fork").Process(target=child) for _ in range(3)]
for worker in workers:
    worker.start()
for worker in workers:
    worker.join(60)
    assert worker.exitcode == 0, worker.exitcode
assert torch.equal(fastparam.functional.skew(X), expected)
print("done")
"""


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="forks on Linux")
def test_fork():
    done = python(FORK, timeout=120)
    assert done.stdout.strip() == "done", done.stderr


LOADER = """
import torch, fastparam


class Skews(torch.utils.data.Dataset):
    def __len__(self):
        return 8

    def __getitem__(self, i):
        return fastparam.functional.skew(torch.full((100, 100), float(i)))


if __name__ == "__main__":
    fastparam.functional.skew(torch.randn(3, 257, 257))
    for batch in torch.utils.data.DataLoader(Skews(), batch_size=4, num_workers=2):
        assert torch.equal(batch, -batch.mT)
    print("done")
"""


@pytest.mark.slow
def test_data_loader_workers():
    done = python(LOADER, timeout=120)
    assert done.stdout.strip() == "done", done.stderr


@pytest.mark.slow
def test_import_is_quiet():
    """Nothing is printed, CUDA is not initialised, and no compiler or test module is imported."""
    source = """
import sys, torch
before = set(sys.modules)
torch.manual_seed(3)
state = torch.get_rng_state()
threads = torch.get_num_threads()
import fastparam
assert not torch.cuda.is_initialized()
assert torch.equal(torch.get_rng_state(), state) and torch.get_num_threads() == threads
assert "fastparam._reference" not in sys.modules, "the library runs its reference"
heavy = ("torch._inductor", "numpy", "setuptools", "pytest")
assert not {name for name in set(sys.modules) - before if name.startswith(heavy)}
"""
    done = python(source)
    assert done.returncode == 0 and done.stdout == "" and done.stderr == "", done.stdout + done.stderr
