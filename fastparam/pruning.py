"""Pruned weights: entries under a mask are zero, and the mask is one bit an entry that travels with the model."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ._arguments import check_tensor
from ._prune_rules import KeepNOfM, Rule, check_semi_structured, methods, select
from .prune import masked_prune, pack_mask, unpack_mask


class Pruning(nn.Module):
    r"""Keeps the entries of a weight that the mask keeps: parametrization by :func:`~fastparam.functional.masked_prune`.

    .. math:: P(X) = \mathrm{where}(\mathrm{mask}, X, 0)

    The mask is the buffer ``packed``, one bit an entry: it moves, copies and is saved with the model, and no change of dtype touches it.
    Its shape and the rule that chose it belong to the module, as the sizes of a layer do.

    Args:
        mask: tensor of a shape that broadcasts to that of the weight; what is not 0 (False) stays.

    Raises:
        TypeError: ``mask`` is not a tensor.

    Source: ``PruningParametrization`` of the PyTorch parametrizations tutorial; masks as chosen by ``torch.nn.utils.prune``.

    Example:
        >>> layer = torch.nn.Linear(4, 4)
        >>> _ = parametrize.register_parametrization(layer, "weight", fastparam.Pruning.magnitude(layer.weight, 0.5))
        >>> int((layer.weight == 0).sum()), layer.parametrizations.weight[0].packed.nbytes
        (8, 2)
        >>> layer.parametrizations.weight[0]
        Pruning((4, 4), sparsity=0.5)
    """

    packed: Tensor
    shape: torch.Size
    rules: tuple[Rule | None, ...]  # in the order applied; None: chosen by somebody else

    def __init__(self, mask: Tensor) -> None:
        check_tensor(type(self).__name__, "mask", mask)
        super().__init__()
        mask = mask.detach()
        self.shape, self.rules = mask.shape, (None,)
        self.register_buffer("packed", pack_mask(mask if mask.dtype == torch.bool else mask != 0))

    @staticmethod
    def from_mask(mask: Tensor) -> Pruning:
        """Returns the pruning by this mask: what is not 0 (False) stays."""
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
        mask = _drawn("Pruning.random", X, p_drop, generator)
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
    def mask(self) -> Tensor:
        """The mask as a bool tensor, read back from its bits."""
        return unpack_mask(self.packed, self.shape)

    @property
    def sparsity(self) -> float:
        """The share of entries that are dropped."""
        return 1 - int(self.mask.count_nonzero()) / self.shape.numel() if self.shape.numel() else 0.0

    def forward(self, X: Tensor) -> Tensor:
        """Returns ``X`` with +0 where the mask drops an entry."""
        return masked_prune(X, self.packed if X.shape == self.shape else self.mask)

    def right_inverse(self, A: Tensor) -> Tensor:
        """Returns ``A`` itself; the weight reads back as ``A`` pruned.

        Exact where ``A`` is zero under the mask. Any other ``A`` is projected when it is read: dropped entries are kept, and not seen.

        Raises:
            ValueError, TypeError: as :func:`~fastparam.functional.masked_prune`; the layer is unchanged.
        """
        check_tensor("masked_prune", "X", A)
        if isinstance(A, Tensor) and not torch.compiler.is_compiling():
            if A.device != self.packed.device:
                raise ValueError(f"masked_prune: expected mask on {A.device}, the device of X, got {self.packed.device}")
            packed = self.packed.to("meta")  # the shape rule of the op, without its work
            masked_prune(A.detach().to("meta"), packed if A.shape == self.shape else unpack_mask(packed, self.shape))
        return A

    @torch.no_grad()
    def update_(self, X: Tensor) -> Pruning:
        """Chooses the mask anew, by the magnitudes of ``X`` now and the same rule, in the same memory; returns self.

        Dropped entries can come back: give it the raw weight, ``layer.parametrizations.weight.original``. After a random choice as
        many units of the same kind are dropped, the smallest instead of any. Prunings composed of several are chosen in that order.

        Args:
            X: the weight, or scores of importance, of the shape of the mask.

        Raises:
            ValueError: ``X`` has another shape, or the mask was given instead of chosen by a rule; the mask is unchanged.
            TypeError: ``X`` is not a tensor.
        """
        check_tensor("Pruning.update_", "X", X)
        if X.shape != self.shape:
            raise ValueError(f"Pruning.update_: expected X of shape {tuple(self.shape)}, got {tuple(X.shape)}")
        mask = None
        for rule in self.rules:
            if rule is None:
                raise ValueError("Pruning.update_: expected a mask chosen by random, magnitude, structured or n_m, got one that was given")
            mask = select(rule, X, mask)
        if mask is not None:
            self.replace_(mask, self.rules)
        return self

    @torch.no_grad()
    def replace_(self, mask: Tensor, rules: tuple[Rule | None, ...] = (None,)) -> None:
        """Takes another bool mask, in the same memory where its shape is the same."""
        packed = pack_mask(mask)
        if mask.shape == self.shape:
            self.packed.copy_(packed)
        else:
            self.packed = packed
        self.shape, self.rules = mask.shape, rules

    def to_sparse_semi_structured(self, X: Tensor) -> Tensor:
        """Returns ``X``, pruned, in the compressed form of :func:`torch.sparse.to_sparse_semi_structured`.

        Args:
            X: the weight, a CUDA matrix whose sizes are multiples of what torch asks for its dtype.

        Raises:
            ValueError: the dtype, the shape, the mask or the device does not fit; the sentence states the rule.
            TypeError: ``X`` is not a tensor.
        """
        self.right_inverse(X)
        check_semi_structured(X, self.mask)
        return torch.sparse.to_sparse_semi_structured(self(X.detach()))

    def extra_repr(self) -> str:
        known = type(self.packed) is Tensor and not self.packed.is_meta
        return f"{tuple(self.shape)}" + (f", sparsity={self.sparsity:.3g}" if known else "")


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
        super().__init__(_drawn("PruningParametrization", X, p_drop))
        self.rules = (methods.L1Unstructured(float(p_drop)),)


def _drawn(op: str, X: Tensor, p_drop: float, generator: torch.Generator | None = None) -> Tensor:
    """True with probability 1 - p_drop, for every entry of X."""
    if not isinstance(p_drop, (int, float)) or isinstance(p_drop, bool):
        raise TypeError(f"{op}: expected p_drop to be a number, got {type(p_drop).__name__}")
    if not isinstance(generator, (torch.Generator, type(None))):
        raise TypeError(f"{op}: expected generator to be a torch.Generator, got {type(generator).__name__}")
    if not 0 <= p_drop <= 1:
        raise ValueError(f"{op}: expected p_drop between 0 and 1, got {p_drop}")
    if X.is_meta:
        return torch.empty(X.shape, dtype=torch.bool, device="meta")
    device = X.device if generator is None else generator.device
    return (torch.rand(X.shape, generator=generator, device=device, dtype=torch.float32) >= p_drop).to(X.device)


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
        return within.mask.expand(X.shape)
    except RuntimeError:
        raise ValueError(f"{op}: expected within to fit X of shape {tuple(X.shape)}, got a mask of {tuple(within.shape)}") from None
