# Triton reads the signatures of kernels in its own way.
# mypy: disable-error-code="untyped-decorator,no-untyped-def,assignment,misc"
"""Triton kernels of residual_norm: one row of the stream per program forward, a strided set of rows backward."""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton import Config

from rnn_lab.kernels.functions_triton import narrow
from rnn_lab.kernels.triton_support import INTERPRETED, Tuned, multiprocessors


@triton.jit
def forward_kernel(
    x_ptr, y_ptr, weight_ptr, bias_ptr, sum_ptr, n_ptr, stats_ptr, rows, eps,
    D: tl.constexpr, BLOCK: tl.constexpr, CENTRED: tl.constexpr,
):  # fmt: skip
    """x + y, its norm, and the row's 1 / deviation (and mean) for the way back."""
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK)
    inside = column < D
    at = row * D + column
    x = tl.load(x_ptr + at, mask=inside, other=0.0).to(tl.float32)
    if y_ptr is not None:
        x += tl.load(y_ptr + at, mask=inside, other=0.0).to(tl.float32)
    tl.store(sum_ptr + at, x, mask=inside)
    if CENTRED:
        mean = tl.sum(x, 0) / D
        x = tl.where(inside, x - mean, 0.0)
        tl.store(stats_ptr + rows + row, mean)
    rstd = tl.rsqrt(tl.sum(x * x, 0) / D + eps)
    tl.store(stats_ptr + row, rstd)
    n = x * rstd * tl.load(weight_ptr + column, mask=inside, other=0.0).to(tl.float32)
    if bias_ptr is not None:
        n += tl.load(bias_ptr + column, mask=inside, other=0.0).to(tl.float32)
    tl.store(n_ptr + at, narrow(n, n_ptr.dtype.element_ty), mask=inside)


@triton.jit
def backward_kernel(
    dsum_ptr, dn_ptr, sum_ptr, weight_ptr, stats_ptr, dx_ptr, dy_ptr, partial_ptr, rows,
    D: tl.constexpr, BLOCK: tl.constexpr, CENTRED: tl.constexpr, BIAS: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """Gradient of the stream, its own incoming one included, and this program's share of the weights' gradients."""
    program, programs = tl.program_id(0).to(tl.int64), tl.num_programs(0)
    column = tl.arange(0, BLOCK)
    inside = column < D
    weight = tl.load(weight_ptr + column, mask=inside, other=0.0).to(tl.float32)
    dweight = tl.zeros((BLOCK,), tl.float32)
    dbias = tl.zeros((BLOCK,), tl.float32)
    for row in tl.range(program, rows, programs, num_stages=STAGES):
        at = row * D + column
        x = tl.load(sum_ptr + at, mask=inside, other=0.0).to(tl.float32)
        dn = tl.load(dn_ptr + at, mask=inside, other=0.0).to(tl.float32)
        rstd = tl.load(stats_ptr + row)
        if CENTRED:
            x = tl.where(inside, x - tl.load(stats_ptr + rows + row), 0.0)
        x *= rstd
        g = dn * weight
        dx = g - x * (tl.sum(g * x, 0) / D)
        if CENTRED:
            dx -= tl.sum(g, 0) / D
        dx *= rstd
        if dsum_ptr is not None:
            dx += tl.load(dsum_ptr + at, mask=inside, other=0.0).to(tl.float32)
        tl.store(dx_ptr + at, dx, mask=inside)
        if dy_ptr is not None:
            tl.store(dy_ptr + at, narrow(dx, dy_ptr.dtype.element_ty), mask=inside)
        dweight += dn * x
        if BIAS:
            dbias += dn
    tl.store(partial_ptr + program * D + column, dweight, mask=inside)
    if BIAS:
        tl.store(partial_ptr + (programs + program) * D + column, dbias, mask=inside)


NARROW = 2048
"""Rows up to this width fit the registers of a few warps."""
FORWARD = [Tuned(forward_kernel, [Config({}, num_warps=w) for w in ws], ("D",)) for ws in ((2, 4, 8), (8, 16))]
BACKWARD = [
    Tuned(backward_kernel, [Config({"STAGES": s}, num_warps=w) for w, s in configs], ("D",))
    for configs in (((2, 3), (4, 1), (4, 3), (8, 2)), ((8, 2), (16, 2)))
]
"""Each kernel for rows up to `NARROW`, and for wider ones."""


def _programs(index: int) -> int:
    """Programs that sum a weight's gradient: four per multiprocessor keep the memory busy."""
    return 8 if INTERPRETED else 4 * multiprocessors(index)


@torch.library.custom_op("rnn_lab::residual_norm", mutates_args=())
def residual_norm(
    x_BTD: Tensor,
    y_BTD: Tensor | None,
    weight_D: Tensor,
    bias_D: Tensor | None,
    eps: float,
    centred: bool,
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor, Tensor]:
    """`residual_norm.reference`'s results, and per row 1 / deviation and, if centred, the mean `[1 or 2, rows]`."""
    x = x_BTD.contiguous()
    y = None if y_BTD is None else y_BTD.contiguous()
    sum_BTD, n_BTD, stats = _results(x_BTD, y_BTD, weight_D, bias_D, eps, centred, dtype)
    D, rows = x.shape[-1], stats.shape[1]
    FORWARD[D > NARROW][(rows,)](
        x, y, weight_D, bias_D, sum_BTD, n_BTD, stats, rows, eps,
        D=D, BLOCK=triton.next_power_of_2(D), CENTRED=centred,
    )  # fmt: skip
    return sum_BTD, n_BTD, stats


@residual_norm.register_fake
def _results(
    x_BTD: Tensor,
    y_BTD: Tensor | None,
    weight_D: Tensor,
    bias_D: Tensor | None,
    eps: float,
    centred: bool,
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor, Tensor]:
    rows = x_BTD.numel() // x_BTD.shape[-1]
    stats = x_BTD.new_empty(2 if centred else 1, rows)
    return x_BTD.new_empty(x_BTD.shape), x_BTD.new_empty(x_BTD.shape, dtype=dtype), stats


@torch.library.custom_op("rnn_lab::residual_norm_backward", mutates_args=())
def residual_norm_backward(
    dsum_BTD: Tensor | None,
    dn_BTD: Tensor,
    sum_BTD: Tensor,
    weight_D: Tensor,
    stats: Tensor,
    bias: bool,
    low: torch.dtype | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradient of the stream, the same in dtype `low` (empty when None), those of weight and bias `[1 or 2, D]`."""
    dsum = None if dsum_BTD is None else dsum_BTD.contiguous()
    dn = dn_BTD.contiguous()
    rows, D = stats.shape[1], weight_D.shape[0]
    programs = min(rows, _programs(stats.device.index or 0))
    dx, dy, _ = _gradients(dsum_BTD, dn_BTD, sum_BTD, weight_D, stats, bias, low)
    partial = stats.new_empty(1 + bias, programs, D)
    BACKWARD[D > NARROW][(programs,)](
        dsum, dn, sum_BTD, weight_D, stats, dx, None if low is None else dy, partial, rows,
        D=D, BLOCK=triton.next_power_of_2(D), CENTRED=stats.shape[0] == 2, BIAS=bias,
    )  # fmt: skip
    return dx, dy, partial.sum(1)


@residual_norm_backward.register_fake
def _gradients(
    dsum_BTD: Tensor | None,
    dn_BTD: Tensor,
    sum_BTD: Tensor,
    weight_D: Tensor,
    stats: Tensor,
    bias: bool,
    low: torch.dtype | None,
) -> tuple[Tensor, Tensor, Tensor]:
    dx = sum_BTD.new_empty(sum_BTD.shape)
    dy = dx.new_empty(0 if low is None else dx.shape, dtype=low)
    return dx, dy, stats.new_empty(1 + bias, weight_D.shape[0])


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    _, y, weight, bias, _, _, _ = inputs
    sum_BTD, _, stats = output
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(sum_BTD, weight, stats)
    ctx.bias, ctx.y_dtype = None if bias is None else bias.dtype, None if y is None else y.dtype


def _backward(ctx: Any, dsum: Tensor | None, dn: Tensor | None, dstats: None) -> tuple[Tensor | None, ...]:
    sum_BTD, weight, stats = ctx.saved_tensors
    low = ctx.y_dtype if ctx.y_dtype != torch.float32 else None
    if dn is None:
        return dsum, None if dsum is None or ctx.y_dtype is None else dsum.to(ctx.y_dtype), *[None] * 5
    dx, dy, dweights = torch.ops.rnn_lab.residual_norm_backward(
        dsum, dn, sum_BTD, weight, stats, ctx.bias is not None, low
    )
    added = None if ctx.y_dtype is None else dx if low is None else dy
    dbias = None if ctx.bias is None else dweights[1].to(ctx.bias)
    return dx, added, dweights[0].to(weight.dtype), dbias, None, None, None


residual_norm.register_autograd(_backward, setup_context=_keep)
