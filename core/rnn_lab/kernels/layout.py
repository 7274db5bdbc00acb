"""Tensors that lie in memory as others do: kernels take a piece of wider rows in other ways than a whole."""

import torch
from torch import Tensor

LINE = 64
"""Elements to which a copy begins where its original does: no instruction asks for more."""


def piece(x: Tensor, rows: Tensor, picked: Tensor) -> Tensor:
    """A copy of sequences and steps of x `[B, T, ...]`: as far apart and beginning in a line where those of x do."""
    small = x.detach()[rows][:, picked]
    if not small.numel() or not x[0, 0].is_contiguous():
        return small
    width, first = small[0, 0].numel(), x.storage_offset() % LINE
    apart = max(width, x.stride(1) if x.shape[1] > 1 else 0)
    if apart == width and not first:
        return small
    wide = small.new_zeros(first + len(small) * small.shape[1] * apart)
    return wide.as_strided(small.shape, (small.shape[1] * apart, apart, *small.stride()[2:]), first).copy_(small)


def laid_out_as(x: Tensor, dtype: torch.dtype) -> Tensor:
    """A copy with the strides and the alignment of `x`: kernels take a piece of wider rows in other ways than a whole.

    Where elements of `x` share memory the copy is contiguous.
    """
    first = x.storage_offset() % LINE
    span = first + 1 + sum((n - 1) * step for n, step in zip(x.shape, x.stride(), strict=True))
    if not x.numel() or not _apart(x):
        return x.to(dtype, copy=True)
    return x.new_empty(span, dtype=dtype).as_strided(x.shape, x.stride(), first).copy_(x)


def _apart(x: Tensor) -> bool:
    """Whether each element has memory of its own, by axes that lie one inside the other."""
    inside = 1
    for step, n in sorted((step, n) for n, step in zip(x.shape, x.stride(), strict=True) if n > 1):
        if step < inside:
            return False
        inside = step * n
    return True
