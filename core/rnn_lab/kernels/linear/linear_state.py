"""S_t = exp(g_t) S_{t-1} + v_t k_t',  o_t = S_t q_t   per head: a linear matrix state with a scalar decay.

    v_BTHP          values                          g_BTH     log decay <= 0; -inf forgets everything
    k_BTGN, q_BTGN  keys and queries; the heads share them in G groups of H / G neighbours
    S_BHPN          state                           o_BTHP    read-outs

The reference is the plain loop. The Triton backend (linear_state_triton) goes over time in chunks, all of whose
products run on tensor cores; Mamba-2's form of the operation, kernels.linear.ssd, shares its kernels.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from rnn_lab.kernels import recurrence
from rnn_lab.kernels.dispatch import Backend, Op
from rnn_lab.kernels.recurrence import Cell, Streams
from rnn_lab.kernels.triton_support import INTERPRETED, refuses_triton

LARGEST_KEY = 256
"""Key size N that the kernels hold in one tile."""
LARGEST_FP32 = 64
"""Sides of an fp32 state that were seen right on an H100."""
PROBE_BATCH, PROBE_STEPS = 2, 133
"""Sizes of a certificate's small run: whole chunks and a part of one."""


def reference(
    v_BTHP: Tensor, k_BTGN: Tensor, q_BTGN: Tensor, g_BTH: Tensor, S_BHPN: Tensor, reset_BT: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Plain loop over time.

    Args:
        v_BTHP: values.
        k_BTGN: keys.
        q_BTGN: queries.
        g_BTH: log decays.
        S_BHPN: initial state.
        reset_BT: True at t zeroes the state before step t.

    Returns:
        Read-outs `[B, T, H, P]` and the last state, in fp32 (fp64 for fp64 values).

    """
    wide = torch.promote_types(v_BTHP.dtype, torch.float32)
    inputs = (torch.exp(g_BTH.to(wide)), v_BTHP, k_BTGN)
    return recurrence.reference(Cell(_update, _read), S_BHPN, Streams(inputs, queries=(q_BTGN,)), reset_BT)


def _update(S_BHPN: Tensor, a_BH: Tensor, v_BHP: Tensor, k_BGN: Tensor) -> Tensor:
    """a S + v k', all heads of a group in one rank-one product."""
    B, G, N = k_BGN.shape
    decayed = (a_BH[..., None, None] * S_BHPN).view(B * G, -1, N)
    return torch.baddbmm(decayed, v_BHP.reshape(B * G, -1, 1), k_BGN.reshape(B * G, 1, N)).view_as(S_BHPN)


def _read(S_BHPN: Tensor, q_BGN: Tensor) -> Tensor:
    """S q, all heads of a group in one product."""
    B, G, N = q_BGN.shape
    return torch.bmm(S_BHPN.reshape(B * G, -1, N), q_BGN.reshape(B * G, N, 1)).view(S_BHPN.shape[:3])


def refuses(
    v_BTHP: Tensor, k_BTGN: Tensor, q_BTGN: Tensor, g_BTH: Tensor, S_BHPN: Tensor, reset_BT: Tensor | None = None
) -> str | None:
    """Why the Triton kernels cannot run this call, or None."""
    if k_BTGN.shape[-1] > LARGEST_KEY:
        return f"keys have size {k_BTGN.shape[-1]}, more than {LARGEST_KEY}"
    if v_BTHP.dtype == torch.float32 and max(S_BHPN.shape[-2:]) > LARGEST_FP32 and not INTERPRETED:
        return f"in fp32 states wider than {LARGEST_FP32} end in an illegal access on Hopper (Triton 3.6)"
    return refuses_triton(v_BTHP, k_BTGN, q_BTGN, g_BTH, S_BHPN)


def run(
    v_BTHP: Tensor, k_BTGN: Tensor, q_BTGN: Tensor, g_BTH: Tensor, S_BHPN: Tensor, reset_BT: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """`reference` by Triton; the read-outs come in the dtype of the values."""
    from rnn_lab.kernels.linear.linear_state_triton import linear_state

    o_BTHP, S_BHPN = linear_state(v_BTHP, None, g_BTH, k_BTGN, q_BTGN, S_BHPN, reset_BT)
    return o_BTHP.to(v_BTHP.dtype), S_BHPN


def probe(
    v_BTHP: Tensor, k_BTGN: Tensor, q_BTGN: Tensor, g_BTH: Tensor, S_BHPN: Tensor, reset_BT: Tensor | None = None
) -> tuple[Tensor | None, ...]:
    """Random arguments of the same kind, long enough for several chunks."""
    v, k, q, g = (random(x, PROBE_BATCH, PROBE_STEPS) for x in (v_BTHP, k_BTGN, q_BTGN, g_BTH))
    return v, k * k.shape[-1] ** -0.5, q, -0.2 * g.abs(), random(S_BHPN, PROBE_BATCH), resets(reset_BT)


def random(x: Tensor, *lead: int) -> Tensor:
    """Normal numbers in the shape of x with other leading axes, in its dtype and on its device."""
    return torch.randn(*lead, *x.shape[len(lead) :], device=x.device).to(x.dtype)


def resets(reset_BT: Tensor | None) -> Tensor | None:
    """Rare resets for a probe of a call that has resets."""
    return None if reset_BT is None else torch.rand(PROBE_BATCH, PROBE_STEPS, device=reset_BT.device) < 0.03


TRITON = Backend("triton", run, refuses)
LINEAR_STATE: Op[Callable[..., tuple[Tensor, Tensor]]] = Op("linear_state", reference, [TRITON], probe)
