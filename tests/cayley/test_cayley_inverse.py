"""The inverse of the Cayley map: assigning or registering any orthogonal matrix, and the plain inverse as a
function.
"""

import itertools

import pytest
import torch
from families import haar, orthogonal_matrices
from orthogonality import defect
from table import F64, REAL
from test_orthogonal import holder, register
from torch import nn

from fastparam import _C, CayleyMap, NotOrthogonalError, SkewCayley, SkewExponential
from fastparam._cayley_inverse import greedy_signs
from fastparam._orthogonality import double_of
from fastparam.functional import cayley, cayley_inverse, skew_cayley

ROUND_TRIP = {torch.float32: 1e-5, F64: 1e-12, torch.bfloat16: 0.05, torch.float16: 0.01}


@pytest.mark.parametrize("dtype", [torch.float32, F64], ids=str)
@pytest.mark.parametrize("n", [1, 2, 3, 5, 8, 16, 33, 64, 100, 256, 512])
def test_every_orthogonal_matrix_comes_back(n, dtype):
    for (name, Q), alpha, lower in zip(
        orthogonal_matrices(n), itertools.cycle([1.0, -0.5, -1.0, 2.0]), itertools.cycle([False, True, True])
    ):
        Q = Q.to(dtype)
        for made in (SkewCayley(alpha, lower), CayleyMap(alpha=alpha, signs=True)):
            with torch.no_grad():
                X = made.right_inverse(Q)
                back = made(X)
            assert X.dtype == dtype and X.isfinite().all()
            assert (back - Q).abs().max() <= ROUND_TRIP[dtype], (name, alpha)
            if isinstance(made, SkewCayley):
                assert ((X.triu() if lower else X.tril()) == 0).all()
            else:
                assert torch.equal(X, -X.mT)


@pytest.mark.parametrize("dtype", REAL, ids=str)
@pytest.mark.parametrize(
    "shape",
    [(7, 3), (3, 7), (64, 64), (100, 20), (3, 20, 8), (2, 8, 20), (4, 5, 5), (256, 255), (9, 1)],
    ids=str,
)
def test_assignment(shape, dtype):
    layer = register(holder(torch.randn(shape).to(dtype)), SkewCayley(-0.5, lower=True))
    for _ in range(4):
        Q = haar(*shape, dtype=dtype)
        layer.weight = Q
        assert (layer.weight - Q).abs().max() <= ROUND_TRIP[dtype]


@pytest.mark.parametrize("dtype", [torch.float32, F64, torch.complex128], ids=str)
def test_elimination_with_greedy_signs_meets_no_small_pivot(dtype):
    """For tall matrices, for matrices that a reflection leaves unchanged, and for pivots that are zero."""
    swap = torch.eye(4, dtype=dtype).flip(0)
    for Q in (
        *(haar(*s, dtype=dtype) for s in ((1, 1), (5, 5), (9, 4), (3, 40, 40))),
        swap,
        -swap,
        -swap[:, :2],
    ):
        signs, k = greedy_signs(Q), Q.shape[-1]
        assert signs.shape == (*Q.shape[:-2], k) and (signs.abs() == 1).all()
        S = Q[..., :k, :].to(double_of(Q)) + torch.diag_embed(signs)
        for j in range(k):
            assert (S[..., j, j].abs() > 0.999).all(), (Q, j)
            S = S - S[..., :, j, None] * S[..., j, None, :] / S[..., j, None, j, None]
        if Q.shape[-2] == k and not Q.is_complex():
            assert torch.equal(signs.prod(-1), torch.linalg.det(Q.double()).sign().to(signs))


@pytest.mark.parametrize("dtype", [torch.float32, F64], ids=str)
@pytest.mark.parametrize("n", [1, 3, 4, 30, 65, 200, 300])
def test_the_kernel_chooses_the_signs_of_a_qr_decomposition(n, dtype):
    """In the precision of the dtype and in double, alone and in a batch; given signs are kept up to a size of
    A.
    """
    Q = torch.stack([haar(n, n, dtype=dtype, det=det) for det in (1, -1)])
    R, tau = torch.geqrf(Q)
    greedy = torch.where((R.diagonal(dim1=-2, dim2=-1) < 0) == (tau == 0), -1.0, 1.0).double()
    I = torch.eye(n, dtype=F64)
    expected = 2 * torch.linalg.inv(Q.double() * greedy.unsqueeze(-2) + I) - I
    for single in (True, False):
        A, D, changed = _C.eliminate(Q, None, 1e4, single)
        assert changed and torch.equal(D, greedy)
        close = 1e-4 if single and dtype == torch.float32 else 1e-11
        torch.testing.assert_close(A, expected, rtol=close, atol=close)
        B, E, changed = _C.eliminate(Q, D.to(dtype), 1e4, single)
        assert torch.equal(E, D) and not changed
        torch.testing.assert_close(B, expected, rtol=close, atol=close)
    B, E, changed = _C.eliminate(Q, torch.ones(2, n, dtype=dtype), 1e4, False)
    assert changed and torch.equal(E[1], D[1]) and torch.equal(B[1], A[1])


@pytest.mark.parametrize("n", [40, 100, 300])
@pytest.mark.parametrize("signs", [True, False])
def test_what_is_not_orthogonal_is_refused_although_its_norm_is(n, signs):
    """One entry of the matrix is wrong, or two columns are parallel."""
    Q = haar(n, n, dtype=torch.float32, det=1)
    wrong, parallel = Q.clone(), Q.clone()
    wrong[1, 2] += 0.05
    parallel[:, 3] = parallel[:, 4]
    for W in (wrong, parallel):
        module = SkewCayley(signs=signs)
        with pytest.raises(NotOrthogonalError):
            module.right_inverse(W)
        assert module.signs is None or (module.signs == 1).all()


@pytest.mark.parametrize("sign", [1, -1])
def test_a_mean_of_two_columns_is_refused(sign):
    """A matrix that differs in the sum or the difference of two columns alone. The vectors that tell the loss
    must not have two entries of equal size; 62 and 160 agreed when they were signs.
    """
    Q = haar(300, 300, dtype=torch.float32, det=1)
    Q[:, 160] *= sign
    Q[:, [62, 160]] = Q[:, [62, 160]].mean(1, keepdim=True)
    Q[:, 160] *= sign
    layer = register(holder(torch.eye(300)), SkewCayley())
    with pytest.raises(NotOrthogonalError):
        layer.weight = Q
    assert torch.equal(layer.weight, torch.eye(300))


@pytest.mark.parametrize("dtype", [torch.float32, torch.complex64], ids=str)
def test_what_is_not_quite_orthogonal_is_no_reason_for_other_signs(dtype):
    """The loss of a drifted matrix is about the same with all signs, and larger than what they are changed
    for. Without signs, it is not taken for an eigenvalue near -1.
    """
    eps = torch.finfo(dtype).eps
    for n in (8, 64):
        Q = skew_cayley(torch.randn(20, n, n, dtype=dtype) / n**0.5)
        Q += 200 * eps * torch.randn(Q.shape, dtype=dtype)
        made = SkewCayley()
        made(made.right_inverse(Q))
        assert (made.signs.real == 1).all()
        scaled = (1 + 300 * n**0.5 * eps) * torch.eye(n, dtype=dtype)
        for made in (SkewCayley(signs=False), CayleyMap()):
            torch.testing.assert_close(made(made.right_inverse(scaled)), torch.eye(n, dtype=dtype))


def hadamard(n):
    H = torch.ones(1, 1)
    while len(H) < n:
        H = torch.cat([torch.cat([H, H], 1), torch.cat([H, -H], 1)])
    return H / n**0.5


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, *REAL[:2]], ids=str)
def test_a_row_of_another_norm_is_no_rounding(dtype):
    """It changes each entry of Q^T Q by no more than the rounding of a half type may."""
    for factor in (1.5, 2.0, 2.5, 3.0):
        Q = hadamard(256).to(dtype)
        Q[3] *= factor
        layer = register(holder(torch.eye(256, dtype=dtype)), SkewCayley())
        with pytest.raises(NotOrthogonalError, match="got one with max "):
            layer.weight = Q
        assert torch.equal(layer.weight, torch.eye(256, dtype=dtype))
        started = register(holder(Q), SkewCayley())  # from Q as the free parameter
        assert torch.equal(started.parametrizations.weight.original, Q)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("made", [SkewCayley, SkewExponential], ids=lambda made: made.__name__)
def test_a_large_matrix_that_has_lost_a_dimension(made, dtype):
    for n in (260, 300):
        Q, v = haar(n, n), nn.functional.normalize(torch.randn(n, 1, dtype=F64), dim=0)
        with pytest.raises(NotOrthogonalError):
            made().right_inverse((Q - Q @ v @ v.mT).bfloat16().to(dtype))
        back = made().right_inverse(haar(n, n, det=1).bfloat16().to(dtype))
        assert back.dtype == dtype


def test_an_alpha_that_the_map_takes_for_zero():
    for n in (95, 96, 200):
        layer = register(holder(torch.eye(n)), SkewCayley(alpha=1e-38))
        with pytest.raises(ValueError, match="expected an alpha for which float32 can represent X"):
            layer.weight = torch.eye(n).roll(1, 0)


@pytest.mark.parametrize("n", [94, 96, 200])
def test_a_few_large_entries_cost_no_digits(n):
    """The map of X rounds by as much as its largest entry, and other signs make it smaller."""
    for seed in range(8):
        torch.manual_seed(seed)
        A = torch.randn(n, n, dtype=F64) / (2 * n**0.5)
        A = A - A.mT
        A[0, 1], A[1, 0] = 1e7, -1e7
        Q = torch.linalg.solve(torch.eye(n) + A, torch.eye(n) - A)
        layer = register(holder(torch.eye(n, dtype=F64)), SkewCayley())
        layer.weight = torch.diag(torch.where(torch.rand(n) < 0.5, -1.0, 1.0)).double()
        layer.weight = Q
        assert (layer.weight - Q).abs().max() < 1e-12


@pytest.mark.parametrize("made", [SkewCayley, SkewExponential], ids=lambda made: made.__name__)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_what_is_refused_is_refused_under_autocast(made, dtype):
    """The matrix is orthogonal as soon as it is rounded to a lower dtype."""
    layer = register(holder(torch.eye(8)), made())
    with torch.autocast("cpu", dtype), pytest.raises(NotOrthogonalError):
        layer.weight = (1 + torch.finfo(dtype).eps / 3) * torch.eye(8).flip(0)
    assert torch.equal(layer.weight, torch.eye(8))


@pytest.mark.parametrize("n", [5, 110, 300])
def test_in_tensors_that_hold_no_numbers_of_their_own(n):
    """In torch.func, and in the negative view of another tensor."""
    Q, made = haar(n, n), SkewCayley()
    made.right_inverse(Q)  # chooses the signs

    def back(Q):
        return made(made.right_inverse(Q))

    for f in (
        torch.func.functionalize(back),
        lambda Q: torch.func.jvp(back, (Q,), (Q,))[0],
        torch.func.grad(lambda Q: (Q * back(Q)).sum()),
        lambda Q: -back(torch._neg_view(Q)),
    ):
        torch.testing.assert_close(f(Q), Q, rtol=0, atol=1e-12)
    rows = torch.func.vmap(lambda x: x * made.right_inverse(Q))(torch.ones(3))  # it draws no random numbers
    torch.testing.assert_close(rows[2], made.right_inverse(Q))


def test_unitary_matrices_come_back():
    for shape in ((5, 5), (7, 3), (3, 7), (2, 6, 6)):
        Q = haar(*shape, dtype=torch.complex128)
        layer = register(holder(torch.randn(shape, dtype=torch.complex128)), SkewCayley())
        layer.weight = Q
        torch.testing.assert_close(layer.weight.detach(), Q, rtol=0, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, F64, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("n", [8, 100, 192, 256, 300])
def test_without_signs_an_eigenvalue_of_minus_1_is_refused_at_every_order(n, dtype):
    u = haar(n, 2)
    for Q in (haar(n, n, det=-1), torch.eye(n, dtype=F64) - 2 * u @ u.mT):  # the second turns a plane by pi
        layer = register(holder(torch.zeros(n, n, dtype=dtype)), SkewCayley(signs=False))
        with pytest.raises(ValueError, match=r"^SkewCayley: expected a matrix without an eigenvalue near -1"):
            layer.weight = Q.to(dtype)
        assert not layer.parametrizations.weight.original.any()


def test_an_orthogonal_weight_is_kept_on_registration():
    Q = haar(6, 6, dtype=torch.float32)
    for start in (Q, Q[:, :3].clone(), -Q):
        torch.testing.assert_close(
            register(holder(start.clone()), SkewCayley()).weight, start, rtol=0, atol=1e-5
        )
    X = torch.randn(6, 6)
    layer = register(holder(X.clone()), SkewCayley())
    assert torch.equal(layer.parametrizations.weight.original, X), "any other weight is the free parameter"


@pytest.mark.parametrize("lower", [torch.bfloat16, torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize("shape", [(32, 32), (40, 8), (8, 40)], ids=str)
def test_a_rotation_rounded_to_a_lower_dtype_is_kept_up_to_that_rounding(shape, lower):
    """The matrix is published in bfloat16 and registered in float32, or computed in float32 and assigned to a
    layer in float64.
    """
    dtype = F64 if lower == torch.float32 else torch.float32
    Q = haar(*shape).to(lower).to(dtype)
    layer = register(holder(Q.clone()), SkewCayley())
    assert (layer.weight - Q).abs().max() <= 4 * torch.finfo(lower).eps and defect(
        layer.weight
    ) <= 100 * torch.finfo(dtype).eps
    layer = register(holder(torch.zeros(shape, dtype=dtype)), SkewCayley())
    layer.weight = Q
    assert (layer.weight - Q).abs().max() <= 4 * torch.finfo(lower).eps
    with pytest.raises(NotOrthogonalError):
        layer.weight = Q + 3 * torch.finfo(dtype).eps ** 0.5 * torch.randn(shape, dtype=dtype)


def test_the_inverse_as_a_function():
    """It is differentiable, works under vmap and in every dtype, and accepts matrices that are not
    orthogonal.
    """
    for dtype in (torch.float32, F64, torch.bfloat16, torch.float16, torch.complex64):
        X = torch.randn(3, 5, 5).to(dtype)
        A = 0.3 * (X - X.mH)
        for alpha in (1.0, -0.5, 2.0):
            Q = cayley(A, alpha)
            back = cayley_inverse(Q, alpha)
            assert back.dtype == dtype
            torch.testing.assert_close(back, A, rtol=0, atol=100 * torch.finfo(dtype).eps)
    small = cayley_inverse(torch.eye(3).to(torch.complex32))
    assert small.dtype == torch.complex32 and not small.abs().any()
    B = 0.3 * torch.randn(4, 5, 5, dtype=F64)
    torch.testing.assert_close(cayley_inverse(cayley(B, 0.7), 0.7), B)
    Q = cayley(B).requires_grad_()
    assert torch.autograd.gradcheck(cayley_inverse, (Q,)) and torch.autograd.gradgradcheck(
        cayley_inverse, (Q,)
    )
    torch.testing.assert_close(torch.vmap(cayley_inverse)(Q), cayley_inverse(Q))
    sentence = (
        "^cayley_inverse: expected a matrix without the eigenvalue -1; SkewCayley reaches it with signs$"
    )
    for Q in (-torch.eye(3), torch.stack([torch.eye(3), -torch.eye(3)])):
        for f in (cayley_inverse, torch.func.jacrev(cayley_inverse)):
            with pytest.raises(torch.linalg.LinAlgError, match=sentence):
                f(Q)
    with pytest.raises(
        ValueError, match=r"^cayley_inverse: expected Q of shape \(\.\.\., n, n\), got \(3, 4\)$"
    ):
        cayley_inverse(torch.zeros(3, 4))
    for alpha in (0, float("nan")):
        with pytest.raises(ValueError, match=r"^cayley_inverse: expected a finite alpha other than 0, got "):
            cayley_inverse(torch.eye(3), alpha)
