"""y_p = x W_p'   with a backward over the kept positions only, as if what others put in were constants: token_filter.

    x_BTK   input        weights   matrices W_p [M_p, K]        kept_N   kept positions as indices into B * T, int64

    g_p = dL/dy_p [kept]     dW_p = g_p' x[kept]      dx[kept] = sum over p of g_p W_p, else 0

`gathered` copies the kept rows together and leaves the products to torch's library. The CUDA C++ kernel loads rows
where they lie, and all products are one launch: nothing is copied, which matters where a product takes little longer
than moving its rows, and no multiprocessor waits for the last tile of one before it begins the next.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from rnn_lab.kernels.dispatch import Backend, Op
from rnn_lab.kernels.fused import filtered_linear_cuda as cuda


def reference(x_BTK: Tensor, weights: tuple[Tensor, ...], kept_N: Tensor) -> tuple[Tensor, ...]:
    """All positions forward, filtered ones detached.

    Args:
        x_BTK: input.
        weights: matrices.
        kept_N: kept positions.

    """
    results = [F.linear(x_BTK, weight) for weight in weights]
    kept = mask_of(x_BTK, kept_N).view(*x_BTK.shape[:2], *[1] * (x_BTK.dim() - 2))
    return tuple(torch.where(kept, y, y.detach()) for y in results)


def mask_of(x_BTK: Tensor, kept_N: Tensor) -> Tensor:
    """Where a position is kept, `[B, T]`."""
    mask_BT = torch.zeros(x_BTK.shape[:2], dtype=torch.bool, device=x_BTK.device)
    mask_BT.view(-1).index_fill_(0, kept_N, True)
    return mask_BT


def gathered(
    grads: Sequence[Tensor], x_BTK: Tensor, weights: Sequence[Tensor], kept_N: Tensor
) -> tuple[Tensor, list[Tensor]]:
    """Gradients by x and every W from the rows `kept_N` of dL/dy; axes between time and width are further rows."""

    def rows(a: Tensor) -> Tensor:
        return a.flatten(0, 1).index_select(0, kept_N).reshape(-1, a.shape[-1])

    few = [rows(g) for g in grads]
    small = few[0] @ weights[0]
    for g, weight in zip(few[1:], weights[1:], strict=True):
        small = torch.addmm(small, g, weight)
    dx_BTK = small.new_zeros(x_BTK.shape)
    dx_BTK.flatten(0, 1).index_copy_(0, kept_N, small.view(len(kept_N), *x_BTK.shape[2:]))
    x = rows(x_BTK)
    return dx_BTK, [g.mT @ x for g in few]


def _refuses(x_BTK: Tensor, weights: tuple[Tensor, ...], kept_N: Tensor) -> str | None:
    """Why the kernel cannot take this call, or None."""
    if x_BTK.dtype != torch.bfloat16 or any(weight.dtype != x_BTK.dtype for weight in weights):
        return f"{str(x_BTK.dtype).removeprefix('torch.')} products are left to torch's library"
    if x_BTK.dim() != 3:
        return "its rows are not one per position"
    if len(weights) > cuda.MAPS:
        return f"{len(weights)} matrices are more than {cuda.MAPS}"
    if any(n % cuda.INNER for weight in weights for n in weight.shape):
        return f"not every width of {[tuple(weight.shape) for weight in weights]} is a multiple of {cuda.INNER}"
    rows = max(x_BTK.shape[:2].numel(), *map(len, weights))
    if rows * max(x_BTK.shape[2], *map(len, weights)) >= 2**31:
        return "an operand has 2^31 numbers or more"
    return cuda.refuses(x_BTK, *weights)


def _run(x_BTK: Tensor, weights: tuple[Tensor, ...], kept_N: Tensor) -> tuple[Tensor, ...]:
    """The kernel in backward; see `reference`."""
    results: tuple[Tensor, ...] = _Fused.apply(x_BTK, kept_N, *weights)  # type: ignore[no-untyped-call]
    return results


class _Fused(torch.autograd.Function):
    """The operation with positions that are known beforehand, as a certificate runs it."""

    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, *args: Tensor) -> tuple[Tensor, ...]:
        x, _, *weights = args
        ctx.save_for_backward(*args)
        return tuple(F.linear(x, weight) for weight in weights)

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, kept_N, *weights = ctx.saved_tensors  # type: ignore[attr-defined]
        dx, dweights = cuda.filtered_gradients(grads, x, weights, kept_N, mask_of(x, kept_N))
        return dx, None, *dweights


def _probe(x_BTK: Tensor, weights: tuple[Tensor, ...], kept_N: Tensor) -> tuple[Tensor, tuple[Tensor, ...], Tensor]:
    """Rows that fill no tile, of the same widths; all but every third kept."""
    steps, K = 1001, x_BTK.shape[-1]
    x = torch.randn(2, steps, K, device=x_BTK.device).to(x_BTK.dtype)
    smaller = tuple((torch.randn(len(w), K, device=x.device) * K**-0.5).to(x.dtype) for w in weights)
    places = torch.arange(2 * steps, device=x.device)
    return x, smaller, places[places % 3 != 0]


FILTERED_LINEAR = Op("filtered_linear", reference, [Backend("cuda", _run, _refuses)], _probe)
