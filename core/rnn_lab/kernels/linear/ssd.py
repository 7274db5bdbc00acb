"""h_t = exp(dt_t A) * h_{t-1} + dt_t x_t B_t',  y_t = h_t C_t   per head: Mamba-2's state-space recurrence.

    x_BTHP   input, P channels per head            dt_BTH  step size > 0
    A_H      decay rate < 0                        B_BTS, C_BTS  write and read vectors, shared by all heads
    h_BHPS   state                                 y_BTHP  read-outs, without the skip D * x

That is linear_state with v = dt x, g = dt A, k = B and q = C in one group. Its kernels form dt x and dt A themselves
and give the gradients by dt and A.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from rnn_lab.kernels.dispatch import Backend, Op
from rnn_lab.kernels.linear import linear_state


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
    v_BTHP, g_BTH = dt_BTH.unsqueeze(-1) * x_BTHP.to(wide), dt_BTH * A_H.to(wide)
    return linear_state.reference(v_BTHP, B_BTS.unsqueeze(2), C_BTS.unsqueeze(2), g_BTH, h_BHPS, reset_BT)


def refuses(
    x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, h: Tensor, reset_BT: Tensor | None = None
) -> str | None:
    """Why the Triton kernels cannot run this call, or None."""
    return linear_state.refuses(x, B.unsqueeze(2), C.unsqueeze(2), dt, h, reset_BT)


def run(
    x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, h: Tensor, reset_BT: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """`reference` by Triton; the read-outs come in the dtype of the input."""
    from rnn_lab.kernels.linear.linear_state_triton import linear_state as kernels

    y_BTHP, h_BHPS = kernels(x, dt, A, B.unsqueeze(2), C.unsqueeze(2), h, reset_BT)
    return y_BTHP.to(x.dtype), h_BHPS


def probe(
    x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, h: Tensor, reset_BT: Tensor | None = None
) -> tuple[Tensor | None, ...]:
    """Random arguments of the same kind, long enough for several chunks."""
    few = linear_state.PROBE_BATCH, linear_state.PROBE_STEPS
    small_x, small_dt, small_B, small_C = (linear_state.random(t, *few) for t in (x, dt, B, C))
    small_B = small_B * B.shape[-1] ** -0.5
    dt_and_A = torch.nn.functional.softplus(small_dt - 1), -torch.exp(linear_state.random(A) - 1)
    return small_x, *dt_and_A, small_B, small_C, linear_state.random(h, few[0]), linear_state.resets(reset_BT)


TRITON = Backend("triton", run, refuses)
SSD: Op[Callable[..., tuple[Tensor, Tensor]]] = Op("ssd", reference, [TRITON], probe)
