# Triton reads the signatures of kernels in its own way.
# mypy: disable-error-code="untyped-decorator,no-untyped-def,assignment,misc"
"""Triton kernels of causal_conv, channels last.

Forward, a program makes a block of steps and channels from K overlapping loads, all but one of them from the cache.
Backward, each row of a program walks over `STEPS` steps with the last inputs and the open gradients in registers: x and
dy are read once, SiLU's derivative is computed once, dx is written once. Document resets are bits of a row's one word.
"""

from functools import partial
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton import Config

from rnn_lab.kernels.triton_support import INTERPRETED, tuned

SPAN = 32 if INTERPRETED else 256
"""Steps of one sequence that a backward program takes."""


@triton.jit
def _steps(x_ptr, past_ptr, t, channel, inside, T, d, x_stride_t, K: tl.constexpr):
    """Inputs of one sequence at steps t, from the past before step 0, zeros from step T on."""
    t = t[:, None]
    now = (t >= 0) & (t < T) & inside[None, :]
    x = tl.load(x_ptr + t * x_stride_t + channel[None, :], mask=now, other=0.0).to(tl.float32)
    early = (t < 0) & (t >= 1 - K) & inside[None, :]
    return x + tl.load(past_ptr + (t + (K - 1)) * d + channel[None, :], mask=early, other=0.0).to(tl.float32)


@tuned(
    [Config({"STEPS": s, "BLOCK": c}, num_warps=w) for s, c, w in ((16, 128, 4), (32, 128, 8), (8, 256, 4))],
    key=("d", "K", "SILU"),
)
@triton.jit(do_not_specialize=("T",))
def forward_kernel(
    x_ptr, weight_ptr, bias_ptr, past_ptr, reset_ptr, y_ptr, new_ptr, T, d, x_stride_b, x_stride_t,
    K: tl.constexpr, SILU: tl.constexpr, STEPS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """y for a block of steps; the program of the last step also leaves the new past."""
    b = tl.program_id(2).to(tl.int64)
    x_ptr += b * x_stride_b
    past_ptr += b * (K - 1) * d
    channel = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = channel < d
    t = tl.program_id(1) * STEPS + tl.arange(0, STEPS)
    y = tl.zeros((STEPS, BLOCK), tl.float32)
    if bias_ptr is not None:
        y += tl.load(bias_ptr + channel, mask=inside, other=0.0).to(tl.float32)[None, :]
    alive = t < T
    for k in tl.static_range(K):
        w = tl.load(weight_ptr + channel * K + (K - 1 - k), mask=inside, other=0.0).to(tl.float32)
        x = _steps(x_ptr, past_ptr, t - k, channel, inside, T, d, x_stride_t, K)
        if reset_ptr is not None:
            x = tl.where(alive[:, None], x, 0.0)
            alive &= tl.load(reset_ptr + b * T + t - k, mask=(t >= k) & (t < T), other=0) == 0
        y += x * w[None, :]
    if SILU:
        y *= tl.sigmoid(y)
    mask = (t < T)[:, None] & inside[None, :]
    tl.store(y_ptr + b * T * d + t[:, None] * d + channel[None, :], y.to(y_ptr.dtype.element_ty), mask=mask)
    if tl.program_id(1) == tl.num_programs(1) - 1:
        last = T - 1 + tl.arange(0, 1)
        kept = last >= 0
        for k in tl.static_range(K - 1):
            new = _steps(x_ptr, past_ptr, last - k, channel, inside, T, d, x_stride_t, K)
            if reset_ptr is not None:
                new = tl.where(kept[:, None], new, 0.0)
                kept &= tl.load(reset_ptr + b * T + last - k, mask=last >= k, other=0) == 0
            at = (b * (K - 1) + (K - 2 - k)) * d + channel[None, :]
            tl.store(new_ptr + at, new.to(new_ptr.dtype.element_ty), mask=inside[None, :])


@triton.jit
def _ahead(ptr, t, channel, inside, T, stride):
    """Values at steps t >= 0, not yet cast: a load that is used steps later hides its own latency."""
    return tl.load(ptr + t[:, None] * stride + channel[None, :], mask=(t < T)[:, None] & inside[None, :], other=0.0)


@triton.jit
def _alive(resets, i, k: tl.constexpr, K: tl.constexpr):
    """Whether no document begins in the k steps up to step i of a row; bit 0 of `resets` is its step 1 - K."""
    return (((resets >> (i + (K - k))) & ((1 << k) - 1)) == 0)[:, None]


@tuned(
    [
        Config({"STEPS": s, "BLOCK": c, "AHEAD": a}, num_warps=w)
        for s, c, w, a in ((16, 64, 4, 2), (32, 64, 4, 2), (32, 64, 4, 4), (32, 64, 2, 2))
    ],
    key=("d", "K", "SILU"),
)
@triton.jit(do_not_specialize=("T",))
def backward_kernel(
    dy_ptr, dnew_ptr, x_ptr, weight_ptr, bias_ptr, past_ptr, reset_ptr, dx_ptr, dpast_ptr, partial_ptr,
    T, d, x_stride_b, x_stride_t,
    K: tl.constexpr, SILU: tl.constexpr, SPAN: tl.constexpr,
    STEPS: tl.constexpr, BLOCK: tl.constexpr, AHEAD: tl.constexpr,
):  # fmt: skip
    """Gradients of x and the past, and this program's share of those of taps and bias.

    At step t the input of step t - K + 1 has met its last output, so its gradient is complete. A row therefore walks
    K - 1 steps beyond its own; what it finds there adds nothing to the weights, which the next row's walk does.
    """
    b = tl.program_id(2).to(tl.int64)
    x_ptr += b * x_stride_b
    past_ptr += b * (K - 1) * d
    dy_ptr += b * T * d
    dx_ptr += b * T * d
    channel = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = channel < d
    start = tl.program_id(1) * SPAN + tl.arange(0, SPAN // STEPS) * STEPS
    bias = tl.zeros((BLOCK,), tl.float32)
    if bias_ptr is not None:
        bias = tl.load(bias_ptr + channel, mask=inside, other=0.0).to(tl.float32)
    zero = tl.zeros((SPAN // STEPS, BLOCK), tl.float32)
    dbias = zero
    weights, dweights, before, open_ = (), (), (), ()
    for k in tl.static_range(K):
        weights += (tl.load(weight_ptr + channel * K + (K - 1 - k), mask=inside, other=0.0).to(tl.float32)[None, :],)
        dweights += (zero,)
    for k in tl.static_range(1, K):
        open_ += (zero,)
        before += (_steps(x_ptr, past_ptr, start - k, channel, inside, T, d, x_stride_t, K),)
    resets = tl.zeros((SPAN // STEPS,), tl.int64)
    if reset_ptr is not None:
        bit = tl.arange(0, 64)
        near = start[:, None] + (bit - (K - 1))[None, :]
        seen = tl.load(reset_ptr + b * T + near, mask=(near >= 0) & (near < T), other=0).to(tl.int64)
        resets = tl.sum(seen << bit[None, :], 1)
    next_x, next_dy = (), ()
    for i in tl.static_range(AHEAD):
        next_x += (_ahead(x_ptr, start + i, channel, inside, T, x_stride_t),)
        next_dy += (_ahead(dy_ptr, start + i, channel, inside, T, d),)
    for i in range(STEPS + K - 1):
        t = start + i
        x, dz = next_x[0].to(tl.float32), next_dy[0].to(tl.float32)
        next_x = next_x[1:] + (_ahead(x_ptr, t + AHEAD, channel, inside, T, x_stride_t),)  # noqa: RUF005
        next_dy = next_dy[1:] + (_ahead(dy_ptr, t + AHEAD, channel, inside, T, d),)  # noqa: RUF005
        xs = (x,) + before  # noqa: RUF005
        met = (x,)
        for k in tl.static_range(1, K):
            met += (tl.where(_alive(resets, i, k, K), xs[k], 0.0) if reset_ptr is not None else xs[k],)
        if SILU:
            z = zero + bias[None, :]
            for k in tl.static_range(K):
                z += weights[k] * met[k]
            s = tl.sigmoid(z)
            dz *= s * (1.0 + z * (1.0 - s))
        own = tl.where(i < STEPS, dz, 0.0)
        dbias += own
        added, closing = (), (weights[0] * dz,)
        for k in tl.static_range(K):
            added += (dweights[k] + own * met[k],)
        for k in tl.static_range(1, K):
            share = weights[k] * dz
            if reset_ptr is not None:
                share = tl.where(_alive(resets, i, k, K), share, 0.0)
            closing += (share + open_[k - 1],)
        done = closing[K - 1]
        if dnew_ptr is not None:
            after = (t >= T) & (t < T + K - 1)
            at = (b * (K - 1) + t - T)[:, None] * d + channel[None, :]
            dnew = tl.load(dnew_ptr + at, mask=after[:, None] & inside[None, :], other=0.0).to(tl.float32)
            done += tl.where(_alive(resets, i, K - 1, K), dnew, 0.0) if reset_ptr is not None else dnew
        at = (b * (K - 1) + t)[:, None] * d + channel[None, :]
        first = ((t < K - 1) & (start == 0))[:, None] & inside[None, :]
        tl.store(dpast_ptr + at, done.to(dpast_ptr.dtype.element_ty), mask=first)
        at = (t - (K - 1))[:, None] * d + channel[None, :]
        finished = ((t - (K - 1) < T) & (t - (K - 1) >= start))[:, None] & inside[None, :]
        tl.store(dx_ptr + at, done.to(dx_ptr.dtype.element_ty), mask=finished)
        dweights = added
        before = xs[: K - 1]
        open_ = closing[: K - 1]
    program = (b * tl.num_programs(1) + tl.program_id(1)) * (K + 1)
    for k in tl.static_range(K):
        tl.store(partial_ptr + (program + K - 1 - k) * d + channel, tl.sum(dweights[k], 0), mask=inside)
    tl.store(partial_ptr + (program + K) * d + channel, tl.sum(dbias, 0), mask=inside)


def _rows(x: Tensor) -> Tensor:
    """x with channels next to each other; other strides stay."""
    return x if x.stride(-1) == 1 else x.contiguous()


def _grid(B: int, T: int, d: int, span: int | None, config: dict[str, Any]) -> tuple[int, int, int]:
    """Blocks of channels, of `span` steps, and sequences."""
    return triton.cdiv(d, config["BLOCK"]), triton.cdiv(T, span or config["STEPS"]), B


@torch.library.custom_op("rnn_lab::causal_conv", mutates_args=())
def causal_conv(
    x_BTd: Tensor,
    weight_d1K: Tensor,
    bias_d: Tensor | None,
    past_BKd: Tensor,
    reset_BT: Tensor | None,
    silu: bool,
) -> tuple[Tensor, Tensor]:
    """See `causal_conv.reference`."""
    B, T, d = x_BTd.shape
    x, K = _rows(x_BTd), weight_d1K.shape[-1]
    y, new = _results(x_BTd, weight_d1K, bias_d, past_BKd, reset_BT, silu)
    reset = None if reset_BT is None else reset_BT.contiguous().view(torch.uint8)
    forward_kernel[partial(_grid, B, T, d, None)](
        x, weight_d1K.contiguous(), bias_d, past_BKd.contiguous(), reset, y, new, T, d, x.stride(0), x.stride(1),
        K=K, SILU=silu,
    )  # fmt: skip
    return y, new


@causal_conv.register_fake
def _results(
    x_BTd: Tensor,
    weight_d1K: Tensor,
    bias_d: Tensor | None,
    past_BKd: Tensor,
    reset_BT: Tensor | None,
    silu: bool,
) -> tuple[Tensor, Tensor]:
    return x_BTd.new_empty(x_BTd.shape), past_BKd.new_empty(past_BKd.shape)


@torch.library.custom_op("rnn_lab::causal_conv_backward", mutates_args=())
def causal_conv_backward(
    dy_BTd: Tensor,
    dnew_BKd: Tensor | None,
    x_BTd: Tensor,
    weight_d1K: Tensor,
    bias_d: Tensor | None,
    past_BKd: Tensor,
    reset_BT: Tensor | None,
    silu: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of x, of the past, and of taps and bias `[K + 1, d]`."""
    B, T, d = x_BTd.shape
    x, K = _rows(x_BTd), weight_d1K.shape[-1]
    dnew = None if dnew_BKd is None else dnew_BKd.contiguous()
    reset = None if reset_BT is None else reset_BT.contiguous().view(torch.uint8)
    dx, dpast, _ = _gradients(dy_BTd, dnew_BKd, x_BTd, weight_d1K, bias_d, past_BKd, reset_BT, silu)
    shares = torch.empty(B * triton.cdiv(T, SPAN), K + 1, d, dtype=torch.float32, device=x.device)
    backward_kernel[partial(_grid, B, T, d, SPAN)](
        dy_BTd.contiguous(), dnew, x, weight_d1K.contiguous(), bias_d, past_BKd.contiguous(), reset, dx, dpast, shares,
        T, d, x.stride(0), x.stride(1), K=K, SILU=silu, SPAN=SPAN,
    )  # fmt: skip
    return dx, dpast, shares.sum(0)


@causal_conv_backward.register_fake
def _gradients(
    dy_BTd: Tensor,
    dnew_BKd: Tensor | None,
    x_BTd: Tensor,
    weight_d1K: Tensor,
    bias_d: Tensor | None,
    past_BKd: Tensor,
    reset_BT: Tensor | None,
    silu: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    d, _, K = weight_d1K.shape
    dweights = x_BTd.new_empty(K + 1, d, dtype=torch.float32)
    return x_BTd.new_empty(x_BTd.shape), past_BKd.new_empty(past_BKd.shape), dweights


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    *tensors, ctx.silu = inputs
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*tensors)


def _backward(ctx: Any, dy: Tensor | None, dnew: Tensor | None) -> tuple[Tensor | None, ...]:
    x, weight, bias, past, reset = ctx.saved_tensors
    if dy is None:
        dy = torch.zeros_like(x)
    dx, dpast, dweights = torch.ops.rnn_lab.causal_conv_backward(dy, dnew, x, weight, bias, past, reset, ctx.silu)
    dweight = dweights[:-1].T.unsqueeze(1).to(weight.dtype)
    return dx, dweight, None if bias is None else dweights[-1].to(bias.dtype), dpast, None, None


causal_conv.register_autograd(_backward, setup_context=_keep)
