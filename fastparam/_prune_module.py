"""Pruned weights: the modules that keep a mask, and how it is chosen."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ._arguments import check_integer, check_tensor, described
from ._prune import masked_prune
from ._prune_rules import (
    KeepNOfM,
    Rule,
    as_bool,
    check_semi_structured,
    check_weight,
    drawn,
    on_device,
    select,
    torch_rule,
    with_amount,
)
from ._sharding import beside


class Pruning(nn.Module):
    r"""Prunes a weight with a mask by :func:`~fastparam.functional.masked_prune`.

    .. math:: P(X) = \mathrm{where}(\mathrm{mask}, X, 0)

    The mask is the buffer ``mask``, a bool tensor of the mask's own shape, True where an entry stays. It can
    be read, edited in place, assigned, cast and loaded as any buffer. If a cast or a load has given it
    another dtype, it is read as ``mask != 0``.

    The verbs of :mod:`fastparam.parametrizations` and :meth:`update_` make a new mask. Graphs, state dicts
    and exported programs that hold the previous mask keep it. An edit in place changes the mask for them too,
    and causes an error in the backward pass of such a graph. After ``to_empty`` the mask has to be loaded or
    assigned.

    PyTorch does not subtract bool tensors, so ``AveragedModel(use_buffers=True)`` raises instead of averaging
    masks. Exponential moving averages, and means of checkpoints, keep the union of the masks: an entry is
    dropped only if every mask drops it.

    Args:
        mask: tensor of zeros and ones (or bools) that is broadcastable to the weight. An entry stays where
            the mask is 1 (True).

    Raises:
        ValueError: If ``mask`` holds another value.
        TypeError: If ``mask`` is not a tensor.

    Source: ``PruningParametrization`` of the PyTorch parametrizations tutorial; ``torch.nn.utils.prune``.

    Example:
        >>> layer = torch.nn.Linear(4, 4)
        >>> pruning = fastparam.Pruning.magnitude(layer.weight, 0.5)
        >>> _ = parametrize.register_parametrization(layer, "weight", pruning)
        >>> int((layer.weight == 0).sum()), pruning.mask.dtype
        (8, torch.bool)
        >>> pruning
        Pruning((4, 4), sparsity=0.5)
    """

    mask: Tensor
    rules: tuple[Rule | None, ...]  # that chose the mask, in the order applied; None: it was given

    def __init__(self, mask: Tensor) -> None:
        mask = as_bool(type(self).__name__, "mask", mask)
        super().__init__()
        self.register_buffer("mask", mask)
        self.rules = (None,)

    @staticmethod
    def from_mask(mask: Tensor) -> Pruning:
        """Returns the pruning with this mask. An entry stays where the mask is 1 (True)."""
        return Pruning(mask)

    @staticmethod
    def random(
        X: Tensor,
        p_drop: float = 0.2,
        generator: torch.Generator | None = None,
        *,
        within: Pruning | None = None,
    ) -> Pruning:
        """Returns a pruning that drops each entry with probability ``p_drop``, as the tutorial does.

        Args:
            X: the weight; only its shape and its device are used.
            p_drop: probability between 0 and 1.
            generator: source of the random numbers, on any device.
            within: an earlier pruning of this weight. The entries that it drops stay dropped.

        Raises:
            ValueError: If ``p_drop`` is not between 0 and 1, ``within`` has another shape, or ``X`` has a
                dtype that cannot be pruned.
            TypeError: If an argument has the wrong type.
        """
        previous = _previous("Pruning.random", X, within)
        mask = drawn("Pruning.random", X, p_drop, generator)
        mask = mask if previous is None else mask & previous
        return _chosen(mask, torch_rule("L1Unstructured", float(p_drop)), within)

    @staticmethod
    def magnitude(X: Tensor, amount: float, *, within: Pruning | None = None) -> Pruning:
        """Returns a pruning that drops the entries of least absolute value.

        The mask is that of :func:`torch.nn.utils.prune.l1_unstructured`.

        Args:
            X: the weight.
            amount: number (int) or fraction (float) of the entries to drop.
            within: an earlier pruning of this weight. ``amount`` counts the entries that it keeps.

        Raises:
            ValueError, TypeError: If ``amount``, ``X`` or ``within`` is not valid.
        """
        return _selected("Pruning.magnitude", torch_rule("L1Unstructured", amount), X, within)

    @staticmethod
    def structured(
        X: Tensor, amount: float, n: float | str, dim: int, *, within: Pruning | None = None
    ) -> Pruning:
        """Returns a pruning that drops the slices of least norm.

        The mask is that of :func:`torch.nn.utils.prune.ln_structured`.

        Args:
            X: the weight, of two or more dimensions.
            amount: number (int) or fraction (float) of the slices to drop.
            n: order of the norm, as in :func:`torch.norm`.
            dim: dimension along which slices are counted.
            within: an earlier pruning of this weight. ``amount`` counts the slices of which it keeps an
                entry.

        Raises:
            ValueError, TypeError, IndexError: If ``amount``, ``X``, ``dim`` or ``within`` is not valid.
        """
        op = "Pruning.structured"
        return _selected(op, torch_rule("LnStructured", amount, n, check_integer(op, "dim", dim)), X, within)

    @staticmethod
    def n_m(X: Tensor, n: int = 2, m: int = 4, *, within: Pruning | None = None) -> Pruning:
        """Returns a pruning that keeps the ``n`` largest of every ``m`` neighbours in the last dimension.

        Args:
            X: the weight, of shape (..., k * m).
            n: number of entries of a group that stay. They are those of largest absolute value.
            m: size of a group of neighbours.
            within: an earlier pruning of this weight. The entries that it drops stay dropped, and count
                towards the m - n dropped ones.

        Raises:
            ValueError: If the last dimension is not a multiple of ``m``, ``n`` is greater than ``m``, or
                ``within`` has another shape.
            TypeError: If ``X`` is not a tensor, ``n`` or ``m`` is not an int, or ``within`` is not a Pruning.
        """
        return _selected("Pruning.n_m", KeepNOfM(n, m), X, within)

    @property
    def kept(self) -> Tensor:
        """The mask as a bool tensor, even if a cast or a load has given the buffer another dtype."""
        mask = self.mask  # once: it is slow to look up
        if isinstance(mask, Tensor) and mask.dtype == torch.bool:
            return mask
        check_tensor(type(self).__name__, "mask", mask)
        return mask != 0

    @property
    def sparsity(self) -> float:
        """The fraction of the entries that is dropped."""
        return 1 - int(self.kept.count_nonzero()) / self.mask.numel() if self.mask.numel() else 0.0

    def forward(self, X: Tensor) -> Tensor:
        """Returns ``X`` with +0 where the mask drops an entry."""
        return masked_prune(X, beside(X, self.kept))

    def right_inverse(self, A: Tensor) -> Tensor:
        """Returns ``A`` itself; the weight is then ``A``, pruned.

        The inverse is exact if ``A`` is zero under the mask. Any other ``A`` is projected when it is read:
        the values under the mask are stored but ignored.

        Raises:
            ValueError, TypeError: As for :func:`~fastparam.functional.masked_prune`. The layer is unchanged.
        """
        masked_prune(A, self.kept)  # raises where A does not fit
        return A

    @torch.no_grad()
    def update_(self, X: Tensor, amount: float | None = None) -> Pruning:
        """Chooses a new mask by the same rule and the magnitudes that ``X`` has now; returns the module.

        Pass the raw weight, ``layer.parametrizations.weight.original``, so that dropped entries can come
        back. If the mask was drawn at random, the same number of entries (or slices) is dropped, but those of
        smallest magnitude. If several rules were applied, they are applied again in their order.

        Args:
            X: the weight, or scores of importance, of the shape of the mask.
            amount: replaces the amount of the last rule, now and for later updates. A loop that raises it
                prunes gradually.

        Raises:
            ValueError: If ``X`` has another shape, the mask was supplied instead of chosen by a rule,
                ``amount`` is not valid, or the rule has no amount. Nothing is changed.
            TypeError: If ``X`` is not a tensor, or ``amount`` is not a number.
        """
        op = "Pruning.update_"
        check_weight(op, "X", X)
        if X.shape != self.mask.shape:
            raise ValueError(f"{op}: expected X of shape {tuple(self.mask.shape)}, got {tuple(X.shape)}")
        X = on_device(op, "X", X, self.mask.device)
        rules = self.rules if amount is None else (*self.rules[:-1], with_amount(self.rules[-1], amount))
        mask = torch.ones_like(X, dtype=torch.bool)
        for rule in rules:
            if rule is None:
                raise ValueError(f"{op}: expected a mask chosen by a rule, got one that was supplied")
            mask = select(rule, X, mask)
        self.mask, self.rules = mask, rules
        return self

    def to_sparse_semi_structured(self, X: Tensor) -> Tensor:
        """Returns ``X``, pruned, in the compressed form of :func:`torch.sparse.to_sparse_semi_structured`.

        Args:
            X: the weight. It is a CUDA matrix whose sizes are multiples of the numbers that torch requires
                for its dtype.

        Raises:
            ValueError: If the dtype, the shape, the mask or the device does not fit. The message states the
                rule.
            TypeError: If ``X`` is not a tensor.
        """
        with torch.no_grad():
            pruned = self(X)  # or raises
            check_semi_structured(X, self.kept)
            return torch.sparse.to_sparse_semi_structured(pruned)

    def extra_repr(self) -> str:
        known = type(self.mask) is Tensor and not self.mask.is_meta
        return f"{tuple(self.mask.shape)}" + (f", sparsity={self.sparsity:.3g}" if known else "")


class PruningParametrization(Pruning):
    r"""Drops each entry of a weight with probability ``p_drop``, as :meth:`Pruning.random` does.

    .. math:: P(X) = \mathrm{where}(\mathrm{mask}, X, 0), \quad \Pr(\mathrm{mask}_i = 0) = p_\mathrm{drop}

    The class of this name in the tutorial keeps a float mask out of the checkpoint and on its first device.
    This one is a :class:`Pruning`.

    Args:
        X: the weight; only its shape and its device are used.
        p_drop: probability between 0 and 1.

    Raises:
        ValueError: If ``p_drop`` is not between 0 and 1.
        TypeError: If ``X`` is not a tensor, or ``p_drop`` is not a number.

    Source: ``PruningParametrization`` of the PyTorch parametrizations tutorial.

    Example:
        >>> layer = torch.nn.Linear(30, 40)
        >>> pruning = fastparam.PruningParametrization(layer.weight, p_drop=0.2)
        >>> _ = parametrize.register_parametrization(layer, "weight", pruning)
        >>> 0.1 < (layer.weight == 0).float().mean() < 0.3
        tensor(True)
    """

    rules: tuple[Rule | None, ...]

    def __init__(self, X: Tensor, p_drop: float = 0.2) -> None:
        super().__init__(drawn("PruningParametrization", X, p_drop))
        self.rules = (torch_rule("L1Unstructured", float(p_drop)),)


def _chosen(mask: Tensor, rule: Rule, within: Pruning | None) -> Pruning:
    pruning = Pruning(mask)
    pruning.rules = (*(within.rules if within is not None else ()), rule)
    return pruning


def _selected(op: str, rule: Rule, X: Tensor, within: Pruning | None) -> Pruning:
    return _chosen(select(rule, X, _previous(op, X, within)), rule, within)


def _previous(op: str, X: Tensor, within: Pruning | None) -> Tensor | None:
    """Returns the mask of an earlier pruning of X, in the shape of X; checks both."""
    check_weight(op, "X", X)
    if within is None:
        return None
    if not isinstance(within, Pruning):
        raise TypeError(f"{op}: expected within to be a fastparam.Pruning, got {described(within)}")
    try:
        mask = within.kept.expand(X.shape)
    except RuntimeError:
        theirs = tuple(within.mask.shape)
        raise ValueError(
            f"{op}: expected within to be broadcastable to X of shape {tuple(X.shape)}, got shape {theirs}"
        ) from None
    return on_device(op, "within", mask, X.device)
