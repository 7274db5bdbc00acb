"""Triton kernels of linear_state and ssd: on tensor cores, in chunks of L steps.

With cs the running sum of g inside a chunk and R the transposed state `[N, P]` before it:

    o_t = exp(cs_t) q_t R + sum_{i <= t} exp(cs_t - cs_i) (q_t . k_i) v_i,    R <- exp(cs_L) R + k' (exp(cs_L - cs) v)

Forward   one kernel: a program per sequence, head and block of P walks over the chunks with R in registers.
Backward  `states_kernel` walks again and stores R before every chunk, so that nothing but the arguments is kept from
          the forward; then backwards, and stores R's gradient after every chunk. `gradients_kernel`, a program
          per sequence, chunk and group, walks over the heads, so that the sums over heads of dk and dq never leave
          the chip. It is launched twice, for what is written and for what is read: both at once do not fit into
          the registers.

A reset is a decay of exactly zero: cs does not count it, and pairs of steps on either side of it are masked. A g
below LEAST_G counts as LEAST_G.

A product's result is never transposed for another product: what is needed in both orientations is computed twice
(Triton has miscompiled that pattern on Hopper).
"""

# mypy: disable-error-code="no-untyped-def,untyped-decorator,no-untyped-call"
# ruff: noqa: ANN001, ANN201, ANN202
import triton
import triton.language as tl

from rnn_lab.kernels.triton_support import tuned

LEAST_G = tl.constexpr(-30.0)
"""Log decay below which fp32 sees nothing of a state (1e-13): keeps -inf away and differences of running sums exact."""

# Blocks of 32 and eight warps touch memory that is not theirs (Triton 3.6, H100): see docs/performance.md.
_WALKS = [triton.Config({"BP": 64}, num_warps=4, num_stages=stages) for stages in (2, 3)]
_SUMS = [triton.Config({}, num_warps=4, num_stages=2)]


@triton.jit
def _decays(g_ptr, dt_ptr, a, reset_ptr, row, s, live, H, h, SCALED: tl.constexpr, RESETS: tl.constexpr):
    """Running sum of g in a chunk, weights from its start and to its end, its whole decay, dt, resets so far.

    `row` is the chunk's first row of `[B T]`, `s` counts its steps; g and dt are `[B, T, H]`.
    """
    at = row * H + h
    if SCALED:
        dt = tl.load((dt_ptr + at) + s * H, mask=live, other=0.0).to(tl.float32)
        g = tl.maximum(dt * a, LEAST_G)
    else:
        dt = tl.where(live, 1.0, 0.0)
        g = tl.maximum(tl.load((g_ptr + at) + s * H, mask=live, other=0.0).to(tl.float32), LEAST_G)
    if RESETS:
        cut = tl.load((reset_ptr + row) + s, mask=live, other=0).to(tl.int32)
        g = tl.where(cut != 0, 0.0, g)
        resets, count = tl.cumsum(cut, 0), tl.sum(cut, 0)
    else:
        resets, count = s * 0, 0
    cs, total = tl.cumsum(g, 0), tl.sum(g, 0)
    from_start, to_end, whole = tl.exp(cs), tl.exp(total - cs), tl.exp(total)
    if RESETS:
        from_start = tl.where(resets == 0, from_start, 0.0)
        to_end = tl.where(resets == count, to_end, 0.0)
        whole = tl.where(count == 0, whole, 0.0)
    return cs, from_start, to_end, whole, dt, resets


@triton.jit
def _pairs(cs_t, resets_t, t, cs_i, resets_i, i, RESETS: tl.constexpr):
    """exp(cs_t - cs_i) where i <= t with no reset between, else 0."""
    seen = i <= t
    if RESETS:
        seen = seen & (resets_t == resets_i)
    return tl.exp(tl.where(seen, cs_t - cs_i, float("-inf")))


@tuned(_WALKS, key=("P", "N", "heads_per_group"))
@triton.jit(do_not_specialize=("T",))
def forward_kernel(
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
    in_S = p[None, :] * N + n[:, None]
    S_ptr += (b * H + h) * P * N
    in_state = in_n[:, None] & in_p[None, :]
    R = tl.load(S_ptr + in_S, mask=in_state, other=0.0).to(tl.float32)
    a = tl.load(g_ptr + h).to(tl.float32) if SCALED else 0.0
    group = h // heads_per_group
    x_ptr += b * xb + h * xh
    k_ptr += b * kb + group * kg
    q_ptr += b * qb + group * qg
    for t0 in range(0, T, L):
        live = t0 + s < T
        row = b * T + t0
        cs, from_start, to_end, whole, dt, resets = _decays(
            g_ptr, dt_ptr, a, reset_ptr, row, s, live, H, h, SCALED, RESETS
        )
        first = tl.cast(t0, tl.int64)
        in_row_n, in_row_p = live[:, None] & in_n[None, :], live[:, None] & in_p[None, :]
        k = tl.load((k_ptr + first * kt) + (s[:, None] * kt + n[None, :]), mask=in_row_n, other=0.0).to(LOW)
        q = tl.load((q_ptr + first * qt) + (s[:, None] * qt + n[None, :]), mask=in_row_n, other=0.0).to(LOW)
        x = tl.load((x_ptr + first * xt) + (s[:, None] * xt + p[None, :]), mask=in_row_p, other=0.0).to(LOW)
        M = _pairs(cs[:, None], resets[:, None], s[:, None], cs[None, :], resets[None, :], s[None, :], RESETS)
        M = M * dt[None, :]
        A = tl.dot(q, tl.trans(k), input_precision=PRECISION) * M
        o = tl.dot(q, R.to(LOW), input_precision=PRECISION) * from_start[:, None]
        o += tl.dot(A.to(LOW), x, input_precision=PRECISION)
        tl.store(
            (o_ptr + (row * H + h) * P) + (s[:, None] * (H * P) + p[None, :]),
            o.to(o_ptr.dtype.element_ty),
            mask=in_row_p,
        )
        weighted = (x.to(tl.float32) * (to_end * dt)[:, None]).to(LOW)
        R = R * whole + tl.dot(tl.trans(k), weighted, input_precision=PRECISION)
    tl.store(last_ptr + (b * H + h) * P * N + in_S, R.to(last_ptr.dtype.element_ty), mask=in_state)


@tuned(_WALKS, key=("P", "N", "heads_per_group"))
@triton.jit(do_not_specialize=("T",))
def states_kernel(
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
    in_S = p[None, :] * N + n[:, None]
    S_ptr += (b * H + h) * P * N
    in_state = in_n[:, None] & in_p[None, :]
    R = tl.load(S_ptr + in_S, mask=in_state, other=0.0).to(tl.float32)
    a = tl.load(g_ptr + h).to(tl.float32) if SCALED else 0.0
    x_ptr += b * xb + h * xh
    k_ptr += b * kb + h // heads_per_group * kg
    for step in range(chunks):
        c = chunks - 1 - step if REVERSE else step
        chunk_ptr = all_ptr + ((b * chunks + c) * H + h) * N * P
        tl.store(chunk_ptr + (n[:, None] * P + p[None, :]), R.to(all_ptr.dtype.element_ty), mask=in_state)
        live = c * L + s < T
        row = b * T + c * L
        _, from_start, to_end, whole, dt, _ = _decays(g_ptr, dt_ptr, a, reset_ptr, row, s, live, H, h, SCALED, RESETS)
        first = tl.cast(c, tl.int64) * L
        k = tl.load(
            (k_ptr + first * kt) + (s[:, None] * kt + n[None, :]), mask=live[:, None] & in_n[None, :], other=0.0
        ).to(LOW)
        x = tl.load(
            (x_ptr + first * xt) + (s[:, None] * xt + p[None, :]), mask=live[:, None] & in_p[None, :], other=0.0
        )
        weight = from_start if REVERSE else to_end * dt
        weighted = (x.to(tl.float32) * weight[:, None]).to(LOW)
        R = R * whole + tl.dot(tl.trans(k), weighted, input_precision=PRECISION)
    if REVERSE:
        tl.store(end_ptr + (b * H + h) * P * N + in_S, R.to(end_ptr.dtype.element_ty), mask=in_state)


@tuned(_SUMS, key=("P", "N", "heads_per_group", "READ"))
@triton.jit(do_not_specialize=("T",))
def gradients_kernel(
    x_ptr, dt_ptr, g_ptr, k_ptr, q_ptr, reset_ptr, do_ptr, R_ptr, dR_ptr, ddt_in_ptr, dg_in_ptr,
    dx_ptr, ddt_ptr, dg_ptr, dkq_ptr,
    T, H, P, N, G, heads_per_group, heads_per_split, chunks, blocks, part, xb, xt, xh, kb, kt, kg, qb, qt, qg,
    READ: tl.constexpr, SCALED: tl.constexpr, RESETS: tl.constexpr, LOW: tl.constexpr, PRECISION: tl.constexpr,
    L: tl.constexpr, BP: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    """Gradients of one chunk by what it writes: x, k, and parts of dt's and g's. Grid (chunks * splits, groups, batch).

    READ: by what it reads instead, q, and dt's and g's complete. dk and dq have one part per split of the group's
    heads, `part` elements apart.
    """
    c = tl.program_id(0) % chunks
    split = tl.program_id(0) // chunks
    group = tl.program_id(1)
    b = tl.program_id(2).to(tl.int64)
    n = tl.arange(0, BN)
    s = tl.arange(0, L)
    in_n = n < N
    live = c * L + s < T
    row = b * T + c * L
    first = tl.cast(c, tl.int64) * L
    in_row_n = live[:, None] & in_n[None, :]
    k_at = (k_ptr + b * kb + group * kg + first * kt) + (s[:, None] * kt + n[None, :])
    q_at = (q_ptr + b * qb + group * qg + first * qt) + (s[:, None] * qt + n[None, :])
    k = tl.load(k_at, mask=in_row_n, other=0.0).to(LOW)
    q = tl.load(q_at, mask=in_row_n, other=0.0).to(LOW)
    dkq = tl.zeros((L, BN), tl.float32)
    later = tl.zeros((L,), tl.float32)  # dg_t counts these of steps s >= t,
    earlier = tl.zeros((L,), tl.float32)  # these of steps i < t,
    through = 0.0  # and what passes through the whole chunk
    ddt = tl.zeros((L,), tl.float32)
    x_ptr += b * xb + first * xt
    h_first = group * heads_per_group + split * heads_per_split
    h_last = tl.minimum(h_first + heads_per_split, (group + 1) * heads_per_group)
    for visit in range(h_first * blocks, h_last * blocks):
        h, block = visit // blocks, visit % blocks
        a = tl.load(g_ptr + h).to(tl.float32) if SCALED else 0.0
        cs, from_start, to_end, whole, dt, resets = _decays(
            g_ptr, dt_ptr, a, reset_ptr, row, s, live, H, h, SCALED, RESETS
        )
        later = tl.where(block == 0, 0.0, later)
        p = block * BP + tl.arange(0, BP)
        in_p = p < P
        in_row_p = live[:, None] & in_p[None, :]
        in_state = in_n[:, None] & in_p[None, :]
        at_row, in_row = (row * H + h) * P, s[:, None] * (H * P) + p[None, :]
        at_state, state = ((b * chunks + c) * H + h) * N * P, n[:, None] * P + p[None, :]
        x = tl.load((x_ptr + h * xh) + (s[:, None] * xt + p[None, :]), mask=in_row_p, other=0.0).to(LOW)
        do = tl.load((do_ptr + at_row) + in_row, mask=in_row_p, other=0.0).to(LOW)
        dR = tl.load((dR_ptr + at_state) + state, mask=in_state, other=0.0).to(LOW)
        at = row * H + h
        if READ:
            through = tl.where(block == 0, 0.0, through)
            R = tl.load((R_ptr + at_state) + state, mask=in_state, other=0.0).to(LOW)
            through += tl.sum(tl.sum(R.to(tl.float32) * dR.to(tl.float32), 1), 0)
            read = tl.dot(do, tl.trans(R), input_precision=PRECISION) * from_start[:, None]
            later += tl.sum(read * q.to(tl.float32), 1)
            dkq += read
            M_ti = _pairs(cs[:, None], resets[:, None], s[:, None], cs[None, :], resets[None, :], s[None, :], RESETS)
            xdo_ti = tl.dot(do, tl.trans(x), input_precision=PRECISION) * (M_ti * dt[None, :])
            dkq += tl.dot(xdo_ti.to(LOW), k, input_precision=PRECISION)
            dg = tl.load((dg_in_ptr + at) + s * H, mask=live, other=0.0)
            dg += tl.cumsum(later, 0, reverse=True) + through * whole
            if RESETS:
                dg = tl.where(tl.load((reset_ptr + row) + s, mask=live, other=0) != 0, 0.0, dg)
            if SCALED:
                ddt = tl.load((ddt_in_ptr + at) + s * H, mask=live, other=0.0) + dg * a
        else:
            earlier = tl.where(block == 0, 0.0, earlier)
            ddt = tl.where(block == 0, 0.0, ddt)
            M_it = _pairs(cs[None, :], resets[None, :], s[None, :], cs[:, None], resets[:, None], s[:, None], RESETS)
            kq_it = tl.dot(k, tl.trans(q), input_precision=PRECISION) * M_it
            xdo_it = tl.dot(x, tl.trans(do), input_precision=PRECISION) * dt[:, None]
            E_it = xdo_it * kq_it
            later += tl.sum(E_it, 0) - tl.sum(E_it, 1)
            dkq += tl.dot((xdo_it * M_it).to(LOW), q, input_precision=PRECISION)
            dkq += tl.dot(x, tl.trans(dR), input_precision=PRECISION) * (to_end * dt)[:, None]
            dv = tl.dot(k, dR, input_precision=PRECISION) * to_end[:, None]
            earlier += tl.sum(dv * x.to(tl.float32), 1) * dt
            dv += tl.dot(kq_it.to(LOW), do, input_precision=PRECISION)
            ddt += tl.sum(dv * x.to(tl.float32), 1)
            tl.store((dx_ptr + at_row) + in_row, (dv * dt[:, None]).to(dx_ptr.dtype.element_ty), mask=in_row_p)
            dg = tl.cumsum(later, 0, reverse=True) + tl.cumsum(earlier, 0) - earlier
        tl.store((dg_ptr + at) + s * H, dg, mask=live)
        if SCALED:
            tl.store((ddt_ptr + at) + s * H, ddt, mask=live)
    at = split.to(tl.int64) * part + (row * G + group) * N
    in_part = s[:, None] * (G * N) + n[None, :]
    tl.store((dkq_ptr + at) + in_part, dkq.to(dkq_ptr.dtype.element_ty), mask=in_row_n)
