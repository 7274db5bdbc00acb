"""Triton kernels of gated_norm: one row at a time in registers, every tensor read once and written once.

The backward recomputes the row. Its programs walk over rows and sum their parts of dD and dw in registers; torch adds
up the parts, so that nothing depends on the order in which programs run.
"""

# mypy: disable-error-code="no-untyped-def,untyped-decorator,no-untyped-call"
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from rnn_lab.kernels.functions_triton import narrow
from rnn_lab.kernels.triton_support import INTERPRETED, tuned

PROGRAMS = 4 if INTERPRETED else 528
"""Programs of the backward: four for each of an H100's 132 SMs."""
_WARPS = [triton.Config({}, num_warps=warps) for warps in (4, 8)]


@triton.jit
def _row(y_ptr, x_ptr, z_ptr, D, row, y_stride, x_stride, z_stride, i, inside):
    """Y + D x, x, z and sigmoid(z) of one row."""
    y = tl.load((y_ptr + row * y_stride) + i, mask=inside, other=0.0).to(tl.float32)
    x = tl.load((x_ptr + row * x_stride) + i, mask=inside, other=0.0).to(tl.float32)
    z = tl.load((z_ptr + row * z_stride) + i, mask=inside, other=0.0).to(tl.float32)
    return y + D * x, x, z, tl.sigmoid(z)


@tuned(_WARPS, key=("d",))
@triton.jit
def forward_kernel(
    y_ptr, x_ptr, z_ptr, D_ptr, w_ptr, out_ptr, d, P, y_stride, x_stride, z_stride, eps, BLOCK: tl.constexpr
):  # fmt: skip
    """One row; grid (rows,)."""
    row = tl.program_id(0).to(tl.int64)
    i = tl.arange(0, BLOCK)
    inside = i < d
    D = tl.load(D_ptr + i // P, mask=inside, other=0.0).to(tl.float32)
    w = tl.load(w_ptr + i, mask=inside, other=0.0).to(tl.float32)
    a, _, z, gate = _row(y_ptr, x_ptr, z_ptr, D, row, y_stride, x_stride, z_stride, i, inside)
    u = a * z * gate
    r = tl.rsqrt(tl.sum(u * u, 0) / d + eps)
    tl.store((out_ptr + row * d) + i, narrow(u * r * w, out_ptr.dtype.element_ty), mask=inside)


@tuned(_WARPS, key=("d",))
@triton.jit
def backward_kernel(
    dout_ptr, y_ptr, x_ptr, z_ptr, D_ptr, w_ptr, dy_ptr, dx_ptr, dz_ptr, dD_ptr, dw_ptr,
    rows, d, P, y_stride, x_stride, z_stride, eps, BLOCK: tl.constexpr,
):  # fmt: skip
    """Every PROGRAMS-th row; parts of dD, per channel, and dw are `[programs, d]`; grid (programs,)."""
    i = tl.arange(0, BLOCK)
    inside = i < d
    D = tl.load(D_ptr + i // P, mask=inside, other=0.0).to(tl.float32)
    w = tl.load(w_ptr + i, mask=inside, other=0.0).to(tl.float32)
    dD = tl.zeros((BLOCK,), tl.float32)
    dw = tl.zeros((BLOCK,), tl.float32)
    for this in range(tl.program_id(0), rows, tl.num_programs(0)):
        row = tl.cast(this, tl.int64)
        a, x, z, gate = _row(y_ptr, x_ptr, z_ptr, D, row, y_stride, x_stride, z_stride, i, inside)
        dout = tl.load((dout_ptr + row * d) + i, mask=inside, other=0.0).to(tl.float32)
        u = a * z * gate
        r = tl.rsqrt(tl.sum(u * u, 0) / d + eps)
        dw += dout * u * r
        dn = dout * w
        du = r * (dn - u * (r * r * (tl.sum(dn * u, 0) / d)))
        da = du * z * gate
        dD += da * x
        dz = du * a * gate * (1.0 + z * (1.0 - gate))
        tl.store((dy_ptr + row * d) + i, narrow(da, dy_ptr.dtype.element_ty), mask=inside)
        tl.store((dx_ptr + row * d) + i, narrow(da * D, dx_ptr.dtype.element_ty), mask=inside)
        tl.store((dz_ptr + row * d) + i, narrow(dz, dz_ptr.dtype.element_ty), mask=inside)
    part = tl.program_id(0) * d + i
    tl.store(dD_ptr + part, dD, mask=inside)
    tl.store(dw_ptr + part, dw, mask=inside)


def _rows(x_BTd: Tensor) -> Tensor:
    """X with one distance between all its rows; views of a projection stay as they are."""
    even = x_BTd.stride(2) == 1 and x_BTd.stride(0) == x_BTd.shape[1] * x_BTd.stride(1)
    return x_BTd if even else x_BTd.contiguous()


@torch.library.custom_op("rnn_lab::gated_norm", mutates_args=())
def gated_norm(y_BTd: Tensor, x_BTd: Tensor, z_BTd: Tensor, D_H: Tensor, weight_d: Tensor, eps: float) -> Tensor:
    """See kernels.fused.gated_norm."""
    y, x, z = _rows(y_BTd), _rows(x_BTd), _rows(z_BTd)
    d = x.shape[2]
    out = x.new_empty(x.shape)
    forward_kernel[(x.shape[0] * x.shape[1],)](
        y, x, z, D_H, weight_d, out, d, d // D_H.numel(), y.stride(1), x.stride(1), z.stride(1), eps,
        BLOCK=triton.next_power_of_2(d),
    )  # fmt: skip
    return out


@gated_norm.register_fake
def _(y_BTd: Tensor, x_BTd: Tensor, z_BTd: Tensor, D_H: Tensor, weight_d: Tensor, eps: float) -> Tensor:
    return x_BTd.new_empty(x_BTd.shape)


@torch.library.custom_op("rnn_lab::gated_norm_backward", mutates_args=())
def gated_norm_backward(
    dout_BTd: Tensor, y_BTd: Tensor, x_BTd: Tensor, z_BTd: Tensor, D_H: Tensor, weight_d: Tensor, eps: float
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients by y, x, z, D (per program and channel) and weight (per program)."""
    y, x, z = _rows(y_BTd), _rows(x_BTd), _rows(z_BTd)
    dy, dx, dz, dD, dw = _empty_gradients(y, x, z)
    rows, d = x.shape[0] * x.shape[1], x.shape[2]
    backward_kernel[(dD.shape[0],)](
        dout_BTd.contiguous(), y, x, z, D_H, weight_d, dy, dx, dz, dD, dw,
        rows, d, d // D_H.numel(), y.stride(1), x.stride(1), z.stride(1), eps, BLOCK=triton.next_power_of_2(d),
    )  # fmt: skip
    return dy, dx, dz, dD, dw


def _empty_gradients(y: Tensor, x: Tensor, z: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    parts = torch.empty(min(PROGRAMS, x.shape[0] * x.shape[1]), x.shape[2], dtype=torch.float32, device=x.device)
    dy, dx, dz = (t.new_empty(t.shape) for t in (y, x, z))
    return dy, dx, dz, parts, torch.empty_like(parts)


@gated_norm_backward.register_fake
def _(
    dout_BTd: Tensor, y_BTd: Tensor, x_BTd: Tensor, z_BTd: Tensor, D_H: Tensor, weight_d: Tensor, eps: float
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    return _empty_gradients(y_BTd, x_BTd, z_BTd)


def _save(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    *tensors, ctx.eps = inputs
    ctx.save_for_backward(*tensors)


def _backward(ctx: Any, dout_BTd: Tensor) -> tuple[Tensor | None, ...]:
    inputs = ctx.saved_tensors
    dy, dx, dz, dD, dw = gated_norm_backward(dout_BTd, *inputs, ctx.eps)
    gradients = dy, dx, dz, dD.sum(0).view(inputs[3].numel(), -1).sum(1), dw.sum(0)
    return *(g.to(x.dtype) for g, x in zip(gradients, inputs, strict=True)), None


gated_norm.register_autograd(_backward, setup_context=_save)
