"""Muon's momentum in one pass over memory: decode, update, what is to be orthogonalised, encode.

`coded` reads codes, scales and gradient and writes codes, scales and u; `plain` the same for fp32 momentum. Both
compute m = β m + gain g and u = β m + gain g, with zeros for u and nothing else written where `skipped` is true. The
arithmetic is that of optim.muon and optim.quantise.
"""
# mypy: disallow-untyped-defs=False, disallow-untyped-decorators=False, disallow-incomplete-defs=False

import triton
import triton.language as tl
from torch import Tensor

TILE = (32, 64)
"""Rows and columns per program: a square enough tile, for what belongs to a parameter may be transposed."""


@triton.jit
def _coded(
    codes, scales, grad, u, gain, skipped, beta, numel, per_matrix,
    BLOCK: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    b = tl.program_id(0).to(tl.int64)
    k, j = b // per_matrix, b % per_matrix
    lane = tl.arange(0, WIDE)
    at = j * BLOCK + lane
    inside = (lane < BLOCK) & (at < numel)
    if tl.load(skipped) != 0:
        tl.store(u + k * numel + at, tl.zeros([WIDE], tl.float32), inside)
    else:
        c = tl.load(codes + b * BLOCK + lane, inside, other=0).to(tl.float32)
        g = tl.load(grad + k * numel + at, inside, other=0.0) * tl.load(gain)
        m = c * tl.load(scales + b) * beta + g
        tl.store(u + k * numel + at, m * beta + g, inside)
        top = tl.max(tl.abs(m), 0)
        step = tl.where(top == 0, 1.0, tl.div_rn(top, 127.0))
        # 1.5 * 2^23: adding it and taking it away rounds to the nearest integer, ties to even.
        rounded = (tl.div_rn(m, step) + 12582912.0) - 12582912.0
        rounded = tl.minimum(tl.maximum(rounded, -127.0), 127.0)
        tl.store(codes + b * BLOCK + lane, rounded.to(tl.int8), inside)
        tl.store(scales + b, step)


@triton.jit
def _places(m, n, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """Of a program's tile: which matrix, its rows, its columns, what of it is inside, and where that is in a batch."""
    k = tl.program_id(2).to(tl.int64)
    row = (tl.program_id(1) * ROWS + tl.arange(0, ROWS)).to(tl.int64)[:, None]
    column = (tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)).to(tl.int64)[None, :]
    return k, row, column, (row < m) & (column < n), k * m * n + row * n + column


@triton.jit
def _plain(
    momentum, grad, u, gain, skipped, beta, m, n, g_k, g_m, g_n, ROWS: tl.constexpr, COLUMNS: tl.constexpr
):  # fmt: skip
    k, row, column, inside, at = _places(m, n, ROWS, COLUMNS)
    if tl.load(skipped) != 0:
        tl.store(u + at, tl.zeros([ROWS, COLUMNS], tl.float32), inside)
    else:
        g = tl.load(grad + k * g_k + row * g_m + column * g_n, inside, other=0.0).to(tl.float32) * tl.load(gain)
        new = tl.load(momentum + at, inside, other=0.0) * beta + g
        tl.store(momentum + at, new, inside)
        tl.store(u + at, new * beta + g, inside)


@triton.jit
def _apply(W, step, decay, factor, m, n, w_k, w_m, w_n, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    k, row, column, inside, place = _places(m, n, ROWS, COLUMNS)
    at = W + k * w_k + row * w_m + column * w_n
    old = tl.load(at, inside, other=0.0).to(tl.float32)
    moved = tl.load(step + place, inside, other=0.0).to(tl.float32)
    tl.store(at, old * tl.load(decay) + moved * tl.load(factor), inside)


def coded(
    codes: Tensor,
    scales: Tensor,
    grad_Kmn: Tensor,
    u_Kmn: Tensor,
    gain: Tensor,
    skipped: Tensor,
    beta: float,
    block: int,
) -> None:
    """Advance int8 momentum in blocks of `block` values, linear codes.

    Args:
        codes: int8 `[K, blocks * block]`, updated in place.
        scales: fp32 `[K, blocks]`, updated in place.
        grad_Kmn: fp32, contiguous.
        u_Kmn: written, in any dtype.
        gain: fp32 scalar on the device, (1 - β) times the clip coefficient.
        skipped: int8 scalar on the device.
        beta: β.
        block: values per scale.

    """
    numel = grad_Kmn[0].numel()
    _coded[(scales.numel(),)](
        codes, scales, grad_Kmn, u_Kmn, gain, skipped, beta, numel, scales.shape[1],
        BLOCK=block, WIDE=triton.next_power_of_2(block), num_warps=min(8, max(1, block // 256)),
    )  # fmt: skip


def plain(momentum_kmn: Tensor, grad_kmn: Tensor, u_kmn: Tensor, gain: Tensor, skipped: Tensor, beta: float) -> None:
    """Advance fp32 momentum in place; arguments as for `coded`, but gradients of any dtype and strides."""
    _plain[_grid(grad_kmn)](
        momentum_kmn, grad_kmn, u_kmn, gain, skipped, beta, *grad_kmn.shape[1:], *grad_kmn.stride(),
        ROWS=TILE[0], COLUMNS=TILE[1], num_warps=4,
    )  # fmt: skip


def apply(W_kmn: Tensor, step_kmn: Tensor, decay: Tensor, factor: Tensor) -> None:
    """W <- decay W + factor step, in place.

    Args:
        W_kmn: any dtype and strides.
        step_kmn: contiguous, any dtype.
        decay: fp32 scalar on the device.
        factor: fp32 scalar on the device.

    """
    _apply[_grid(W_kmn)](
        W_kmn, step_kmn, decay, factor, *W_kmn.shape[1:], *W_kmn.stride(), ROWS=TILE[0], COLUMNS=TILE[1], num_warps=4
    )


def _grid(kmn: Tensor) -> tuple[int, int, int]:
    k, m, n = kmn.shape
    return triton.cdiv(n, TILE[1]), triton.cdiv(m, TILE[0]), k
