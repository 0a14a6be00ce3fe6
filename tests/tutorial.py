"""The modules of PyTorch's parametrizations tutorial in eager form, which ours replace."""

import torch
from torch import Tensor, nn


class EagerTriangular(nn.Module):
    def __init__(self, lower: bool = False) -> None:
        super().__init__()
        self.lower = lower


class EagerSymmetric(EagerTriangular):
    def forward(self, X: Tensor) -> Tensor:
        return (
            X.tril() + X.tril(-1).transpose(-1, -2) if self.lower else X.triu() + X.triu(1).transpose(-1, -2)
        )

    def right_inverse(self, A: Tensor) -> Tensor:
        return A.tril() if self.lower else A.triu()


class EagerSkew(EagerTriangular):
    def forward(self, X: Tensor) -> Tensor:
        A = X.tril(-1) if self.lower else X.triu(1)
        return A - A.transpose(-1, -2)

    def right_inverse(self, A: Tensor) -> Tensor:
        return A.tril(-1) if self.lower else A.triu(1)


class EagerCayleyMap(nn.Module):
    def __init__(self, n: int) -> None:
        super().__init__()
        self.register_buffer("Id", torch.eye(n))

    def forward(self, X: Tensor) -> Tensor:
        return torch.linalg.solve(self.Id + X, self.Id - X)


class EagerPruning(nn.Module):
    """A mask of the dtype of the weight."""

    def __init__(self, mask: Tensor, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.register_buffer("mask", mask.to(dtype))

    def forward(self, X: Tensor) -> Tensor:
        return X * self.mask
