"""h_t = exp(dt_t A) * h_{t-1} + dt_t x_t B_t',  y_t = h_t C_t   per head: Mamba-2's state-space recurrence.

    x_BTHP   input, P channels per head            dt_BTH  step size > 0
    A_H      decay rate < 0                        B_BTS, C_BTS  write and read vectors, shared by all heads
    h_BHPS   state                                 y_BTHP  read-outs, without the skip D * x

The reference is the plain loop. Linear in h, so a backend may work in chunks.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from rnn_lab.kernels import recurrence
from rnn_lab.kernels.dispatch import Op
from rnn_lab.kernels.recurrence import Cell, Streams


def reference(
    x_BTHP: Tensor,
    dt_BTH: Tensor,
    A_H: Tensor,
    B_BTS: Tensor,
    C_BTS: Tensor,
    h_BHPS: Tensor,
    reset_BT: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Plain loop over time.

    Args:
        x_BTHP: input.
        dt_BTH: step sizes.
        A_H: decay rates.
        B_BTS: write vectors.
        C_BTS: read vectors.
        h_BHPS: initial state.
        reset_BT: True at t zeroes the state before step t.

    Returns:
        Read-outs `[B, T, H, P]` and the last state, in fp32 (fp64 for an fp64 x).

    """
    wide = torch.promote_types(x_BTHP.dtype, torch.float32)
    dt_BTH = dt_BTH.to(wide)
    inputs = (torch.exp(dt_BTH * A_H.to(wide)), dt_BTH.unsqueeze(-1) * x_BTHP.to(wide), B_BTS)
    y_BTd, h = recurrence.reference(Cell(_update, _read), h_BHPS, Streams(inputs, queries=(C_BTS,)), reset_BT)
    return y_BTd.view(x_BTHP.shape), h


def _update(h_BHPS: Tensor, a_BH: Tensor, u_BHP: Tensor, B_BS: Tensor) -> Tensor:
    """a h + u B', all heads in one rank-one product."""
    decayed_BdS = (a_BH[..., None, None] * h_BHPS).flatten(1, 2)
    return torch.baddbmm(decayed_BdS, u_BHP.flatten(1, 2).unsqueeze(-1), B_BS.unsqueeze(-2)).view_as(h_BHPS)


def _read(h_BHPS: Tensor, C_BS: Tensor) -> Tensor:
    """h C, heads flattened."""
    return torch.bmm(h_BHPS.flatten(1, 2), C_BS.unsqueeze(-1)).squeeze(-1)


def _probe(
    x_BTHP: Tensor,
    dt_BTH: Tensor,
    A_H: Tensor,
    B_BTS: Tensor,
    C_BTS: Tensor,
    h_BHPS: Tensor,
    reset_BT: Tensor | None = None,
) -> tuple[Tensor | None, ...]:
    """One sequence, a step longer than a chunk of 64."""
    few = slice(0, 1), slice(0, 65)
    reset = None if reset_BT is None else reset_BT[few]
    return x_BTHP[few], dt_BTH[few], A_H, B_BTS[few], C_BTS[few], h_BHPS[:1], reset


SSD: Op[Callable[..., tuple[Tensor, Tensor]]] = Op("ssd", reference, probe=_probe)
