"""S_t = a_t S_{t-1} + k_t (beta_t (v_t - a_t S_{t-1}' k_t))',  o_t = S_t' q_t   per head, a = exp(g).

    q_BTHN, k_BTHN  queries and keys, normalised and scaled by the caller
    v_BTHV          values                          g_BTH     log decay <= 0
    beta_BTH        write strength                  S_BHNV    state, row = key

That is Gated DeltaNet, which decays the state before it retrieves. With `decay_first` off it retrieves first:

    S_t = a_t S_{t-1} + k_t (beta_t (v_t - S_{t-1}' k_t))'

The reference is the plain loop. Linear in S, so the Triton backend works in chunks (gated_delta_rule_chunked).
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from rnn_lab.kernels import recurrence
from rnn_lab.kernels.dispatch import Backend, Op
from rnn_lab.kernels.linear.rank_one import retrieve, write
from rnn_lab.kernels.recurrence import Cell, Streams
from rnn_lab.kernels.triton_support import refuses_triton

LARGEST_KEY = 256
"""Key size of the widest state that a program of the Triton kernels holds."""
PROBE_STEPS = 2 * 64 + 9


def reference(
    q_BTHN: Tensor,
    k_BTHN: Tensor,
    v_BTHV: Tensor,
    g_BTH: Tensor,
    beta_BTH: Tensor,
    S_BHNV: Tensor,
    reset_BT: Tensor | None = None,
    decay_first: bool = True,
) -> tuple[Tensor, Tensor]:
    """Plain loop over time.

    Args:
        q_BTHN: queries.
        k_BTHN: keys.
        v_BTHV: values.
        g_BTH: log decay.
        beta_BTH: write strength.
        S_BHNV: initial state.
        reset_BT: True at t zeroes the state before step t.
        decay_first: whether the state decays before or after the retrieval.

    Returns:
        Read-outs `[B, T, H, V]` and the last state, in fp32 (fp64 for fp64 keys). A kernel may give the read-outs in
        the dtype of the values.

    """
    inputs = (k_BTHN, v_BTHV, g_BTH, beta_BTH)
    cell = Cell(_decay_and_write if decay_first else _write_and_decay, _read)
    return recurrence.reference(cell, S_BHNV, Streams(inputs, queries=(q_BTHN,)), reset_BT)


def _decay_and_write(S: Tensor, k: Tensor, v: Tensor, g: Tensor, beta: Tensor) -> Tensor:
    """Decay, then write the error of what is retrieved."""
    S = torch.exp(g)[..., None, None] * S
    return write(S, k, beta.unsqueeze(-1) * (v - _read(S, k)))


def _write_and_decay(S: Tensor, k: Tensor, v: Tensor, g: Tensor, beta: Tensor) -> Tensor:
    """Write the error of what is retrieved into the decayed state."""
    return write(torch.exp(g)[..., None, None] * S, k, beta.unsqueeze(-1) * (v - _read(S, k)))


def _read(S: Tensor, q: Tensor) -> Tensor:
    """S' q."""
    return retrieve(S.mT, q)


def _run_triton(*args: Any) -> tuple[Tensor, Tensor]:
    """The chunked kernels; their module imports triton."""
    from rnn_lab.kernels.linear.gated_delta_rule_chunked import gated_delta_rule

    return gated_delta_rule(*args)


def _refuses_triton(
    q_BTHN: Tensor,
    k_BTHN: Tensor,
    v_BTHV: Tensor,
    g_BTH: Tensor,
    beta_BTH: Tensor,
    S_BHNV: Tensor,
    reset_BT: Tensor | None = None,
    decay_first: bool = True,
) -> str | None:
    """Why the chunked kernels cannot take this call, or None."""
    if k_BTHN.shape[-1] > LARGEST_KEY:
        return f"keys have size {k_BTHN.shape[-1]}, more than {LARGEST_KEY}"
    return refuses_triton(q_BTHN, k_BTHN, v_BTHV, g_BTH, beta_BTH, S_BHNV)


def _probe(
    q_BTHN: Tensor,
    k_BTHN: Tensor,
    v_BTHV: Tensor,
    g_BTH: Tensor,
    beta_BTH: Tensor,
    S_BHNV: Tensor,
    reset_BT: Tensor | None = None,
    decay_first: bool = True,
) -> tuple[Any, ...]:
    """Two sequences and heads of random numbers, two chunks and a tail long, from a random state."""
    N, V = S_BHNV.shape[-2:]

    def random(like: Tensor, *shape: int) -> Tensor:
        return torch.randn(2, *shape, device=like.device).to(like.dtype)

    q, k = (F.normalize(random(x, PROBE_STEPS, 2, N), dim=-1) for x in (q_BTHN, k_BTHN))
    v, S = random(v_BTHV, PROBE_STEPS, 2, V), random(S_BHNV, 2, N, V)
    g, beta = -F.softplus(random(g_BTH, PROBE_STEPS, 2) - 2), torch.sigmoid(random(beta_BTH, PROBE_STEPS, 2))
    reset = None if reset_BT is None else torch.rand(2, PROBE_STEPS, device=q.device) < 4 / PROBE_STEPS
    return q, k, v, g, beta, S, reset, decay_first


GATED_DELTA_RULE: Op[Callable[..., tuple[Tensor, Tensor]]] = Op(
    "gated_delta_rule", reference, [Backend("triton", _run_triton, _refuses_triton)], _probe
)
