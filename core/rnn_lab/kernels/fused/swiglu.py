"""y = silu(a) * b   for a and b side by side: the gate of SwiGLU (Shazeer, arXiv 2002.05202).

    x_BTF    [a; b], the result of one product        y_BTf    f = F / 2

One pass over memory per direction; the backward pass computes the gate again from x.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from rnn_lab.kernels.dispatch import Backend, Op
from rnn_lab.kernels.triton_support import refuses_triton

PROBE_SHAPE = 2, 9


def reference(x_BTF: Tensor) -> Tensor:
    """In plain torch, in fp32 (fp64 for fp64).

    Args:
        x_BTF: the gate before SiLU, and what it multiplies.

    Returns:
        y_BTf in the dtype of x.

    """
    a_BTf, b_BTf = x_BTF.to(torch.promote_types(x_BTF.dtype, torch.float32)).chunk(2, -1)
    return (F.silu(a_BTf) * b_BTf).to(x_BTF.dtype)


def _refuses(x_BTF: Tensor) -> str | None:
    """Why the Triton kernels cannot run this call, or None."""
    return refuses_triton(x_BTF)


def _triton(x_BTF: Tensor) -> Tensor:
    """The fused kernels; see `reference`."""
    from rnn_lab.kernels.fused.swiglu_triton import swiglu

    y_BTf: Tensor = swiglu(x_BTF)
    return y_BTf


def _probe(x_BTF: Tensor) -> tuple[Tensor]:
    """Random rows of the same width."""
    return (torch.randn(*PROBE_SHAPE, x_BTF.shape[-1], device=x_BTF.device).to(x_BTF.dtype),)


SWIGLU = Op("swiglu", reference, [Backend("triton", _triton, _refuses)], _probe)
