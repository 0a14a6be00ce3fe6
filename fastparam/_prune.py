"""Pruned weights: entries under a mask are zero. Functions and modules."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ._arguments import check_tensor
from ._ops import entry
from ._prune_rules import KeepNOfM, Rule, as_bool, check_semi_structured, drawn, methods, select, with_amount


@entry
def masked_prune(X: Tensor, mask: Tensor) -> Tensor:
    r"""Returns ``X`` where the mask is True, and +0 elsewhere, whatever stands there.

    .. math:: P(X)_i = X_i \text{ if } \mathrm{mask}_i \text{ else } 0

    One pass over memory, forward and backward; gradients of pruned entries are exactly +0, and NaN or inf under the mask go nowhere.
    A smaller mask (a row, a column, a channel) is never expanded in memory. The result is contiguous.

    Args:
        X: tensor of any shape and strides; float32, float64, bfloat16, float16 or complex.
        mask: bool, of a shape that broadcasts to that of ``X``; or packed by :func:`pack_mask`, one bit per entry of ``X``.

    Raises:
        ValueError: ``mask`` has another dtype or device, does not broadcast to ``X``, or packs another number of entries.
        TypeError: ``X`` or ``mask`` is not a tensor.

    Source: ``PruningParametrization`` of the PyTorch parametrizations tutorial, which multiplies by the mask.

    Example:
        >>> fastparam.functional.masked_prune(torch.tensor([[1., 2.], [3., float("nan")]]), torch.tensor([True, False]))
        tensor([[1., 0.],
                [3., 0.]])
    """


@entry
def pack_mask(mask: Tensor) -> Tensor:
    r"""Returns the mask with eight entries a byte, in the order of the flattened tensor, the first in the lowest bit.

    .. math:: \mathrm{byte}_j = \sum_{k=0}^{7} 2^k \, \mathrm{mask}_{8j + k}

    Args:
        mask: bool tensor of any shape.

    Returns:
        uint8 tensor of shape (ceil(numel / 8),); bits after the last entry are 0.

    Raises:
        ValueError: ``mask`` is not of dtype bool.
        TypeError: ``mask`` is not a tensor.

    Source: the layout of ``numpy.packbits(mask, bitorder="little")``.

    Example:
        >>> fastparam.functional.pack_mask(torch.tensor([[True, False, True], [False, False, True]]))
        tensor([37], dtype=torch.uint8)
    """


@entry
def unpack_mask(packed: Tensor, size: Sequence[int]) -> Tensor:
    r"""Returns the bool mask of shape ``size`` that :func:`pack_mask` packed.

    .. math:: \mathrm{mask}_i = \lfloor \mathrm{byte}_{\lfloor i / 8 \rfloor} \, 2^{-(i \bmod 8)} \rfloor \bmod 2

    Args:
        packed: uint8 tensor of shape (ceil(numel / 8),).
        size: the shape of the mask.

    Raises:
        ValueError: ``packed`` is not of dtype uint8, or has another length than ``size`` asks for.
        TypeError: ``packed`` is not a tensor, or ``size`` not a sequence of ints.

    Source: the layout of ``numpy.packbits(mask, bitorder="little")``.

    Example:
        >>> fastparam.functional.unpack_mask(torch.tensor([37], dtype=torch.uint8), (2, 3))
        tensor([[ True, False,  True],
                [False, False,  True]])
    """


# ---- modules -------------------------------------------------------------------------------------------------


class Pruning(nn.Module):
    r"""Keeps the entries of a weight that the mask keeps: parametrization by :func:`~fastparam.functional.masked_prune`.

    .. math:: P(X) = \mathrm{where}(\mathrm{mask}, X, 0)

    The mask is the buffer ``mask``, a bool tensor of the mask's own shape, True where an entry stays. It can be read, edited in place,
    assigned, cast and loaded as any buffer: another dtype, which a cast of the module makes, is read as ``mask != 0``. To average masks
    raises in torch, which has no difference of bool tensors; an exponential moving average keeps the union of the masks.

    Args:
        mask: tensor of zeros and ones (or bools) of a shape that broadcasts to that of the weight; where it is 1 (True) an entry stays.

    Raises:
        ValueError: ``mask`` holds another value.
        TypeError: ``mask`` is not a tensor.

    Source: ``PruningParametrization`` of the PyTorch parametrizations tutorial; masks as chosen by ``torch.nn.utils.prune``.

    Example:
        >>> layer = torch.nn.Linear(4, 4)
        >>> _ = parametrize.register_parametrization(layer, "weight", fastparam.Pruning.magnitude(layer.weight, 0.5))
        >>> int((layer.weight == 0).sum()), layer.parametrizations.weight[0].mask.nbytes
        (8, 16)
        >>> layer.parametrizations.weight[0]
        Pruning((4, 4), sparsity=0.5)
    """

    mask: Tensor
    rules: tuple[Rule | None, ...]  # in the order applied; None: chosen by somebody else

    def __init__(self, mask: Tensor) -> None:
        check_tensor(type(self).__name__, "mask", mask)
        super().__init__()
        self.register_buffer("mask", as_bool(type(self).__name__, mask))
        self.rules = (None,)

    @staticmethod
    def from_mask(mask: Tensor) -> Pruning:
        """Returns the pruning by this mask: where it is 1 (True) an entry stays."""
        return Pruning(mask)

    @staticmethod
    def random(X: Tensor, p_drop: float = 0.2, generator: torch.Generator | None = None, *, within: Pruning | None = None) -> Pruning:
        """Returns a pruning that drops each entry of a tensor like ``X`` with probability ``p_drop``, as the tutorial does.

        Args:
            X: the weight; its shape and device count.
            p_drop: between 0 and 1.
            generator: where the randomness comes from; on any device.
            within: an earlier pruning of this weight; what it drops stays dropped.

        Raises:
            ValueError: ``p_drop`` is not between 0 and 1, or ``within`` is of another shape.
            TypeError: ``X`` is not a tensor, ``p_drop`` not a number, ``generator`` not one, or ``within`` not a Pruning.
        """
        check_tensor("Pruning.random", "X", X)
        previous = _previous("Pruning.random", X, within)
        mask = drawn("Pruning.random", X, p_drop, generator)
        return _chosen(mask if previous is None else mask & previous, methods.L1Unstructured(float(p_drop)), within)

    @staticmethod
    def magnitude(X: Tensor, amount: float, *, within: Pruning | None = None) -> Pruning:
        """Returns a pruning that drops the entries of least absolute value: ``torch.nn.utils.prune.l1_unstructured``.

        Args:
            X: the weight.
            amount: how many entries (int), or which share of them (float).
            within: an earlier pruning of this weight; its kept entries are what ``amount`` counts.

        Raises:
            ValueError, TypeError: ``amount`` is not possible, in the words of ``torch.nn.utils.prune``; or ``X`` or ``within``.
        """
        return _selected("Pruning.magnitude", methods.L1Unstructured(amount), X, within)

    @staticmethod
    def structured(X: Tensor, amount: float, n: float | str, dim: int, *, within: Pruning | None = None) -> Pruning:
        """Returns a pruning that drops the slices of least norm: ``torch.nn.utils.prune.ln_structured``.

        Args:
            X: the weight, of two or more dimensions.
            amount: how many slices (int), or which share of them (float).
            n: the order of the norm, as in :func:`torch.norm`.
            dim: the dimension along which slices are counted.
            within: an earlier pruning of this weight; ``amount`` counts the slices that it does not drop whole.

        Raises:
            ValueError, TypeError, IndexError: ``amount``, ``X`` or ``dim`` is not possible, in the words of ``torch.nn.utils.prune``;
                or ``within``.
        """
        return _selected("Pruning.structured", methods.LnStructured(amount, n, dim), X, within)

    @staticmethod
    def n_m(X: Tensor, n: int = 2, m: int = 4, *, within: Pruning | None = None) -> Pruning:
        """Returns a pruning that keeps the ``n`` entries of largest absolute value of every ``m`` neighbours in the last dimension.

        Args:
            X: the weight, of shape (..., k * m).
            n: how many stay.
            m: of how many.
            within: an earlier pruning of this weight; what it drops stays dropped and is counted among the dropped first.

        Raises:
            ValueError: the last dimension is not a multiple of ``m``, ``n`` is more than ``m``, or ``within`` is of another shape.
            TypeError: ``X`` is not a tensor, ``n`` or ``m`` not an int, or ``within`` not a Pruning.
        """
        return _selected("Pruning.n_m", KeepNOfM(n, m), X, within)

    @property
    def kept(self) -> Tensor:
        """The mask as a bool tensor, whatever became of its dtype."""
        return self.mask if self.mask.dtype == torch.bool else self.mask != 0

    @property
    def sparsity(self) -> float:
        """The share of entries that are dropped."""
        return 1 - int(self.mask.count_nonzero()) / self.mask.numel() if self.mask.numel() else 0.0

    def forward(self, X: Tensor) -> Tensor:
        """Returns ``X`` with +0 where the mask drops an entry."""
        return masked_prune(X, self.kept)

    def right_inverse(self, A: Tensor) -> Tensor:
        """Returns ``A`` itself; the weight reads back as ``A`` pruned.

        Exact where ``A`` is zero under the mask. Any other ``A`` is projected when it is read: dropped entries are kept, and not seen.

        Raises:
            ValueError, TypeError: as :func:`~fastparam.functional.masked_prune`; the layer is unchanged.
        """
        check_tensor("masked_prune", "X", A)
        if not torch.compiler.is_compiling():
            if A.device != self.mask.device:
                raise ValueError(f"masked_prune: expected mask on {A.device}, the device of X, got {self.mask.device}")
            masked_prune(A.detach().to("meta"), self.kept.to("meta"))  # the shape rule of the op, without its work
        return A

    @torch.no_grad()
    def update_(self, X: Tensor, amount: float | None = None) -> Pruning:
        """Chooses the mask anew, by the magnitudes of ``X`` now and the same rule; returns self.

        Dropped entries can come back: give it the raw weight, ``layer.parametrizations.weight.original``. After a random choice as
        many units of the same kind are dropped, the smallest instead of any. Prunings composed of several are chosen in that order.
        The mask is a new tensor: graphs, state dicts and exported programs that hold the one before keep it.

        Args:
            X: the weight, or scores of importance, of the shape of the mask.
            amount: in place of that of the rule (the last one), from now on: gradual pruning.

        Raises:
            ValueError: ``X`` has another shape, the mask was given instead of chosen by a rule, or ``amount`` is not possible or the
                rule has none; nothing is changed.
            TypeError: ``X`` is not a tensor, or ``amount`` not a number.
        """
        check_tensor("Pruning.update_", "X", X)
        if X.shape != self.mask.shape:
            raise ValueError(f"Pruning.update_: expected X of shape {tuple(self.mask.shape)}, got {tuple(X.shape)}")
        rules = self.rules if amount is None else (*self.rules[:-1], with_amount(self.rules[-1], amount))
        mask = None
        for rule in rules:
            if rule is None:
                raise ValueError("Pruning.update_: expected a mask chosen by random, magnitude, structured or n_m, got one that was given")
            mask = select(rule, X, mask)
        if mask is not None:
            self.replace_(mask, rules)
        return self

    def replace_(self, mask: Tensor, rules: tuple[Rule | None, ...] = (None,)) -> None:
        """Takes another mask, and the rules that chose it."""
        self.mask, self.rules = as_bool("Pruning", mask), rules

    def to_sparse_semi_structured(self, X: Tensor) -> Tensor:
        """Returns ``X``, pruned, in the compressed form of :func:`torch.sparse.to_sparse_semi_structured`.

        Args:
            X: the weight, a CUDA matrix whose sizes are multiples of what torch asks for its dtype.

        Raises:
            ValueError: the dtype, the shape, the mask or the device does not fit; the sentence states the rule.
            TypeError: ``X`` is not a tensor.
        """
        self.right_inverse(X)
        check_semi_structured(X, self.kept)
        return torch.sparse.to_sparse_semi_structured(self(X.detach()))

    def extra_repr(self) -> str:
        known = type(self.mask) is Tensor and not self.mask.is_meta
        return f"{tuple(self.mask.shape)}" + (f", sparsity={self.sparsity:.3g}" if known else "")


class PruningParametrization(Pruning):
    r"""Drops each entry of a weight with probability ``p_drop``: :meth:`Pruning.random` under the name of the tutorial.

    .. math:: P(X) = \mathrm{where}(\mathrm{mask}, X, 0), \quad \Pr(\mathrm{mask}_i = 0) = p_\mathrm{drop}

    The tutorial's own keeps a float mask out of the checkpoint and on its first device. This one is a :class:`Pruning`.

    Args:
        X: the weight; its shape and device count.
        p_drop: between 0 and 1.

    Raises:
        ValueError: ``p_drop`` is not between 0 and 1.
        TypeError: ``X`` is not a tensor, or ``p_drop`` not a number.

    Source: ``PruningParametrization`` of the PyTorch parametrizations tutorial.

    Example:
        >>> layer = torch.nn.Linear(30, 40)
        >>> _ = parametrize.register_parametrization(layer, "weight", fastparam.PruningParametrization(layer.weight, p_drop=0.2))
        >>> 0.1 < (layer.weight == 0).float().mean() < 0.3
        tensor(True)
    """

    def __init__(self, X: Tensor, p_drop: float = 0.2) -> None:
        check_tensor("PruningParametrization", "X", X)
        super().__init__(drawn("PruningParametrization", X, p_drop))
        self.rules = (methods.L1Unstructured(float(p_drop)),)


def _chosen(mask: Tensor, rule: Rule, within: Pruning | None) -> Pruning:
    pruning = Pruning(mask)
    pruning.rules = (*(within.rules if within is not None else ()), rule)
    return pruning


def _selected(op: str, rule: Rule, X: Tensor, within: Pruning | None) -> Pruning:
    check_tensor(op, "X", X)
    return _chosen(select(rule, X, _previous(op, X, within)), rule, within)


def _previous(op: str, X: Tensor, within: Pruning | None) -> Tensor | None:
    """The mask of an earlier pruning of X, in the shape of X."""
    if within is None:
        return None
    if not isinstance(within, Pruning):
        raise TypeError(f"{op}: expected within to be a fastparam.Pruning, got {type(within).__name__}")
    try:
        return within.kept.expand(X.shape)
    except RuntimeError:
        raise ValueError(f"{op}: expected within to fit X of shape {tuple(X.shape)}, got a mask of {tuple(within.mask.shape)}") from None
