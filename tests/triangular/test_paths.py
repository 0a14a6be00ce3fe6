"""Every path of the CPU kernels of symmetric, skew and their adjoints. The path depends on order, batch,
layout and size.
"""

import functools

import pytest
import torch
from table import REAL, bits, ops, python
from test_triangular import any_bits, same

from fastparam import _reference as reference

every_word = pytest.mark.parametrize("word", ["symmetric", "symmetric_adjoint", "skew", "skew_adjoint"])
both = pytest.mark.parametrize("lower", [False, True], ids=["upper", "lower"])
every_dtype = pytest.mark.parametrize("dtype", REAL, ids=lambda dtype: str(dtype).removeprefix("torch."))


def check(word, lower, X):
    Y = getattr(ops, word)(X, lower)
    same(Y, getattr(reference, word)(X, lower))
    return Y


@both
@every_word
@every_dtype
def test_batches_of_tiny_matrices(word, lower, dtype):
    """Orders up to 8, in batches of every size around the multiples of a vector, with numbers of every kind,
    so that a value that leaks into another matrix is detected.
    """
    for n in range(1, 10):
        for batch in (*range(1, 36), 63, 64, 65, 127, 128, 129, 1001):
            check(word, lower, any_bits(batch, n, n, dtype=dtype))
        for batch in (5, 40, 301):
            X = any_bits(batch, n, n + 3, dtype=dtype)
            check(word, lower, X[..., 2 : n + 2])
            check(word, lower, any_bits(batch, n, n, dtype=dtype).mT)
            check(word, lower, any_bits(2 * batch, n, n, dtype=dtype)[::2])
            check(word, lower, any_bits(batch * n * n + 1, dtype=dtype)[1:].view(batch, n, n))
            check(word, lower, any_bits(n, n, dtype=dtype).expand(batch, n, n))


@both
@every_word
@every_dtype
def test_every_order(word, lower, dtype):
    for n in range(9, 140):
        X = any_bits(2, n, n, dtype=dtype)
        check(word, lower, X)


@functools.cache
def paged(rows, columns, dtype):
    return any_bits(rows, columns, dtype=dtype)


@both
@every_word
@every_dtype
def test_rows_whole_pages_apart(word, lower, dtype):
    """Rows that share cache sets have a separate path, and so does a window of such a matrix."""
    row = 4096 // dtype.itemsize
    for n in (row // 2, row, *([2 * row] if dtype == torch.float64 else [])):
        X = paged(n, n, dtype)
        Y = check(word, lower, X)
        assert torch.equal(bits(check(word, lower, X.mT.contiguous().mT)), bits(Y))
    check(word, lower, paged(row, row + 5, dtype)[None, :, 3 : row + 3])
    check(word, lower, paged(row, 2 * row, dtype)[:500, 7:507])


@functools.cache
def normal(count, dtype):
    return torch.randn(count, dtype=dtype)


@both
@every_word
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_large_outputs(word, lower, dtype):
    """Outputs larger than the caches are written past them: one matrix, a batch, and a batch of tiny
    matrices.
    """
    elements = (13 << 20) // dtype.itemsize
    n = int(elements**0.5)
    numbers = normal((n + 256) ** 2, dtype)
    for order in (5, 8, 64, 201, 256, n + 1, -(-n // 256) * 256):
        batch = elements // order**2 + 1
        check(word, lower, numbers[: batch * order**2].view(batch, order, order))


@every_word
def test_threads_share_a_batch_anywhere(word):
    """Chunks begin and end inside of a matrix, and inside of a batch."""
    threads = torch.get_num_threads()
    try:
        for shape in [
            (3, 300, 300),
            (7, 201, 201),
            (1, 700, 700),
            (257, 40, 40),
            (9001, 4, 4),
            (20011, 3, 3),
        ]:
            for lower in (False, True):
                X = torch.randn(shape)
                results = []
                for number in (1, 2, 3, 5):
                    torch.set_num_threads(number)
                    results.append(bits(check(word, lower, X)))
                assert all(torch.equal(result, results[0]) for result in results)
    finally:
        torch.set_num_threads(threads)


GUARDED = """
import ctypes, mmap, torch
from table import REAL, ops
from fastparam import _reference as reference

libc = ctypes.CDLL(None, use_errno=True)
page, room = mmap.PAGESIZE, 1 << 20
memory = mmap.mmap(-1, room + 2 * page)
start = ctypes.addressof(ctypes.c_char.from_buffer(memory))
for guard in (start, start + page + room):
    assert libc.mprotect(ctypes.c_void_p(guard), ctypes.c_size_t(page), 0) == 0


def placed(X, at_end):
    size = X.numel() * X.element_size()
    address = start + page + (room - size if at_end else 0)
    Y = torch.frombuffer((ctypes.c_char * size).from_address(address), dtype=X.dtype).view(X.shape)
    return Y.copy_(X)


for dtype in REAL:
    for shape in [*[(b, n, n) for n in range(1, 9) for b in (1, 2, 3, 7, 16, 33, 200)],
                  *[(b, n, n) for n in (9, 12, 15, 16, 17, 31, 33, 65, 100) for b in (1, 3)], (257, 257)]:
        X = torch.randn(shape).to(dtype)
        for at_end in (False, True):
            x = placed(X, at_end)
            for word in ("symmetric", "symmetric_adjoint", "skew", "skew_adjoint"):
                for lower in (False, True):
                    assert torch.equal(getattr(ops, word)(x, lower), getattr(reference, word)(X, lower))
print("inside")
"""


@pytest.mark.parametrize("level", ["default", "avx2", "avx512"])
def test_no_byte_outside_the_input_is_read(level):
    """The input lies between protected pages. A process that accesses them is killed."""
    pytest.importorskip("resource", reason="mprotect")
    done = python(GUARDED, ATEN_CPU_CAPABILITY=level)
    assert done.returncode == 0 and done.stdout.strip() == "inside", f"exit {done.returncode}: {done.stderr}"
