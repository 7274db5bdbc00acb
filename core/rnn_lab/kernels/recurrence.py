"""h_t = update(h_{t-1}, inputs_t, weights), o_t = read(h_t, queries_t): the recurrence of every layer.

The reference walks over time in plain torch. It computes in fp32 (fp64 for fp64 inputs) whatever autocast says,
because a recurrent state that is rounded at every step loses more than it saves.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from rnn_lab.kernels.dispatch import Choice, Op


@dataclass(frozen=True)
class Cell:
    """What one step does.

    `update(h, *inputs_t, *weights)` gives the next state `[B, ...]`; `read(h, *queries_t)` what the layer sees
    of it, the state itself when None.
    """

    update: Callable[..., Tensor]
    read: Callable[..., Tensor] | None = None


def reference(
    cell: Cell,
    h: Tensor,
    inputs: tuple[Tensor, ...],
    weights: tuple[Tensor, ...] = (),
    queries: tuple[Tensor, ...] = (),
    reset_BT: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Plain loop over time.

    Args:
        cell: the step.
        h: initial state `[B, ...]`.
        inputs: tensors `[B, T, ...]` for `update`.
        weights: tensors without a time axis for `update`.
        queries: tensors `[B, T, ...]` for `read`.
        reset_BT: True at t zeroes the state before step t.

    Returns:
        Read-outs `[B, T, ...]` and the last state, in the computing dtype.

    """
    dtype = torch.promote_types(inputs[0].dtype, torch.float32)
    h = h.to(dtype)
    with torch.autocast(h.device.type, enabled=False):
        weights = tuple(w.to(dtype) for w in weights)
        inputs_T = [x.to(dtype).unbind(1) for x in inputs]
        queries_T = [q.to(dtype).unbind(1) for q in queries]
        resets_T = None if reset_BT is None else reset_BT.view(*reset_BT.shape, *[1] * (h.dim() - 1)).unbind(1)
        out = []
        for t in range(inputs[0].shape[1]):
            if resets_T is not None:
                h = torch.where(resets_T[t], 0, h)
            h = cell.update(h, *[x[t] for x in inputs_T], *weights)
            out.append(h if cell.read is None else cell.read(h, *[q[t] for q in queries_T]))
        return torch.stack(out, 1), h


RECURRENCE = Op("recurrence", reference)


def recurrence(
    record: dict[str, Choice],
    cell: Cell,
    h: Tensor,
    inputs: tuple[Tensor, ...],
    weights: tuple[Tensor, ...] = (),
    queries: tuple[Tensor, ...] = (),
    reset_BT: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """`reference`'s result from the fastest backend that can run here; the choice is noted in `record`."""
    args = (cell, h, inputs, weights, queries, reset_BT)
    run, record[RECURRENCE.name] = RECURRENCE.select(*args)
    return run(*args)
