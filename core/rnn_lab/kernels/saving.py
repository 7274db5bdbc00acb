"""What an operation over streams and weights saves for its way back."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor


def keep(ctx: Any, marks: Tensor, xs: Sequence[Tensor], ws: Sequence[Tensor], reset: Tensor | None) -> None:
    """Save marks, streams, weights and resets, and ask for gradients that are never None."""
    ctx.counts, ctx.reset = (len(xs), len(ws)), reset is not None
    ctx.save_for_backward(marks, *xs, *ws, *(() if reset is None else (reset,)))
    ctx.set_materialize_grads(True)


def kept(ctx: Any) -> tuple[Tensor, list[Tensor], list[Tensor], Tensor | None]:
    """What `keep` saved, in its order."""
    marks, *rest = ctx.saved_tensors
    n_x, n_w = ctx.counts
    return marks, rest[:n_x], rest[n_x : n_x + n_w], rest[-1] if ctx.reset else None
