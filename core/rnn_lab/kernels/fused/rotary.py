"""Queries, keys and values out of one projection, queries and keys turned by their positions (rotary embedding).

    qkv_BTF          [q; k; v] side by side, F = 3 H P           past_BJHP  the J rows before, which shift positions

Channels 2i and 2i + 1 of a head are turned by the angle (J + t) theta^(-2i / P), as in Su et al., arXiv 2104.09864.
"""

import torch
from torch import Tensor

from rnn_lab.kernels.dispatch import Backend, Op
from rnn_lab.kernels.triton_support import refuses_triton

PROBE_STEPS, PROBE_PAST = 37, 5


def reference(qkv_BTF: Tensor, past_BJHP: Tensor, theta: float) -> tuple[Tensor, Tensor, Tensor]:
    """In plain torch, products in fp32 (fp64 for fp64).

    Args:
        qkv_BTF: projected queries, keys and values.
        past_BJHP: rows before these; only its shape counts.
        theta: base of the angles.

    Returns:
        q, k and v `[B, T, H, P]` in the dtype of `qkv_BTF`.

    """
    q, k, v = qkv_BTF.view(*qkv_BTF.shape[:2], 3, *past_BJHP.shape[2:]).unbind(2)
    return rotate(q, past_BJHP.shape[1], theta), rotate(k, past_BJHP.shape[1], theta), v


def rotate(x_BTHP: Tensor, first: int, theta: float) -> Tensor:
    """X with its channels turned, step 0 standing at position `first`."""
    T, P = x_BTHP.shape[1], x_BTHP.shape[-1]
    # Angles in fp64: at position 10,000 fp32 is off by a thousandth of a radian.
    positions_T = torch.arange(first, first + T, dtype=torch.float64, device=x_BTHP.device)
    rates_p = theta ** (-torch.arange(0, P, 2, dtype=torch.float64, device=x_BTHP.device) / P)
    angle = torch.outer(positions_T, rates_p)[:, None]
    wide = torch.promote_types(x_BTHP.dtype, torch.float32)
    cos, sin = angle.cos().to(wide), angle.sin().to(wide)
    even, odd = x_BTHP.to(wide).reshape(*x_BTHP.shape[:-1], -1, 2).unbind(-1)
    turned = torch.stack([even * cos - odd * sin, even * sin + odd * cos], -1)
    return turned.flatten(-2).to(x_BTHP.dtype)


def _refuses(qkv_BTF: Tensor, past_BJHP: Tensor, theta: float) -> str | None:
    """Why the Triton kernel cannot run this call, or None."""
    return refuses_triton(qkv_BTF)


def _triton(qkv_BTF: Tensor, past_BJHP: Tensor, theta: float) -> tuple[Tensor, Tensor, Tensor]:
    """One pass over memory; see `reference`."""
    from rnn_lab.kernels.fused.rotary_triton import rotary

    q, k, v = rotary(qkv_BTF, past_BJHP.shape[2], past_BJHP.shape[1], theta)
    return q, k, v


def _probe(qkv_BTF: Tensor, past_BJHP: Tensor, theta: float) -> tuple[Tensor, Tensor, float]:
    """Some steps of two sequences that have begun before."""
    qkv = torch.randn(2, PROBE_STEPS, qkv_BTF.shape[-1], device=qkv_BTF.device).to(qkv_BTF.dtype)
    return qkv, past_BJHP.new_zeros(2, PROBE_PAST, *past_BJHP.shape[2:]), theta


ROTARY = Op("rotary", reference, [Backend("triton", _triton, _refuses)], _probe)
