"""Reading and writing a matrix that is a memory: S k and S + v k', every head in one batched product."""

import torch
from torch import Tensor


def retrieve(S: Tensor, k: Tensor) -> Tensor:
    """S k for `[..., i, j]` and `[..., j]`."""
    return (S @ k.unsqueeze(-1)).squeeze(-1)


def write(S: Tensor, v: Tensor, k: Tensor) -> Tensor:
    """S + v k' for `[..., i, j]`, `[..., i]` and `[..., j]`."""
    rows, columns = S.shape[-2:]
    flat = torch.baddbmm(S.reshape(-1, rows, columns), v.reshape(-1, rows, 1), k.reshape(-1, 1, columns))
    return flat.view_as(S)
