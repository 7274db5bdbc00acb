"""The custom op that runs kernels.linear.linear_state and kernels.linear.ssd by Triton."""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from rnn_lab.kernels.linear.linear_state_kernels import forward_kernel, gradients_kernel, states_kernel
from rnn_lab.kernels.triton_support import INTERPRETED

LEAST_PROGRAMS = 128
"""Below this number of programs the heads of a group are split over several."""


class _Plan:
    """Sizes, tiles and strides of a call."""

    def __init__(self, x: Tensor, dt: Tensor | None, k: Tensor, q: Tensor, reset: Tensor | None) -> None:
        self.B, self.T, self.H, self.P = x.shape
        self.G, self.N = k.shape[2:]
        low = torch.promote_types(torch.promote_types(x.dtype, k.dtype), q.dtype)
        self.BN = max(16, triton.next_power_of_2(self.N))
        self.L = 64 if self.BN <= 128 else 32
        widest = 64 if low.itemsize * self.BN <= 256 else 32
        # The widest block of P that pads no more than a block of 32 would.
        narrow = widest == 64 and triton.cdiv(self.P, 64) * 64 > triton.cdiv(self.P, 32) * 32
        self.BP = min(32 if narrow else widest, max(16, triton.next_power_of_2(self.P)))
        self.chunks = triton.cdiv(self.T, self.L)
        self.low = _stored(low)
        self.flags: dict[str, Any] = {
            "SCALED": dt is not None,
            "RESETS": reset is not None,
            "LOW": _OPERAND[self.low],
            "PRECISION": "tf32x3",
            "L": self.L,
            "BN": self.BN,
        }

    def grid(self, config: dict[str, Any]) -> tuple[int, int, int]:
        """Programs of the kernels that walk over time."""
        return triton.cdiv(self.P, config["BP"]), self.H, self.B

    @property
    def sizes(self) -> tuple[int, ...]:
        """T, H, P, N, heads per group."""
        return self.T, self.H, self.P, self.N, self.H // self.G


_OPERAND = {torch.float32: tl.float32, torch.bfloat16: tl.bfloat16, torch.float16: tl.float16}


def _stored(dtype: torch.dtype) -> torch.dtype:
    """What kernels store and multiply for results in `dtype`: the interpreter neither rounds to bf16 nor sums it."""
    return torch.float32 if INTERPRETED else dtype


def _rows(x: Tensor) -> Tensor:
    """X with neighbours in its last axis next to each other; views of a projection stay as they are."""
    return x if x.stride(-1) == 1 else x.contiguous()


def _bytes(reset_BT: Tensor | None) -> Tensor | None:
    return None if reset_BT is None else reset_BT.contiguous().view(torch.uint8)


@torch.library.custom_op("rnn_lab::linear_state", mutates_args=())
def linear_state(
    x_BTHP: Tensor,
    dt_BTH: Tensor | None,
    g: Tensor,
    k_BTGN: Tensor,
    q_BTGN: Tensor,
    S_BHPN: Tensor,
    reset_BT: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """See kernels.linear.linear_state.

    Args:
        x_BTHP: values; with dt, values are dt x.
        dt_BTH: step sizes, or None.
        g: log decay `[B, T, H]`; with dt, its rate `[H]`: the log decay is dt g.
        k_BTGN: keys.
        q_BTGN: queries.
        S_BHPN: initial state.
        reset_BT: True at t zeroes the state before step t.

    Returns:
        Read-outs `[B, T, H, P]` in the dtype of x (fp32 from the interpreter) and the last state in fp32.

    """
    x, k, q = _rows(x_BTHP), _rows(k_BTGN), _rows(q_BTGN)
    plan = _Plan(x, dt_BTH, k, q, reset_BT)
    o, last = _empty_results(x, S_BHPN)
    dt = None if dt_BTH is None else dt_BTH.contiguous()
    forward_kernel[plan.grid](
        x, dt, g.contiguous(), k, q, S_BHPN.contiguous(), _bytes(reset_BT), o, last,
        *plan.sizes, *x.stride()[:3], *k.stride()[:3], *q.stride()[:3], **plan.flags,
    )  # fmt: skip
    return o, last


def _empty_results(x_BTHP: Tensor, S_BHPN: Tensor) -> tuple[Tensor, Tensor]:
    o_BTHP = torch.empty(x_BTHP.shape, dtype=_stored(x_BTHP.dtype), device=x_BTHP.device)
    return o_BTHP, torch.empty(S_BHPN.shape, dtype=torch.float32, device=S_BHPN.device)


@linear_state.register_fake
def _(
    x_BTHP: Tensor,
    dt_BTH: Tensor | None,
    g: Tensor,
    k_BTGN: Tensor,
    q_BTGN: Tensor,
    S_BHPN: Tensor,
    reset_BT: Tensor | None,
) -> tuple[Tensor, Tensor]:
    return _empty_results(x_BTHP, S_BHPN)


@torch.library.custom_op("rnn_lab::linear_state_backward", mutates_args=())
def linear_state_backward(
    do_BTHP: Tensor,
    dS_BHPN: Tensor,
    x_BTHP: Tensor,
    dt_BTH: Tensor | None,
    g: Tensor,
    k_BTGN: Tensor,
    q_BTGN: Tensor,
    S_BHPN: Tensor,
    reset_BT: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients by x, dt (empty without it), log decay `[B, T, H]`, k, q and initial state, as `linear_state`'s."""
    x, k, q, do = _rows(x_BTHP), _rows(k_BTGN), _rows(q_BTGN), do_BTHP.contiguous()
    plan = _Plan(x, dt_BTH, k, q, reset_BT)
    dt = None if dt_BTH is None else dt_BTH.contiguous()
    g, reset = g.contiguous(), _bytes(reset_BT)
    strides = *x.stride()[:3], *k.stride()[:3], *q.stride()[:3]
    states = x.new_empty(2, plan.B, plan.chunks, plan.H, plan.N, plan.P, dtype=plan.low)
    dx, ddt, dg, dk, dq, dS = _empty_gradients(x, dt, k, q, S_BHPN)
    states_kernel[plan.grid](
        x, dt, g, k, S_BHPN.contiguous(), reset, states[0], dS,
        *plan.sizes, plan.chunks, *strides[:6], REVERSE=False, **plan.flags,
    )  # fmt: skip
    states_kernel[plan.grid](
        do, dt, g, q, dS_BHPN.contiguous(), reset, states[1], dS,
        *plan.sizes, plan.chunks, *do.stride()[:3], *strides[6:], REVERSE=True, **plan.flags,
    )  # fmt: skip
    per_group = plan.H // plan.G
    splits = min(per_group, triton.cdiv(LEAST_PROGRAMS, plan.B * plan.chunks * plan.G))
    per_split = triton.cdiv(per_group, splits)
    splits = triton.cdiv(per_group, per_split)  # none is empty
    parts = (dk, dq) if splits == 1 else tuple(x.new_empty(splits, *k.shape, dtype=torch.float32) for _ in "kq")
    blocks = triton.cdiv(plan.P, plan.BP)
    sizes = *plan.sizes[:4], plan.G, per_group, per_split, plan.chunks, blocks, k.numel(), *strides
    flags = {"BP": plan.BP, **plan.flags}
    ddt_part, dg_part = torch.empty_like(ddt), torch.empty_like(dg)
    grid = (plan.chunks * splits, plan.G, plan.B)
    inputs = x, dt, g, k, q, reset, do, *states
    gradients_kernel[grid](*inputs, None, None, dx, ddt_part, dg_part, parts[0], *sizes, READ=False, **flags)
    gradients_kernel[grid](*inputs, ddt_part, dg_part, None, ddt, dg, parts[1], *sizes, READ=True, **flags)
    if splits > 1:
        dk, dq = (part.sum(0).to(of.dtype) for part, of in zip(parts, (k, q), strict=True))
    return dx, ddt, dg, dk, dq, dS


def _empty_gradients(x: Tensor, dt: Tensor | None, k: Tensor, q: Tensor, S: Tensor) -> tuple[Tensor, ...]:
    """Uninitialised gradients by x, dt, log decay, k, q and initial state, contiguous."""
    dx, dk, dq, dS = (torch.empty(t.shape, dtype=_stored(t.dtype), device=t.device) for t in (x, k, q, S))
    dg = torch.empty(x.shape[:3], dtype=torch.float32, device=x.device)
    return dx, dg.new_empty(0) if dt is None else torch.empty_like(dg), dg, dk, dq, dS


@linear_state_backward.register_fake
def _(
    do_BTHP: Tensor,
    dS_BHPN: Tensor,
    x_BTHP: Tensor,
    dt_BTH: Tensor | None,
    g: Tensor,
    k_BTGN: Tensor,
    q_BTGN: Tensor,
    S_BHPN: Tensor,
    reset_BT: Tensor | None,
) -> tuple[Tensor, ...]:
    return _empty_gradients(x_BTHP, dt_BTH, k_BTGN, q_BTGN, S_BHPN)


def _save(ctx: Any, inputs: tuple[Tensor | None, ...], output: Any) -> None:
    ctx.save_for_backward(*inputs)


def _backward(ctx: Any, do_BTHP: Tensor, dS_BHPN: Tensor) -> tuple[Tensor | None, ...]:
    inputs = ctx.saved_tensors[:6]
    dx, ddt, dg, *rest = linear_state_backward(do_BTHP, dS_BHPN, *ctx.saved_tensors)
    dt = inputs[1]
    gradients = dx, None if dt is None else ddt, dg if dt is None else (dg * dt).sum((0, 1)), *rest
    return *(d if d is None else d.to(t.dtype) for d, t in zip(gradients, inputs, strict=True)), None


linear_state.register_autograd(_backward, setup_context=_save)
