"""A recurrence whose matrices learn from kept positions alone: `objective.collider_recurrent = "kept"`.

    dW = sum over kept (b, t) of (d update(h_{t-1}, x_t, W) / dW)' lambda_t,    lambda_t the whole gradient of h_t

The gradient flows back through every step as ever. It is read off an input of zeros that is added to the state of
each step, so that any backend may walk; what it leaves in W is then one batched product over the rows that are kept.
For that the states are computed once more, so that this is no faster than the whole sum: it is Collider's rule to the
letter.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from rnn_lab.kernels.recurrence import RECURRENCE, Cell, Streams

if TYPE_CHECKING:
    from rnn_lab.token_filter import TokenFilter

Run = Callable[..., tuple[Tensor, Tensor]]


def run(
    recur: Run, held: "TokenFilter", cell: Cell, h: Tensor, streams: Streams, reset_BT: Tensor | None
) -> tuple[Tensor, Tensor]:
    """See recurrence.reference.

    Args:
        recur: the recurrence, without its record.
        held: which positions are kept, known by the time of backward.
        cell: see recurrence.reference.
        h: see recurrence.reference.
        streams: see recurrence.reference.
        reset_BT: see recurrence.reference.

    """
    matrices = tuple(w for w in streams.weights if w.dim() >= 2)
    tap: Tensor = _Tap.apply(held, held.span, cell, h, streams, reset_BT, *matrices)  # type: ignore[no-untyped-call]
    frozen = tuple(w.detach() if w.dim() >= 2 else w for w in streams.weights)
    return recur(
        _tapped(cell, len(streams.inputs), len(streams.weights)), h,
        streams._replace(inputs=(*streams.inputs, tap), weights=frozen), reset_BT,
    )  # fmt: skip


@lru_cache(maxsize=256)
def _tapped(cell: Cell, inputs: int, weights: int) -> Cell:
    """The cell with one more input, which is added to the state; one for each cell, for its traces are kept in it."""
    before = None if cell.before is None else partial(_beside, cell.before, inputs)
    return replace(cell, update=partial(_plus, cell.update, weights), before=before, low_rank=None)


@lru_cache(maxsize=256)
def _bare(cell: Cell) -> Cell:
    """The cell whose read-outs are its states."""
    return Cell(cell.update, before=cell.before)


def _plus(update: Callable[..., Tensor], weights: int, h: Tensor, *args: Tensor) -> Tensor:
    at = len(args) - weights - 1
    return update(h, *args[:at], *args[at + 1 :]) + args[at]


def _beside(before: Callable[..., tuple[Tensor, ...]], inputs: int, *args: Tensor) -> tuple[Tensor, ...]:
    return (*before(*args[:inputs], *args[inputs + 1 :]), args[inputs])


class _Tap(torch.autograd.Function):
    """Zeros `[B, T, ...]` of the state's shape; their gradient becomes that of the matrices."""

    @staticmethod
    def forward(
        ctx: Any, held: "TokenFilter", span: tuple[int, int], cell: Cell, h: Tensor, streams: Streams,
        reset_BT: Tensor | None, *matrices: Tensor,
    ) -> Tensor:  # fmt: skip
        ctx.held, ctx.span, ctx.cell, ctx.reset = held, span, cell, reset_BT
        ctx.sizes = [len(part) for part in streams]
        ctx.save_for_backward(h, *(x.detach() for part in streams for x in part))
        x = streams.inputs[0]
        dtype = torch.promote_types(x.dtype, torch.float32)
        return torch.zeros(x.shape[0], x.shape[1], *h.shape[1:], dtype=dtype, device=x.device)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
        (adjoint,) = grads
        h, *flat = ctx.saved_tensors
        parts, at = [], 0
        for size in ctx.sizes:
            parts.append(tuple(flat[at : at + size]))
            at += size
        streams = Streams(*parts)
        with torch.autocast(h.device.type, enabled=False):
            found = _weight_gradients(ctx.held, ctx.span, ctx.cell, h.detach(), streams, ctx.reset, adjoint)
        return (*[None] * 6, *found)


def _weight_gradients(
    held: "TokenFilter", span: tuple[int, int], cell: Cell, h: Tensor, streams: Streams, reset_BT: Tensor | None,
    adjoint: Tensor,
) -> list[Tensor]:  # fmt: skip
    """Gradients of the matrices from the adjoint of every state."""
    from rnn_lab.token_filter import unfiltered

    dtype = adjoint.dtype
    with torch.no_grad(), unfiltered():
        states, _ = RECURRENCE(
            {}, _bare(cell), h, Streams(streams.inputs, streams.weights, (), streams.biases), reset_BT
        )
        before = torch.cat([h[:, None].to(states), states[:, :-1]], 1)
        if reset_BT is not None:
            before = torch.where(reset_BT.view(*reset_BT.shape, *[1] * (h.dim() - 1)), 0, before)
        rows = [x.flatten(0, 1) for x in (before, adjoint, *streams.inputs)]
        if held.kept_N is not None and span == (0, held.shape[1]):
            rows = [x.index_select(0, held.kept_N) for x in rows]
        elif held.mask_BT is not None:
            mask = held.mask_BT[:, span[0] : span[1]].flatten()
            rows[1] = torch.where(mask.view(-1, *[1] * (rows[1].dim() - 1)), rows[1], 0)
        start, cotangent, *inputs = (x.to(dtype) for x in rows)
        if cell.before is not None:
            inputs = list(cell.before(*inputs, *(b.to(dtype) for b in streams.biases)))
    with torch.enable_grad():
        weights = [w.to(dtype).requires_grad_(w.dim() >= 2) for w in streams.weights]
        after = cell.update(start, *inputs, *weights)
        matrices = [w for w in weights if w.dim() >= 2]
        found = torch.autograd.grad(after, matrices, cotangent, allow_unused=True)
    originals = [w for w in streams.weights if w.dim() >= 2]
    return [torch.zeros_like(w) if g is None else g.to(w.dtype) for w, g in zip(originals, found, strict=True)]
