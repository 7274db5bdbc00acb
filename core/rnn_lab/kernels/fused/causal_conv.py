"""y_t = f(bias + sum_k w[:, K-1-k] x_{t-k})   per channel, k = 0 .. K-1, f the identity or SiLU.

    x_BTd     input, any strides                     past_BKd  the K - 1 inputs before it
    weight_d1K, bias_d  taps, the newest last        reset_BT  True where a document begins: no tap reaches across

The new past is what the next T steps need: the last K - 1 inputs, zeros where a document began after them.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from rnn_lab.kernels.dispatch import Backend, Op
from rnn_lab.kernels.triton_support import refuses_triton

MOST_TAPS = 8
"""The kernels unroll the taps."""


def reference(
    x_BTd: Tensor,
    weight_d1K: Tensor,
    bias_d: Tensor | None,
    past_BKd: Tensor,
    reset_BT: Tensor | None,
    silu: bool,
) -> tuple[Tensor, Tensor]:
    """Torch's grouped convolution; with resets, one masked product per tap.

    Args:
        x_BTd: input.
        weight_d1K: taps.
        bias_d: shift; none when None.
        past_BKd: inputs before x, zeros at the start.
        reset_BT: where a new document begins.
        silu: whether SiLU follows.

    Returns:
        y_BTd in the dtype of x, and the new past in the dtype of `past_BKd`.

    """
    taps = weight_d1K.shape[-1]
    K = taps - 1
    full = torch.cat([past_BKd.to(x_BTd.dtype), x_BTd], 1)
    if reset_BT is None:
        y = F.conv1d(full.transpose(1, 2), weight_d1K.to(full.dtype), None, groups=full.shape[2]).transpose(1, 2)
        new_past = full[:, full.shape[1] - K :]
    else:
        document = F.pad(reset_BT.long().cumsum(1), (K, 0))
        y, T = torch.zeros_like(x_BTd), x_BTd.shape[1]
        for tap in range(taps):
            same = document[:, tap : tap + T] == document[:, K:]
            y = y + torch.where(same[..., None], full[:, tap : tap + T], 0) * weight_d1K[:, 0, tap].to(full.dtype)
        alive = document[:, document.shape[1] - K :] == document[:, -1:]
        new_past = torch.where(alive[..., None], full[:, full.shape[1] - K :], 0)
    if bias_d is not None:
        y = y + bias_d.to(y.dtype)
    return F.silu(y) if silu else y, new_past.to(past_BKd.dtype)


def _refuses(
    x_BTd: Tensor,
    weight_d1K: Tensor,
    bias_d: Tensor | None,
    past_BKd: Tensor,
    reset_BT: Tensor | None,
    silu: bool,
) -> str | None:
    """Why the Triton kernels cannot take this call, or None."""
    if weight_d1K.shape[-1] > MOST_TAPS:
        return f"{weight_d1K.shape[-1]} taps are above {MOST_TAPS}, the most that its kernels unroll"
    if x_BTd.shape[1] * max(x_BTd.stride(1), x_BTd.shape[2]) >= 2**31:
        return "one sequence has more than 2^31 values, which its kernels' offsets do not reach"
    return refuses_triton(x_BTd, weight_d1K, past_BKd)


def _triton(
    x_BTd: Tensor,
    weight_d1K: Tensor,
    bias_d: Tensor | None,
    past_BKd: Tensor,
    reset_BT: Tensor | None,
    silu: bool,
) -> tuple[Tensor, Tensor]:
    """The fused kernels; see `reference`."""
    from rnn_lab.kernels.fused.causal_conv_triton import causal_conv

    y_BTd, new_BKd = causal_conv(x_BTd, weight_d1K, bias_d, past_BKd, reset_BT, silu)
    return y_BTd, new_BKd


def _probe(
    x_BTd: Tensor,
    weight_d1K: Tensor,
    bias_d: Tensor | None,
    past_BKd: Tensor,
    reset_BT: Tensor | None,
    silu: bool,
) -> tuple[Tensor | bool | None, ...]:
    """Two sequences that end within a block of time, with a past."""
    x = torch.randn(2, 37, x_BTd.shape[2], device=x_BTd.device).to(x_BTd.dtype)
    reset = None if reset_BT is None else torch.rand(2, 37, device=x.device) < 0.2
    bias = None if bias_d is None else torch.randn_like(bias_d)
    past = torch.randn(2, *past_BKd.shape[1:], device=x.device).to(past_BKd.dtype)
    return x, torch.randn_like(weight_d1K), bias, past, reset, silu


CAUSAL_CONV = Op("causal_conv", reference, [Backend("triton", _triton, _refuses)], _probe)
