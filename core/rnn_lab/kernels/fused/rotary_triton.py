"""Triton kernels of rotary: a table of angles in fp64, and one pass that turns q and k and sets v apart.

The way back is the same pass with the angles negated. It needs nothing but the gradients, so nothing is saved.
"""

# mypy: disable-error-code="no-untyped-def,untyped-decorator,no-untyped-call"
import math
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from rnn_lab.kernels.functions_triton import narrow
from rnn_lab.kernels.triton_support import tuned


@triton.jit
def angles_kernel(cos_ptr, sin_ptr, first, P: tl.constexpr, BLOCK: tl.constexpr, LOG_THETA: tl.constexpr):
    """Cosine and sine `[T, P / 2]` of each step's angles; grid (T,)."""
    t = tl.program_id(0).to(tl.int64)
    i = tl.arange(0, BLOCK)
    # tl.full, because a plain number would be rounded to fp32.
    rate = tl.exp(i.to(tl.float64) * tl.full((), -2 * LOG_THETA / P, tl.float64))
    angle = (first + t).to(tl.float64) * rate
    at = t * (P // 2) + i
    tl.store(cos_ptr + at, tl.cos(angle).to(tl.float32), mask=i < P // 2)
    tl.store(sin_ptr + at, tl.sin(angle).to(tl.float32), mask=i < P // 2)


@triton.jit
def _turn(source, target, inside, cos, sin):
    """Copy a tile of rows, neighbouring channels turned."""
    x = tl.load(source, mask=inside, other=0.0).to(tl.float32)
    even, odd = tl.split(tl.reshape(x, (x.shape[0], x.shape[1] // 2, 2)))
    y = tl.reshape(tl.join(even * cos - odd * sin, odd * cos + even * sin), x.shape)
    tl.store(target, narrow(y, target.dtype.element_ty), mask=inside)


@tuned([triton.Config({"TILE": 1024}, num_warps=4), triton.Config({"TILE": 2048}, num_warps=8)], key=("H", "P"))
@triton.jit
def turn_kernel(
    packed_ptr, q_ptr, k_ptr, v_ptr, cos_ptr, sin_ptr, T, H: tl.constexpr, P: tl.constexpr, BLOCK: tl.constexpr,
    BACK: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """Some of the T H rows of P channels of one sequence; BACK gathers gradients into `packed`."""
    ROWS: tl.constexpr = TILE // BLOCK if TILE > BLOCK else 1
    blocks = tl.cdiv(T * H, ROWS)
    row = tl.program_id(0) % blocks * ROWS + tl.arange(0, ROWS)
    t = row // H
    p, pair = tl.arange(0, BLOCK), tl.arange(0, BLOCK // 2)
    inside = (row < T * H)[:, None] & (p < P)[None, :]
    known = (row < T * H)[:, None] & (pair < P // 2)[None, :]
    angle = t[:, None] * (P // 2) + pair[None, :]
    cos = tl.load(cos_ptr + angle, mask=known, other=0.0)
    sin = tl.load(sin_ptr + angle, mask=known, other=0.0)
    start = (tl.program_id(0) // blocks).to(tl.int64) * T * H * P
    own = start + row[:, None].to(tl.int64) * P + p[None, :]
    packed = packed_ptr + 3 * start + (2 * H * t + row)[:, None].to(tl.int64) * P + p[None, :]
    if BACK:
        _turn(q_ptr + own, packed, inside, cos, -sin)
        _turn(k_ptr + own, packed + H * P, inside, cos, -sin)
        tl.store(packed + 2 * H * P, tl.load(v_ptr + own, mask=inside), mask=inside)
    else:
        _turn(packed, q_ptr + own, inside, cos, sin)
        _turn(packed + H * P, k_ptr + own, inside, cos, sin)
        tl.store(v_ptr + own, tl.load(packed + 2 * H * P, mask=inside), mask=inside)


def _launch(packed: Tensor, q: Tensor, k: Tensor, v: Tensor, first: int, theta: float, back: bool) -> None:
    B, T, H, P = q.shape
    cos = torch.empty(T, P // 2, dtype=torch.float32, device=q.device)
    sin = torch.empty_like(cos)
    BLOCK = triton.next_power_of_2(P)
    angles_kernel[(T,)](cos, sin, first, P=P, BLOCK=BLOCK // 2, LOG_THETA=math.log(theta))
    turn_kernel[lambda meta: (B * triton.cdiv(T * H, max(1, meta["TILE"] // BLOCK)),)](
        packed, q, k, v, cos, sin, T, H=H, P=P, BLOCK=BLOCK, BACK=back
    )


@torch.library.custom_op("rnn_lab::rotary", mutates_args=())
def rotary(qkv_BTF: Tensor, heads: int, first: int, theta: float) -> tuple[Tensor, Tensor, Tensor]:
    """See kernels.fused.rotary; step 0 stands at position `first`."""
    q, k, v = _results(qkv_BTF, heads, first, theta)
    _launch(qkv_BTF.contiguous(), q, k, v, first, theta, back=False)
    return q, k, v


@rotary.register_fake
def _results(qkv_BTF: Tensor, heads: int, first: int, theta: float) -> tuple[Tensor, Tensor, Tensor]:
    B, T, F = qkv_BTF.shape
    q, k, v = (qkv_BTF.new_empty(B, T, heads, F // (3 * heads)) for _ in range(3))
    return q, k, v


@torch.library.custom_op("rnn_lab::rotary_backward", mutates_args=())
def rotary_backward(dq_BTHP: Tensor, dk_BTHP: Tensor, dv_BTHP: Tensor, first: int, theta: float) -> Tensor:
    """Gradient by qkv `[B, T, 3 H P]`."""
    dqkv: Tensor = _gradient(dq_BTHP, dk_BTHP, dv_BTHP, first, theta)
    _launch(dqkv, dq_BTHP.contiguous(), dk_BTHP.contiguous(), dv_BTHP.contiguous(), first, theta, back=True)
    return dqkv


@rotary_backward.register_fake
def _gradient(dq_BTHP: Tensor, dk_BTHP: Tensor, dv_BTHP: Tensor, first: int, theta: float) -> Tensor:
    B, T, H, P = dq_BTHP.shape
    return dq_BTHP.new_empty(B, T, 3 * H * P)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    _, _, ctx.first, ctx.theta = inputs


def _backward(ctx: Any, dq: Tensor, dk: Tensor, dv: Tensor) -> tuple[Tensor | None, ...]:
    return torch.ops.rnn_lab.rotary_backward(dq, dk, dv, ctx.first, ctx.theta), None, None, None


rotary.register_autograd(_backward, setup_context=_keep)
