"""y = x W'   with a backward over the kept positions only, as if what others put in were constants: token_filter.

    x_BTK   input        weight_MK   W        kept_N   kept positions as indices into B * T, int64

    g = dL/dy [kept]     dW = g' x[kept]      dx[kept] = g W, else 0

`gathered` copies the kept rows together and leaves both products to torch's library. The Triton kernel loads rows where
they lie, and both products are one launch: nothing is copied, which matters where a product takes little longer than
moving its rows, and no multiprocessor waits for the last tile of the one before it begins the other.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from rnn_lab.kernels.dispatch import Backend, Op
from rnn_lab.kernels.triton_support import INTERPRETED, refuses_triton

GRAIN = 64
"""Rows or columns that a step of the kernel's products takes in."""
LARGEST = 2048 * 2048
"""Elements of a matrix up to which the kernel is faster than the library on copied rows, on an H100."""


def reference(x_BTK: Tensor, weight_MK: Tensor, kept_N: Tensor) -> Tensor:
    """All positions forward, filtered ones detached.

    Args:
        x_BTK: input.
        weight_MK: matrix.
        kept_N: kept positions.

    """
    y_BTM = F.linear(x_BTK, weight_MK)
    return torch.where(mask_of(x_BTK, kept_N)[..., None], y_BTM, y_BTM.detach())


def mask_of(x_BTK: Tensor, kept_N: Tensor) -> Tensor:
    """Where a position is kept, `[B, T]`."""
    mask = torch.zeros(x_BTK.shape[:2].numel(), dtype=torch.bool, device=x_BTK.device)
    return mask.index_fill_(0, kept_N, True).view(x_BTK.shape[:2])


def gathered(g_BTM: Tensor, x_BTK: Tensor, weight_MK: Tensor, kept_N: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients by x and W from the rows `kept_N` of dL/dy; axes between time and width are further rows."""
    g = g_BTM.flatten(0, 1).index_select(0, kept_N).reshape(-1, g_BTM.shape[-1])
    x = x_BTK.flatten(0, 1).index_select(0, kept_N).reshape(-1, x_BTK.shape[-1])
    small = (g @ weight_MK).view(len(kept_N), *x_BTK.shape[2:])
    dx_BTK = small.new_zeros(x_BTK.shape)
    dx_BTK.flatten(0, 1).index_copy_(0, kept_N, small)
    return dx_BTK, g.mT @ x


def _refuses(x_BTK: Tensor, weight_MK: Tensor, kept_N: Tensor) -> str | None:
    """Why the Triton kernels cannot take this call, or None."""
    if x_BTK.dtype not in (torch.bfloat16, torch.float16) or weight_MK.dtype != x_BTK.dtype:
        return f"{str(x_BTK.dtype).removeprefix('torch.')} products are left to torch's library"
    if x_BTK.dim() != 3:
        return "its rows are not one per position"
    if weight_MK.shape[0] % GRAIN or weight_MK.shape[1] % GRAIN:
        return f"a width of {tuple(weight_MK.shape)} is no multiple of {GRAIN}"
    if weight_MK.numel() > LARGEST:
        return f"torch's library is faster with rows copied together for a matrix of {tuple(weight_MK.shape)}"
    return refuses_triton(x_BTK, weight_MK)


def _triton(x_BTK: Tensor, weight_MK: Tensor, kept_N: Tensor) -> Tensor:
    """The kernels in backward; see `reference`."""
    y_BTM: Tensor = _Fused.apply(x_BTK, weight_MK, kept_N)  # type: ignore[no-untyped-call]
    return y_BTM


class _Fused(torch.autograd.Function):
    """The operation with positions that are known beforehand, as a certificate runs it."""

    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, *args: Tensor) -> Tensor:
        x, weight, _ = args
        ctx.save_for_backward(*args)
        return F.linear(x, weight)

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, *grads: Tensor) -> tuple[Tensor | None, ...]:
        from rnn_lab.kernels.fused.filtered_linear_triton import filtered_gradients

        x_BTK, weight_MK, kept_N = ctx.saved_tensors  # type: ignore[attr-defined]
        return *filtered_gradients(grads[0], x_BTK, weight_MK, kept_N, mask_of(x_BTK, kept_N)), None


def _probe(x_BTK: Tensor, weight_MK: Tensor, kept_N: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Rows that fill no block, of the same widths; all but every third kept."""
    steps = 7 if INTERPRETED else 301
    M, K = (min(n, GRAIN) if INTERPRETED else n for n in weight_MK.shape)
    x = torch.randn(2, steps, K, device=x_BTK.device).to(x_BTK.dtype)
    weight = (torch.randn(M, K, device=x.device) * K**-0.5).to(x.dtype)
    places = torch.arange(2 * steps, device=x.device)
    return x, weight, places[places % 3 != 0]


FILTERED_LINEAR = Op("filtered_linear", reference, [Backend("triton", _triton, _refuses)], _probe)
