"""S_t = a_t S_{t-1} + k_t (beta_t (v_t - a_t S_{t-1}' k_t))',  o_t = S_t' q_t   per head, a = exp(g).

    q_BTHN, k_BTHN  queries and keys, normalised and scaled by the caller
    v_BTHV          values                          g_BTH     log decay <= 0
    beta_BTH        write strength                  S_BHNV    state, row = key

The reference is the plain loop. Linear in S, so a backend may work in chunks.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from rnn_lab.kernels import recurrence
from rnn_lab.kernels.dispatch import Op
from rnn_lab.kernels.recurrence import Cell, Streams


def reference(
    q_BTHN: Tensor,
    k_BTHN: Tensor,
    v_BTHV: Tensor,
    g_BTH: Tensor,
    beta_BTH: Tensor,
    S_BHNV: Tensor,
    reset_BT: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Plain loop over time.

    Args:
        q_BTHN: queries.
        k_BTHN: keys.
        v_BTHV: values.
        g_BTH: log decay, applied before the retrieval.
        beta_BTH: write strength.
        S_BHNV: initial state.
        reset_BT: True at t zeroes the state before step t.

    Returns:
        Read-outs `[B, T, H, V]` and the last state, in fp32 (fp64 for fp64 keys).

    """
    inputs = (k_BTHN, v_BTHV, g_BTH, beta_BTH)
    return recurrence.reference(Cell(_update, _read), S_BHNV, Streams(inputs, queries=(q_BTHN,)), reset_BT)


def _update(S: Tensor, k: Tensor, v: Tensor, g: Tensor, beta: Tensor) -> Tensor:
    """Decay, then write the error of what is retrieved."""
    S = torch.exp(g)[..., None, None] * S
    error = beta.unsqueeze(-1) * (v - _read(S, k))
    rows, columns = S.shape[-2:]
    flat = torch.baddbmm(S.flatten(0, 1), k.reshape(-1, rows, 1), error.reshape(-1, 1, columns))
    return flat.view_as(S)


def _read(S: Tensor, q: Tensor) -> Tensor:
    """S' q."""
    return torch.bmm(S.flatten(0, 1).mT, q.flatten(0, 1).unsqueeze(-1)).view(*S.shape[:2], -1)


def _probe(
    q_BTHN: Tensor,
    k_BTHN: Tensor,
    v_BTHV: Tensor,
    g_BTH: Tensor,
    beta_BTH: Tensor,
    S_BHNV: Tensor,
    reset_BT: Tensor | None = None,
) -> tuple[Tensor | None, ...]:
    """One sequence, a step longer than a chunk of 64."""
    few = slice(0, 1), slice(0, 65)
    reset = None if reset_BT is None else reset_BT[few]
    return q_BTHN[few], k_BTHN[few], v_BTHV[few], g_BTH[few], beta_BTH[few], S_BHNV[:1], reset


GATED_DELTA_RULE: Op[Callable[..., tuple[Tensor, Tensor]]] = Op("gated_delta_rule", reference, probe=_probe)
