"""x' = x + y,  n = norm(x') * weight + bias   over the last axis: the residual stream between two layers.

    x_BTD      residual stream, fp32 under autocast          y_BTD    what the layer before added to it, or None
    weight_D   scale                                         bias_D   shift, or None
    centred    LayerNorm, which takes away the mean first; else RMSNorm

One pass reads both streams and writes both results; one pass back also adds the stream's own gradient.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from rnn_lab.kernels.dispatch import Backend, Op
from rnn_lab.kernels.triton_support import INTERPRETED, refuses_triton

LARGEST_WIDTH = 8192
"""A row is held in the registers of one program."""


def compute_dtype(x: Tensor) -> torch.dtype:
    """Dtype of products on the device of x: autocast's where that is on, else that of x."""
    kind = x.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype


def reference(
    x_BTD: Tensor,
    y_BTD: Tensor | None,
    weight_D: Tensor,
    bias_D: Tensor | None,
    eps: float,
    centred: bool,
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor]:
    """An addition and torch's norm.

    Args:
        x_BTD: residual stream.
        y_BTD: what is added to it; nothing when None.
        weight_D: scale of the norm.
        bias_D: shift of the norm; none when None.
        eps: added to the mean square.
        centred: LayerNorm instead of RMSNorm.
        dtype: dtype of the normalised stream; that of an fp64 stream stays fp64.

    Returns:
        The residual stream x' in its own dtype, and n.

    """
    x_BTD = x_BTD if y_BTD is None else x_BTD + y_BTD
    if centred:
        n_BTD = F.layer_norm(x_BTD, weight_D.shape, weight_D, bias_D, eps)
    else:
        n_BTD = F.rms_norm(x_BTD, weight_D.shape, weight_D, eps)
    return x_BTD, n_BTD if n_BTD.dtype == torch.float64 else n_BTD.to(dtype)


def _refuses(
    x_BTD: Tensor,
    y_BTD: Tensor | None,
    weight_D: Tensor,
    bias_D: Tensor | None,
    eps: float,
    centred: bool,
    dtype: torch.dtype,
) -> str | None:
    """Why the Triton kernels cannot take this call, or None."""
    if x_BTD.dtype != torch.float32:
        return f"the residual stream is {str(x_BTD.dtype).removeprefix('torch.')}; its kernels keep it in fp32"
    if x_BTD.shape[-1] > LARGEST_WIDTH:
        return f"width {x_BTD.shape[-1]} is above {LARGEST_WIDTH}, the widest row of one program"
    if bias_D is not None and not centred:
        return "RMSNorm has no bias in its kernels"
    return refuses_triton(x_BTD, weight_D, *([] if y_BTD is None else [y_BTD]))


def _triton(
    x_BTD: Tensor,
    y_BTD: Tensor | None,
    weight_D: Tensor,
    bias_D: Tensor | None,
    eps: float,
    centred: bool,
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor]:
    """The fused kernels; see `reference`."""
    from rnn_lab.kernels.fused.residual_norm_triton import residual_norm

    sum_BTD, n_BTD, _ = residual_norm(x_BTD, y_BTD, weight_D, bias_D, eps, centred, dtype)
    return sum_BTD, n_BTD


def _probe(
    x_BTD: Tensor,
    y_BTD: Tensor | None,
    weight_D: Tensor,
    bias_D: Tensor | None,
    eps: float,
    centred: bool,
    dtype: torch.dtype,
) -> tuple[Tensor | float | torch.dtype | None, ...]:
    """More rows than the backward pass has programs, each away from a mean of zero."""
    steps = 9 if INTERPRETED else 600
    x, y = (None if t is None else torch.randn(2, steps, t.shape[-1]).to(t) + 0.5 for t in (x_BTD, y_BTD))
    bias = None if bias_D is None else torch.randn_like(bias_D)
    return x, y, 1 + 0.1 * torch.randn_like(weight_D), bias, eps, centred, dtype


RESIDUAL_NORM = Op("residual_norm", reference, [Backend("triton", _triton, _refuses)], _probe)
