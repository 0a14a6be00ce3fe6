"""The values of every op are those of its reference, for every dtype, order, batch and layout."""

import itertools

import pytest
import torch
from table import BATCHES, CASES, COMPLEX, NOT_MAPS, REAL, bits, every, every_public, orders

every_dtype = pytest.mark.parametrize(
    "dtype", REAL + COMPLEX, ids=lambda dtype: str(dtype).removeprefix("torch.")
)

# name -> a view of shape (2, n, n) of fresh storage, created by `new(*shape)`
VIEWS = {
    "transposed": lambda new, n: new(2, n, n).mT,
    "strided": lambda new, n: new(2, 2 * n, 2 * n)[:, ::2, ::2],
    "columns strided": lambda new, n: new(2, n, 3 * n)[:, :, 1::3],
    "rows strided, offset": lambda new, n: new(2, 2 * n, n + 3)[:, 1::2, 1 : n + 1],
    "window of a larger matrix": lambda new, n: new(2, n + 2, n + 5)[:, 1 : n + 1, 3 : n + 3],
    "misaligned": lambda new, n: new(2 * n * n + 1)[1:].view(2, n, n),
    "batch strided": lambda new, n: new(5, n, n)[1::3],
    "batch last": lambda new, n: new(n, n, 2).permute(2, 0, 1),
    "batch in the middle": lambda new, n: new(n, 2, n).permute(1, 0, 2),
    "batch expanded": lambda new, n: new(n, n).expand(2, n, n),
    "rows expanded": lambda new, n: new(2, 1, n).expand(2, n, n),
    "columns expanded": lambda new, n: new(2, n, 1).expand(2, n, n),
    "all expanded": lambda new, n: new(1, 1, 1).expand(2, n, n),
    "overlapping windows": lambda new, n: new(n * n + 1).as_strided((2, n, n), (1, n, 1)),
    "Hankel": lambda new, n: new(2 * n + 2).as_strided((2, n, n), (2, 1, 1)),
}
BATCH_VIEWS = {
    "batches swapped": lambda new, n: new(3, 2, n, n).transpose(0, 1),
    "one batch expanded": lambda new, n: new(2, 1, n, n).expand(2, 3, n, n),
    "other batch expanded": lambda new, n: new(1, 3, n, n).expand(2, 3, n, n),
    "batches apart": lambda new, n: new(2, 4, n, n)[:, :3],
    "batch of one, odd strides": lambda new, n: new(40 + 4 * n * n)[3:].as_strided(
        (1, 3, n, n), (7, n * n + 1, n, 1)
    ),
}


def apply(f, *X):
    return f(*X)


def maker(dtype, device="cpu"):
    return lambda *shape: torch.randn(*shape, dtype=dtype, device=device)


def test_the_table_holds_every_op():
    registered = {name for name in torch._C._dispatch_get_all_op_names() if name.startswith("fastparam::")}
    assert registered == {case.op.name() for case in CASES} | NOT_MAPS


@every
@every_dtype
def test_reference(case, dtype, device):
    for batch in BATCHES:
        for n in orders(batch, dtype):
            X = case.inputs(*batch, n=n, dtype=dtype, device=device, grad=False)
            Y = case.bind(case.op)(*X)
            assert Y.is_contiguous() and Y.dtype == dtype
            assert Y.shape == X[0].shape and Y.device == X[0].device
            case.check_values(apply, X)


@every
@every_dtype
def test_views(case, dtype, device):
    """The bits are those of the contiguous tensor with these values, which are tested above."""
    sizes = (1, 3, 17) if dtype.is_complex else (1, 2, 3, 8, 9, 16, 17, 33, 65)  # complex: no kernel of ours
    f = case.bind(case.op)
    for (name, view), n in itertools.product((VIEWS | BATCH_VIEWS).items(), sizes):
        X = tuple(view(maker(dtype, device), n) for _ in range(case.tensors))
        before = X[0].clone()
        Y = f(*X)
        assert Y.is_contiguous(), (name, n)
        if case.linear or (dtype in REAL and device == "cpu"):  # the result of a BLAS may depend on strides
            assert torch.equal(bits(Y), bits(f(*(x.contiguous() for x in X)))), (name, n)
        else:
            case.check_values(apply, X)
        assert torch.equal(X[0], before), f"the input was written: {name}, {n}"


@every
def test_negated_and_conjugated_views(case, device):
    def imaginary(new, n):
        return new(2, n, n).conj().imag  # negated, with a stride of two

    for n in (1, 3, 8, 9, 17, 33):
        for dtype in REAL:
            X = tuple(torch._neg_view(x) for x in case.inputs(2, n=n, dtype=dtype, device=device, grad=False))
            assert X[0].is_neg()
            case.check_values(apply, X)
        for dtype in COMPLEX:
            lazy = [
                tuple(x.conj() for x in case.inputs(2, n=n, dtype=dtype, device=device, grad=False)),
                tuple(x.mH for x in case.inputs(2, n=n, dtype=dtype, device=device, grad=False)),
                tuple(
                    torch._neg_view(x) for x in case.inputs(2, n=n, dtype=dtype, device=device, grad=False)
                ),
                tuple(imaginary(maker(dtype, device), n) for _ in range(case.tensors)),
            ]
            assert lazy[0][0].is_conj() and lazy[3][0].is_neg()
            for X in lazy:
                Y = case.bind(case.op)(*X)
                assert not (Y.is_conj() or Y.is_neg())
                case.check_values(apply, X)


@every
@every_dtype
def test_empty(case, dtype, device):
    one = torch.ones((), dtype=dtype, device=device)
    for shape in ((0, 3, 3), (0, 0), (2, 0, 0), (0, 0, 0), (2, 0, 3, 3), (0, 100, 100)):
        if shape[-1] < case.smallest:
            continue  # no result has this order
        X = tuple(
            torch.randn(shape, dtype=dtype, device=device, requires_grad=True) for _ in range(case.tensors)
        )
        Y = case.bind(case.op)(*X)
        assert Y.shape == shape and Y.dtype == dtype and Y.is_contiguous()
        assert all(g.shape == shape for g in torch.autograd.grad(Y.sum(), X, one)), shape


@every
@every_dtype
def test_meta(case, dtype):
    for batch in BATCHES:
        X = case.inputs(*batch, n=5, dtype=dtype, grad=False)
        f = case.bind(case.op)
        Y = f(*(x.mT.to("meta") for x in X))
        assert Y.device.type == "meta" and Y.dtype == dtype and Y.shape == X[0].shape and Y.is_contiguous()


@every_public
def test_public_function_is_the_op(case, device):
    X = case.inputs(2, n=5, dtype=torch.float32, device=device, grad=False)
    assert torch.equal(case.bind(case.public)(*X), case.bind(case.op)(*X))
    defaults = [a.default_value for a in case.op._schema.arguments[case.tensors :] if a.has_default_value()]
    if len(defaults) == len(case.others):
        ts = case.prepared(*X)[: case.tensors]
        assert torch.equal(case.public(*ts), case.op(*ts, *defaults))


@every
def test_parameters_give_plain_tensors(case):
    X = tuple(torch.nn.Parameter(x.detach()) for x in case.inputs())
    Y = case.bind(case.entry)(*X)
    assert type(Y) is torch.Tensor and Y.requires_grad
