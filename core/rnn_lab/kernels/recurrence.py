"""h_t = update(h_{t-1}, inputs_t, weights), y_t = after(read(h_t, queries_t)): the recurrence of every layer.

The reference walks over time in plain torch. It computes in fp32 (fp64 for fp64 inputs) whatever autocast says,
because a recurrent state that is rounded at every step loses more than it saves. On a GPU an element-wise cell becomes
one kernel per direction (kernels.diagonal), Triton or CUDA C++, and so do one over a matrix whose rows never meet
(kernels.matrix) and one whose state meets itself through matrices of weights (kernels.dense); any other runs as a loop
captured in CUDA graphs (kernels.captured.loops).
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from rnn_lab.kernels import recurrence_backends as backends
from rnn_lab.kernels.cell import Cell as Cell
from rnn_lab.kernels.cell import Streams as Streams
from rnn_lab.kernels.dispatch import Backend, Choice, Op
from rnn_lab.kernels.layout import piece


def reference(cell: Cell, h: Tensor, streams: Streams, reset_BT: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Plain loop over time.

    Args:
        cell: the step.
        h: initial state `[B, ...]`.
        streams: everything else.
        reset_BT: True at t zeroes the state before step t.

    Returns:
        Read-outs `[B, T, ...]` in the computing dtype, or with `after` in the dtype of the first input, and the last
        state.

    """
    return run_by(walk, cell, h, streams, reset_BT)


Walk = Callable[[Cell, Tensor, list[Tensor], list[Tensor], list[Tensor], Tensor | None], tuple[Tensor, Tensor]]


def run_by(walk: Walk, cell: Cell, h: Tensor, streams: Streams, reset_BT: Tensor | None) -> tuple[Tensor, Tensor]:
    """`reference` with another walk over time: what surrounds it happens for all steps at once, in fp32 or fp64.

    Args:
        walk: from cell, state, inputs, weights, queries and resets to read-outs and the last state.
        cell: see `reference`.
        h: see `reference`.
        streams: see `reference`.
        reset_BT: see `reference`.

    """
    dtype = torch.promote_types(streams.inputs[0].dtype, torch.float32)
    with torch.autocast(h.device.type, enabled=False):
        inputs, weights, queries, biases, gates = ([x.to(dtype) for x in part] for part in streams)
        if cell.before is not None:
            inputs = list(cell.before(*inputs, *biases))
        y, h = walk(cell, h.to(dtype), inputs, weights, queries, reset_BT)
        return y if cell.after is None else cell.after(y, *gates).to(streams.inputs[0].dtype), h


def walk(
    cell: Cell,
    h: Tensor,
    inputs: list[Tensor],
    weights: list[Tensor],
    queries: list[Tensor],
    reset_BT: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """`update` and `read` step by step: read-outs `[B, T, ...]` and the last state."""
    inputs_T, queries_T = [x.unbind(1) for x in inputs], [q.unbind(1) for q in queries]
    resets_T = None if reset_BT is None else reset_BT.view(*reset_BT.shape, *[1] * (h.dim() - 1)).unbind(1)
    out = []
    for t in range(inputs[0].shape[1]):
        if resets_T is not None:
            h = torch.where(resets_T[t], 0, h)
        h = cell.update(h, *[x[t] for x in inputs_T], *weights)
        out.append(h if cell.read is None else cell.read(h, *[q[t] for q in queries_T]))
    return torch.stack(out, 1), h


RARE = 0.1
"""Share of the steps that a small run resets."""


def _probe(cell: Cell, h: Tensor, streams: Streams, reset_BT: Tensor | None = None) -> list[tuple[Any, ...]]:
    """Two sequences of 19 steps, which fill no whole tiles, and of 16, which do; from a state that is not zero.

    A smaller call, a single step of generation say, is repeated: it shares its certificate with larger ones. Rows that
    are pieces of wider ones, or begin elsewhere, are so here too. Where a call may be reset, each sequence is, once at
    least and behind its first tile.
    """
    rows = torch.arange(2 if len(h) else 0, device=h.device) % max(len(h), 1)

    def cut(steps: int) -> tuple[Any, ...]:
        picked = torch.arange(steps, device=h.device) % streams.inputs[0].shape[1]
        timed = ("inputs", "queries", "gates")
        parts = {name: tuple(piece(x, rows, picked) for x in getattr(streams, name)) for name in timed}
        start = h.detach()[rows]
        start = start + 0.3 * torch.randn_like(start)
        reset = None
        if reset_BT is not None:
            reset = torch.rand(len(rows), steps, device=h.device) < RARE
            reset[:, steps // 2 + 1] = True
        return cell, start, streams._replace(**parts), reset

    return [cut(steps) for steps in (19, 16)]


class Recurrence(Op[Callable[..., tuple[Tensor, Tensor]]]):
    """The operation, whose matrices a token filter may let learn from kept positions alone."""

    def __call__(self, record: dict[str, Choice], *args: Any) -> Any:
        """See Op."""
        from rnn_lab.token_filter import active

        held = active()
        if held is None or held.recurrent == "full" or not held.takes(args[2].inputs[0]):
            return super().__call__(record, *args)
        if not any(w.dim() >= 2 for w in args[2].weights):
            return super().__call__(record, *args)
        from rnn_lab.kernels.kept import run

        cell, h, streams, *reset = args
        return run(partial(super().__call__, record), held, cell, h, streams, reset[0] if reset else None)


RECURRENCE = Recurrence(
    "recurrence",
    reference,
    [
        Backend("diagonal", backends.run_diagonal, backends.refuses_diagonal),
        Backend("diagonal-cuda", backends.run_diagonal_cuda, backends.refuses_diagonal_cuda),
        Backend("matrix", backends.run_matrix, backends.refuses_matrix),
        Backend("dense", backends.run_dense, backends.refuses_dense, leaves_room=True),
        Backend("chunked", backends.run_chunked, backends.refuses_chunked),
        Backend("graph", backends.run_graph, backends.refuses_graph, capturable=False),
    ],
    _probe,
)
