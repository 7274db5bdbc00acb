"""kernels.linear_state on tensor cores, in chunks of L steps; one custom op serves it and kernels.ssd.

With cs the running sum of g inside a chunk and R the transposed state `[N, P]` before it:

    o_t = exp(cs_t) q_t R + sum_{i <= t} exp(cs_t - cs_i) (q_t . k_i) v_i,    R <- exp(cs_L) R + k' (exp(cs_L - cs) v)

Forward   one kernel: a program per sequence, head and block of P walks over the chunks with R in registers.
Backward  `_states` stores R before every chunk (again, so that nothing but the arguments is kept for the backward)
          and, run backwards, R's gradient after every chunk; `_gradients`, a program per sequence, chunk and group,
          walks over the heads, so that the sums over heads of dk and dq never leave the chip.

A reset is a decay of exactly zero: cs does not count it, and pairs of steps on either side of it are masked. So is
a g below MIN_G, where exp(g) is no normal number. A product's result is never transposed for another product: what
is needed in both orientations is computed twice (Triton has miscompiled that pattern on Hopper).
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from rnn_lab.kernels.triton_support import INTERPRETED, tuned

MIN_G = tl.constexpr(-87.0)
LEAST_PROGRAMS = 128
"""Below this number of programs the heads of a group are split over several."""

_CONFIGS = [triton.Config({}, num_warps=warps, num_stages=2) for warps in (4, 8)]


@triton.jit
def _decays(g_ptr, dt_ptr, a, reset_ptr, row, s, live, H, h, SCALED: tl.constexpr, RESETS: tl.constexpr):
    """Running sum of g and count of resets in a chunk, step sizes, and where steps are cut off from those before.

    `row` is the chunk's first row of `[B T]`, `s` counts its steps; g and dt are `[B, T, H]`.
    """
    at = row * H + s * H + h
    if SCALED:
        dt = tl.load(dt_ptr + at, mask=live, other=0.0).to(tl.float32)
        g = dt * a
    else:
        dt = tl.where(live, 1.0, 0.0)
        g = tl.load(g_ptr + at, mask=live, other=0.0).to(tl.float32)
    cut = live & (g < MIN_G)
    if RESETS:
        cut = cut | (tl.load(reset_ptr + row + s, mask=live, other=0) != 0)
    g = tl.where(cut, 0.0, g)
    return tl.cumsum(g, 0), tl.cumsum(cut.to(tl.int32), 0), tl.sum(g, 0), tl.sum(cut.to(tl.int32), 0), dt, cut


@triton.jit
def _pairs(cs_t, seg_t, t, cs_i, seg_i, i):
    """exp(cs_t - cs_i) where i <= t with nothing cut between, else 0."""
    seen = (i <= t) & (seg_t == seg_i)
    return tl.exp(tl.where(seen, cs_t - cs_i, float("-inf")))


@tuned(_CONFIGS, key=("P", "N", "heads_per_group"))
@triton.jit
def _forward(
    x_ptr, dt_ptr, g_ptr, k_ptr, q_ptr, S_ptr, reset_ptr, o_ptr, last_ptr,
    T, H, P, N, heads_per_group, xb, xt, xh, kb, kt, kg, qb, qt, qg,
    SCALED: tl.constexpr, RESETS: tl.constexpr, LOW: tl.constexpr, PRECISION: tl.constexpr,
    L: tl.constexpr, BP: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    """Read-outs and last state; grid (blocks of P, heads, batch)."""
    p = tl.program_id(0) * BP + tl.arange(0, BP)
    h = tl.program_id(1)
    b = tl.program_id(2).to(tl.int64)
    n = tl.arange(0, BN)
    s = tl.arange(0, L)
    in_p, in_n = p < P, n < N
    state = (b * H + h) * P * N + p[None, :] * N + n[:, None]
    in_state = in_n[:, None] & in_p[None, :]
    R = tl.load(S_ptr + state, mask=in_state, other=0.0).to(tl.float32)
    a = tl.load(g_ptr + h).to(tl.float32) if SCALED else 0.0
    group = h // heads_per_group
    x_ptr += b * xb + h * xh
    k_ptr += b * kb + group * kg
    q_ptr += b * qb + group * qg
    for t0 in range(0, T, L):
        live = t0 + s < T
        row = b * T + t0
        cs, seg, total, cuts, dt, _ = _decays(g_ptr, dt_ptr, a, reset_ptr, row, s, live, H, h, SCALED, RESETS)
        first = tl.cast(t0, tl.int64)
        in_row_n, in_row_p = live[:, None] & in_n[None, :], live[:, None] & in_p[None, :]
        k = tl.load(k_ptr + first * kt + s[:, None] * kt + n[None, :], mask=in_row_n, other=0.0).to(LOW)
        q = tl.load(q_ptr + first * qt + s[:, None] * qt + n[None, :], mask=in_row_n, other=0.0).to(LOW)
        x = tl.load(x_ptr + first * xt + s[:, None] * xt + p[None, :], mask=in_row_p, other=0.0).to(LOW)
        from_start = tl.where(seg == 0, tl.exp(cs), 0.0)
        to_end = tl.where(seg == cuts, tl.exp(total - cs), 0.0) * dt
        M = _pairs(cs[:, None], seg[:, None], s[:, None], cs[None, :], seg[None, :], s[None, :]) * dt[None, :]
        A = tl.dot(q, tl.trans(k), input_precision=PRECISION) * M
        o = tl.dot(q, R.to(LOW), input_precision=PRECISION) * from_start[:, None]
        o += tl.dot(A.to(LOW), x, input_precision=PRECISION)
        tl.store(
            o_ptr + (row * H + h) * P + s[:, None] * (H * P) + p[None, :],
            o.to(o_ptr.dtype.element_ty),
            mask=in_row_p,
        )
        weighted = (x.to(tl.float32) * to_end[:, None]).to(LOW)
        R = R * tl.where(cuts == 0, tl.exp(total), 0.0)
        R += tl.dot(tl.trans(k), weighted, input_precision=PRECISION)
    tl.store(last_ptr + state, R.to(last_ptr.dtype.element_ty), mask=in_state)


@tuned(_CONFIGS, key=("P", "N", "heads_per_group"))
@triton.jit
def _states(
    x_ptr, dt_ptr, g_ptr, k_ptr, S_ptr, reset_ptr, all_ptr, end_ptr,
    T, H, P, N, heads_per_group, chunks, xb, xt, xh, kb, kt, kg,
    SCALED: tl.constexpr, RESETS: tl.constexpr, REVERSE: tl.constexpr, LOW: tl.constexpr, PRECISION: tl.constexpr,
    L: tl.constexpr, BP: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    """R before every chunk `[B, chunks, H, N, P]`; grid (blocks of P, heads, batch).

    REVERSE: R's gradient after every chunk instead, from x = do, k = q and S = the last state's gradient; what is
    left in front of the first chunk is the initial state's gradient, `end`.
    """
    p = tl.program_id(0) * BP + tl.arange(0, BP)
    h = tl.program_id(1)
    b = tl.program_id(2).to(tl.int64)
    n = tl.arange(0, BN)
    s = tl.arange(0, L)
    in_p, in_n = p < P, n < N
    state = (b * H + h) * P * N + p[None, :] * N + n[:, None]
    in_state = in_n[:, None] & in_p[None, :]
    R = tl.load(S_ptr + state, mask=in_state, other=0.0).to(tl.float32)
    a = tl.load(g_ptr + h).to(tl.float32) if SCALED else 0.0
    x_ptr += b * xb + h * xh
    k_ptr += b * kb + h // heads_per_group * kg
    for step in range(0, chunks):
        c = chunks - 1 - step if REVERSE else step
        out = ((b * chunks + c) * H + h) * N * P + n[:, None] * P + p[None, :]
        tl.store(all_ptr + out, R.to(all_ptr.dtype.element_ty), mask=in_state)
        live = c * L + s < T
        row = b * T + c * L
        cs, seg, total, cuts, dt, _ = _decays(g_ptr, dt_ptr, a, reset_ptr, row, s, live, H, h, SCALED, RESETS)
        first = tl.cast(c, tl.int64) * L
        k = tl.load(
            k_ptr + first * kt + s[:, None] * kt + n[None, :], mask=live[:, None] & in_n[None, :], other=0.0
        ).to(LOW)
        x = tl.load(
            x_ptr + first * xt + s[:, None] * xt + p[None, :], mask=live[:, None] & in_p[None, :], other=0.0
        )
        if REVERSE:
            weight = tl.where(seg == 0, tl.exp(cs), 0.0)
        else:
            weight = tl.where(seg == cuts, tl.exp(total - cs), 0.0) * dt
        R = R * tl.where(cuts == 0, tl.exp(total), 0.0)
        R += tl.dot(tl.trans(k), (x.to(tl.float32) * weight[:, None]).to(LOW), input_precision=PRECISION)
    if REVERSE:
        tl.store(end_ptr + state, R.to(end_ptr.dtype.element_ty), mask=in_state)


@tuned(_CONFIGS, key=("P", "N", "heads_per_group"))
@triton.jit
def _gradients(
    x_ptr, dt_ptr, g_ptr, k_ptr, q_ptr, reset_ptr, do_ptr, R_ptr, dR_ptr,
    dx_ptr, ddt_ptr, dg_ptr, dk_ptr, dq_ptr,
    T, H, P, N, G, heads_per_group, heads_per_split, chunks, part, xb, xt, xh, kb, kt, kg, qb, qt, qg,
    SCALED: tl.constexpr, RESETS: tl.constexpr, LOW: tl.constexpr, PRECISION: tl.constexpr,
    L: tl.constexpr, BP: tl.constexpr, BN: tl.constexpr, P_BLOCKS: tl.constexpr,
):  # fmt: skip
    """Gradients by x, dt, g, k and q of one chunk; grid (chunks * splits, groups, batch).

    dk and dq have one part per split of the group's heads, `part` elements apart.
    """
    c = tl.program_id(0) % chunks
    split = (tl.program_id(0) // chunks).to(tl.int64)
    group = tl.program_id(1)
    b = tl.program_id(2).to(tl.int64)
    n = tl.arange(0, BN)
    s = tl.arange(0, L)
    in_n = n < N
    live = c * L + s < T
    row = b * T + c * L
    first = tl.cast(c, tl.int64) * L
    in_row_n = live[:, None] & in_n[None, :]
    k_at = k_ptr + b * kb + group * kg + first * kt + s[:, None] * kt + n[None, :]
    q_at = q_ptr + b * qb + group * qg + first * qt + s[:, None] * qt + n[None, :]
    k = tl.load(k_at, mask=in_row_n, other=0.0).to(LOW)
    q = tl.load(q_at, mask=in_row_n, other=0.0).to(LOW)
    kq_it = tl.dot(k, tl.trans(q), input_precision=PRECISION)
    d_ti = tl.zeros((L, L), tl.float32)
    d_it = tl.zeros((L, L), tl.float32)
    dk = tl.zeros((L, BN), tl.float32)
    dq = tl.zeros((L, BN), tl.float32)
    x_ptr += b * xb + first * xt
    h_first = group * heads_per_group + tl.program_id(0) // chunks * heads_per_split
    h_last = tl.minimum(h_first + heads_per_split, (group + 1) * heads_per_group)
    for h in range(h_first, h_last):
        a = tl.load(g_ptr + h).to(tl.float32) if SCALED else 0.0
        cs, seg, total, cuts, dt, cut = _decays(g_ptr, dt_ptr, a, reset_ptr, row, s, live, H, h, SCALED, RESETS)
        from_start = tl.where(seg == 0, tl.exp(cs), 0.0)
        to_end = tl.where(seg == cuts, tl.exp(total - cs), 0.0)
        M_it = _pairs(cs[None, :], seg[None, :], s[None, :], cs[:, None], seg[:, None], s[:, None])
        M_ti = _pairs(cs[:, None], seg[:, None], s[:, None], cs[None, :], seg[None, :], s[None, :]) * dt[None, :]
        A_it = kq_it * M_it
        M_it = M_it * dt[:, None]
        later = tl.zeros((L,), tl.float32)  # dg_t counts these of steps s >= t,
        earlier = tl.zeros((L,), tl.float32)  # and these of steps i < t
        through = 0.0
        ddt = tl.zeros((L,), tl.float32)
        for block in tl.static_range(P_BLOCKS):
            p = block * BP + tl.arange(0, BP)
            in_p = p < P
            in_row_p = live[:, None] & in_p[None, :]
            out = (row * H + h) * P + s[:, None] * (H * P) + p[None, :]
            x = tl.load(x_ptr + h * xh + s[:, None] * xt + p[None, :], mask=in_row_p, other=0.0).to(LOW)
            do = tl.load(do_ptr + out, mask=in_row_p, other=0.0).to(LOW)
            state = ((b * chunks + c) * H + h) * N * P + n[:, None] * P + p[None, :]
            in_state = in_n[:, None] & in_p[None, :]
            R = tl.load(R_ptr + state, mask=in_state, other=0.0).to(LOW)
            dR = tl.load(dR_ptr + state, mask=in_state, other=0.0).to(LOW)
            xdo_it = tl.dot(x, tl.trans(do), input_precision=PRECISION) * M_it
            d_it += xdo_it
            d_ti += tl.dot(do, tl.trans(x), input_precision=PRECISION) * M_ti
            E_it = xdo_it * kq_it
            dv = tl.dot(k, dR, input_precision=PRECISION) * to_end[:, None]
            passed = tl.sum(dv * x.to(tl.float32), 1) * dt
            dv += tl.dot(A_it.to(LOW), do, input_precision=PRECISION)
            read = tl.dot(do, tl.trans(R), input_precision=PRECISION) * from_start[:, None]
            dq += read
            dk += tl.dot(x, tl.trans(dR), input_precision=PRECISION) * (to_end * dt)[:, None]
            later += tl.sum(E_it, 0) + tl.sum(read * q.to(tl.float32), 1) - tl.sum(E_it, 1)
            earlier += passed
            through += tl.sum(tl.sum(R.to(tl.float32) * dR.to(tl.float32), 1), 0)
            ddt += tl.sum(dv * x.to(tl.float32), 1)
            tl.store(dx_ptr + out, (dv * dt[:, None]).to(dx_ptr.dtype.element_ty), mask=in_row_p)
        through = tl.where(cuts == 0, through * tl.exp(total), 0.0)
        dg = tl.cumsum(later, 0, reverse=True) + tl.cumsum(earlier, 0) - earlier + through
        dg = tl.where(cut, 0.0, dg)
        at = row * H + s * H + h
        tl.store(dg_ptr + at, dg, mask=live)
        if SCALED:
            tl.store(ddt_ptr + at, ddt + dg * a, mask=live)
    dk += tl.dot(d_it.to(LOW), q, input_precision=PRECISION)
    dq += tl.dot(d_ti.to(LOW), k, input_precision=PRECISION)
    out = split * part + (row * G + group) * N + s[:, None] * (G * N) + n[None, :]
    tl.store(dk_ptr + out, dk.to(dk_ptr.dtype.element_ty), mask=in_row_n)
    tl.store(dq_ptr + out, dq.to(dq_ptr.dtype.element_ty), mask=in_row_n)


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
        self.chunks, self.blocks = triton.cdiv(self.T, self.L), triton.cdiv(self.P, self.BP)
        self.low = low
        self.flags: dict[str, Any] = {
            "SCALED": dt is not None,
            "RESETS": reset is not None,
            "LOW": _OPERAND[torch.float32 if INTERPRETED else low],
            "PRECISION": "tf32x3",
            "L": self.L,
            "BP": self.BP,
            "BN": self.BN,
        }

    @property
    def sizes(self) -> tuple[int, ...]:
        """T, H, P, N, heads per group."""
        return self.T, self.H, self.P, self.N, self.H // self.G


_OPERAND = {torch.float32: tl.float32, torch.bfloat16: tl.bfloat16, torch.float16: tl.float16}


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
    """See kernels.linear_state.

    Args:
        x_BTHP: values; with dt, values are dt x.
        dt_BTH: step sizes, or None.
        g: log decay `[B, T, H]`; with dt, its rate `[H]`: the log decay is dt g.
        k_BTGN: keys.
        q_BTGN: queries.
        S_BHPN: initial state.
        reset_BT: True at t zeroes the state before step t.

    Returns:
        Read-outs `[B, T, H, P]` in the dtype of x and the last state in fp32.

    """
    x, k, q = _rows(x_BTHP), _rows(k_BTGN), _rows(q_BTGN)
    plan = _Plan(x, dt_BTH, k, q, reset_BT)
    o, last = _empty_results(x, S_BHPN)
    dt = None if dt_BTH is None else dt_BTH.contiguous()
    _forward[(plan.blocks, plan.H, plan.B)](
        x, dt, g.contiguous(), k, q, S_BHPN.contiguous(), _bytes(reset_BT), o, last,
        *plan.sizes, *x.stride()[:3], *k.stride()[:3], *q.stride()[:3], **plan.flags,
    )  # fmt: skip
    return o, last


def _empty_results(x_BTHP: Tensor, S_BHPN: Tensor) -> tuple[Tensor, Tensor]:
    o_BTHP = torch.empty(x_BTHP.shape, dtype=x_BTHP.dtype, device=x_BTHP.device)
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
    dx, ddt, dg, dk, dq, dS = _empty_gradients(x, dt_BTH, k, q, S_BHPN)
    grid = (plan.blocks, plan.H, plan.B)
    _states[grid](
        x, dt, g, k, S_BHPN.contiguous(), reset, states[0], dS,
        *plan.sizes, plan.chunks, *strides[:6], REVERSE=False, **plan.flags,
    )  # fmt: skip
    _states[grid](
        do, dt, g, q, dS_BHPN.contiguous(), reset, states[1], dS,
        *plan.sizes, plan.chunks, *do.stride()[:3], *strides[6:], REVERSE=True, **plan.flags,
    )  # fmt: skip
    per_group = plan.H // plan.G
    splits = min(per_group, triton.cdiv(LEAST_PROGRAMS, plan.B * plan.chunks * plan.G))
    per_split = triton.cdiv(per_group, splits)
    splits = triton.cdiv(per_group, per_split)
    parts = (dk, dq) if splits == 1 else tuple(x.new_empty(splits, *k.shape, dtype=torch.float32) for _ in "kq")
    _gradients[(plan.chunks * splits, plan.G, plan.B)](
        x, dt, g, k, q, reset, do, states[0], states[1], dx, ddt, dg, *parts,
        *plan.sizes[:4], plan.G, per_group, per_split, plan.chunks, k.numel(), *strides,
        P_BLOCKS=plan.blocks, **plan.flags,
    )  # fmt: skip
    if splits > 1:
        dk, dq = (part.sum(0).to(of.dtype) for part, of in zip(parts, (k, q), strict=True))
    return dx, ddt, dg, dk, dq, dS


def _empty_gradients(x: Tensor, dt: Tensor | None, k: Tensor, q: Tensor, S: Tensor) -> tuple[Tensor, ...]:
    """Uninitialised gradients by x, dt, log decay, k, q and initial state, contiguous."""
    dg = x.new_empty(x.shape[:3], dtype=torch.float32)
    ddt = x.new_empty(0) if dt is None else torch.empty_like(dg)
    return x.new_empty(x.shape), ddt, dg, k.new_empty(k.shape), q.new_empty(q.shape), S.new_empty(S.shape)


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
    dt, g = ctx.saved_tensors[1:3]
    dx, ddt, dg, dk, dq, dS = linear_state_backward(do_BTHP, dS_BHPN, *ctx.saved_tensors)
    if dt is None:
        return dx, None, dg.to(g.dtype), dk, dq, dS, None
    return dx, ddt.to(dt.dtype), (dg * dt).sum((0, 1)).to(g.dtype), dk, dq, dS, None


linear_state.register_autograd(_backward, setup_context=_save)
