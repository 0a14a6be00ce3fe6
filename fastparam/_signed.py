"""Signs of columns, with which a map reaches every orthogonal matrix."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ._arguments import check_flag, ordinary


class Signed(nn.Module):
    r"""The map Q = map(X) D. With the diagonal D of signs it reaches every orthogonal matrix."""

    signs: Tensor | None
    with_signs: bool
    op: str  # what errors call it
    remedy: str = "signs=True"  # what reaches the matrices that the map alone does not
    blocks: int = 1

    def __init__(self, signs: bool) -> None:
        with_signs = check_flag(self.op, "signs", signs)
        super().__init__()
        self.with_signs = with_signs
        self.register_buffer("signs", None)

    def reset_parameters(self) -> None:
        """Makes all signs positive. ``to_empty`` does not call it: after deferred initialization on the meta
        device, you or FSDP call it.
        """
        if self.signs is not None:
            with torch.no_grad():
                self.signs.fill_(1)

    def _solved(self, Q: Tensor, signs: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Returns X with map(X) D = Q, for a tall Q, and the signs if they have to change. Raises
        NotOrthogonalError unless the columns of Q are orthonormal.
        """
        raise NotImplementedError

    def _inverse(self, Q: Tensor, given: Tensor) -> Tensor:
        """Returns A1 above B for a tall Q, and changes the signs that do not serve. Q is the tensor that was
        given, in blocks, and transposed if it is wide.
        """
        shape = (*Q.shape[:-2], Q.shape[-1])
        if self.with_signs and self.signs is None:
            self.signs = ordinary(torch.ones(shape, dtype=Q.dtype, device=Q.device))
        signs = self.signs
        if signs is not None:
            if signs.shape != shape:
                *lead, side = signs.shape
                split = self.blocks > 1
                sizes = [*map(str, lead[:-1] if split else lead), f"{self.blocks} n" if split else "n", "k"]
                raise ValueError(
                    f"{self.op}: expected Q of shape ({', '.join(sizes)}) with min(n, k) = {side}, as the "
                    f"weight has, got {tuple(given.shape)}; an instance belongs to one weight, and another "
                    "one needs its own"
                )
            for of, theirs, ours in (("of dtype", Q.dtype, signs.dtype), ("on", Q.device, signs.device)):
                if theirs != ours:
                    raise ValueError(
                        f"{self.op}: expected Q {of} {plain(ours)}, as its signs are, got {plain(theirs)}"
                    )
        X, changed = self._solved(Q.detach(), signs)
        if changed is not None:
            # Another tensor: graphs and state dicts that hold the one before keep it.
            self.signs = ordinary(changed)
        return X


def plain(thing: object) -> str:
    return str(thing).removeprefix("torch.")
