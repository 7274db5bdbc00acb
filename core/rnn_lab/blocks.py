"""Ways to walk through a model's layers: what they all turn into another of its kind, and time cut and joined."""

from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from torch import Tensor

from rnn_lab.layer import State

Blocks = Callable[
    [range, Tensor, Tensor | None, list[State] | None, Tensor | None], tuple[Tensor, Tensor | None, list[State]]
]
"""LM.blocks: indices, residual stream, what is still to be added to it, states, resets."""


def cut(x_BT: Tensor, ends: Sequence[int]) -> tuple[Tensor, ...]:
    """Chunks of time between `ends`, which begin with 0: views, whose gradients are put together once."""
    sizes = [stop - start for start, stop in pairwise(ends)]
    found: tuple[Tensor, ...] = x_BT.split(sizes, 1)  # type: ignore[no-untyped-call]
    return found


def cut_if(x_BT: Tensor | None, ends: Sequence[int]) -> Sequence[Tensor | None]:
    """The same of what may not be there."""
    return [None] * (len(ends) - 1) if x_BT is None else cut(x_BT, ends)


def joined(streams: Sequence[Tensor], added: Sequence[Tensor | None]) -> tuple[Tensor, Tensor | None]:
    """The residual stream of all chunks, and what is still to be added to it, of all or of none."""
    if len(streams) == 1:
        return streams[0], added[0]
    rest = [part for part in added if part is not None]
    return torch.cat(list(streams), 1), torch.cat(rest, 1) if rest else None
