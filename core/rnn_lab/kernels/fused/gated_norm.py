"""out = w * RMSNorm((y + D x) * silu(z))   over all heads: what follows Mamba-2's recurrence.

    y_BTd, x_BTd, z_BTd  read-outs, the skip's input, the gate; any strides between rows
    D_H                  skip weight per head of d / H neighbours         weight_d  w

One pass over memory per direction, where plain torch makes one per product.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from rnn_lab.kernels.dispatch import Backend, Op
from rnn_lab.kernels.triton_support import refuses_triton

WIDEST = 8192
"""Row length that the kernels hold in registers."""
PROBE_SHAPE = 3, 5


def reference(y_BTd: Tensor, x_BTd: Tensor, z_BTd: Tensor, D_H: Tensor, weight_d: Tensor, eps: float) -> Tensor:
    """In plain torch, in fp32 (fp64 for an fp64 x).

    Args:
        y_BTd: read-outs.
        x_BTd: input of the skip.
        z_BTd: gate before SiLU.
        D_H: skip weight per head.
        weight_d: scale after the norm.
        eps: added to the mean square.

    Returns:
        out_BTd in the dtype of x.

    """
    wide = torch.promote_types(x_BTd.dtype, torch.float32)
    d = x_BTd.shape[-1]
    skip_BTd = D_H.to(wide).repeat_interleave(d // D_H.numel()) * x_BTd
    u_BTd = (y_BTd.to(wide) + skip_BTd) * F.silu(z_BTd.to(wide))
    return F.rms_norm(u_BTd, (d,), weight_d.to(wide), eps).to(x_BTd.dtype)


def refuses(y_BTd: Tensor, x_BTd: Tensor, z_BTd: Tensor, D_H: Tensor, weight_d: Tensor, eps: float) -> str | None:
    """Why the Triton kernels cannot run this call, or None."""
    if x_BTd.shape[-1] > WIDEST:
        return f"rows have {x_BTd.shape[-1]} channels, more than {WIDEST}"
    return refuses_triton(y_BTd, x_BTd, z_BTd, D_H, weight_d)


def run(y_BTd: Tensor, x_BTd: Tensor, z_BTd: Tensor, D_H: Tensor, weight_d: Tensor, eps: float) -> Tensor:
    """`reference` by Triton."""
    from rnn_lab.kernels.fused.gated_norm_triton import gated_norm

    out: Tensor = gated_norm(y_BTd, x_BTd, z_BTd, D_H, weight_d, eps)
    return out


def probe(
    y_BTd: Tensor, x_BTd: Tensor, z_BTd: Tensor, D_H: Tensor, weight_d: Tensor, eps: float
) -> tuple[Tensor | float, ...]:
    """Random arguments of the same kind."""
    rows = (torch.randn(*PROBE_SHAPE, t.shape[-1], device=t.device).to(t.dtype) for t in (y_BTd, x_BTd, z_BTd))
    return *rows, torch.randn_like(D_H), torch.randn_like(weight_d), eps


GATED_NORM: Op[Callable[..., Tensor]] = Op("gated_norm", reference, [Backend("triton", run, refuses)], probe)
