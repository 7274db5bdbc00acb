"""Triton kernels of swiglu: a part of one row per program."""

# mypy: disable-error-code="no-untyped-def,untyped-decorator,no-untyped-call"
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from rnn_lab.kernels.functions_triton import narrow
from rnn_lab.kernels.triton_support import tuned

_CONFIGS = [triton.Config({"BLOCK": size}, num_warps=warps) for size, warps in ((512, 2), (1024, 4), (2048, 4))]


@tuned(_CONFIGS, key=("f",))
@triton.jit
def forward_kernel(x_ptr, y_ptr, f, BLOCK: tl.constexpr):
    """silu(a) * b; grid (rows, parts)."""
    row = tl.program_id(0).to(tl.int64)
    i = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    a = tl.load(x_ptr + row * 2 * f + i, mask=i < f, other=0.0).to(tl.float32)
    b = tl.load(x_ptr + row * 2 * f + f + i, mask=i < f, other=0.0).to(tl.float32)
    tl.store(y_ptr + row * f + i, narrow(a * tl.sigmoid(a) * b, y_ptr.dtype.element_ty), mask=i < f)


@tuned(_CONFIGS, key=("f",))
@triton.jit
def backward_kernel(dy_ptr, x_ptr, dx_ptr, f, BLOCK: tl.constexpr):
    """Gradients by a and b; grid (rows, parts)."""
    row = tl.program_id(0).to(tl.int64)
    i = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    dy = tl.load(dy_ptr + row * f + i, mask=i < f, other=0.0).to(tl.float32)
    a = tl.load(x_ptr + row * 2 * f + i, mask=i < f, other=0.0).to(tl.float32)
    b = tl.load(x_ptr + row * 2 * f + f + i, mask=i < f, other=0.0).to(tl.float32)
    s = tl.sigmoid(a)
    da = dy * b * s * (1.0 + a * (1.0 - s))
    tl.store(dx_ptr + row * 2 * f + i, narrow(da, dx_ptr.dtype.element_ty), mask=i < f)
    tl.store(dx_ptr + row * 2 * f + f + i, narrow(dy * a * s, dx_ptr.dtype.element_ty), mask=i < f)


def _grid(y: Tensor) -> Any:
    return lambda meta: (y.shape[0] * y.shape[1], triton.cdiv(y.shape[2], meta["BLOCK"]))


@torch.library.custom_op("rnn_lab::swiglu", mutates_args=())
def swiglu(x_BTF: Tensor) -> Tensor:
    """See kernels.fused.swiglu."""
    y: Tensor = _result(x_BTF)
    forward_kernel[_grid(y)](x_BTF.contiguous(), y, y.shape[2])
    return y


@swiglu.register_fake
def _result(x_BTF: Tensor) -> Tensor:
    B, T, F = x_BTF.shape
    return x_BTF.new_empty(B, T, F // 2)


@torch.library.custom_op("rnn_lab::swiglu_backward", mutates_args=())
def swiglu_backward(dy_BTf: Tensor, x_BTF: Tensor) -> Tensor:
    """Gradient by x."""
    dx: Tensor = _gradient(dy_BTf, x_BTF)
    backward_kernel[_grid(dy_BTf)](dy_BTf.contiguous(), x_BTF.contiguous(), dx, dy_BTf.shape[2])
    return dx


@swiglu_backward.register_fake
def _gradient(dy_BTf: Tensor, x_BTF: Tensor) -> Tensor:
    return x_BTF.new_empty(x_BTF.shape)


def _keep(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _backward(ctx: Any, dy: Tensor) -> Tensor:
    dx: Tensor = swiglu_backward(dy, *ctx.saved_tensors)
    return dx


swiglu.register_autograd(_backward, setup_context=_keep)
