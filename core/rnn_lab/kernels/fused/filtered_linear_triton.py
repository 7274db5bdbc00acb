"""Triton kernel of filtered_linear: both products in one launch, their rows loaded and stored where they lie."""

# mypy: disable-error-code="no-untyped-def,untyped-decorator,no-untyped-call"
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton import Config

from rnn_lab.kernels.functions_triton import narrow, operand
from rnn_lab.kernels.fused.filtered_linear import GRAIN
from rnn_lab.kernels.triton_support import tuned

UNITS = 132
"""Programs that run at once on an H100, one to a multiprocessor."""
ZEROS = tl.constexpr(32)
"""Filtered rows that are cleared at once."""


def _config(rows: int, columns: int, warps: int, stages: int) -> Any:
    return Config({"ROWS": rows, "COLUMNS": columns, "INNER": GRAIN}, num_warps=warps, num_stages=stages)


_CONFIGS = [_config(128, 256, 8, 3), _config(128, 256, 8, 4), _config(128, 128, 4, 3), _config(256, 128, 8, 3)]


@triton.jit
def _tile(index, down, across, GROUP: tl.constexpr):
    """Place of a tile where GROUP rows of tiles are walked together, so that what they share stays in the cache."""
    first = index // (GROUP * across) * GROUP
    size = min(down - first, GROUP)
    within = index % (GROUP * across)
    return first + within % size, within // size


@triton.jit
def _weight_tile(
    index, g_ptr, x_ptr, dw_ptr, kept_ptr, N, M, K, PARTS,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, INNER: tl.constexpr,
):  # fmt: skip
    """A tile of dW = g[kept]' x[kept], over one of PARTS shares of the rows."""
    DTYPE: tl.constexpr = g_ptr.dtype.element_ty
    down, across = tl.cdiv(M, ROWS), tl.cdiv(K, COLUMNS)
    part = index // (down * across)
    r, c = _tile(index % (down * across), down, across, 8)
    m = r * ROWS + tl.arange(0, ROWS)
    k = c * COLUMNS + tl.arange(0, COLUMNS)
    share = tl.cdiv(tl.cdiv(N, INNER), PARTS) * INNER
    stop = min(N, (part + 1) * share)
    total = tl.zeros((ROWS, COLUMNS), dtype=tl.float32)
    n = part * share + tl.arange(0, INNER)
    row = tl.load(kept_ptr + n, mask=n < stop, other=0)
    for _ in range(part * share, stop, INNER):
        g = tl.load(g_ptr + row[:, None] * M + m[None, :], mask=(n < stop)[:, None] & (m < M)[None, :], other=0.0)
        x = tl.load(x_ptr + row[:, None] * K + k[None, :], mask=(n < stop)[:, None] & (k < K)[None, :], other=0.0)
        # The rows of the next step, here already: what the loads above wait for is not staged.
        n += INNER
        row = tl.load(kept_ptr + n, mask=n < stop, other=0)
        total = tl.dot(tl.trans(operand(g, DTYPE)), operand(x, DTYPE), total, input_precision="ieee")
    place = part.to(tl.int64) * M * K + m[:, None] * K + k[None, :]
    tl.store(dw_ptr + place, total, mask=(m < M)[:, None] & (k < K)[None, :])


@triton.jit
def _input_tile(
    index, g_ptr, w_ptr, dx_ptr, kept_ptr, mask_ptr, N, ALL, M, K,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, INNER: tl.constexpr,
):  # fmt: skip
    """A tile of dx[kept] = g[kept] W, and zeros at the filtered rows of its share of all positions."""
    DTYPE: tl.constexpr = g_ptr.dtype.element_ty
    down, across = tl.cdiv(N, ROWS), tl.cdiv(K, COLUMNS)
    r, c = _tile(index, down, across, 8)
    k = c * COLUMNS + tl.arange(0, COLUMNS)
    share = tl.cdiv(ALL, down)
    stop = min(ALL, (r + 1) * share)
    for at in range(r * share, stop, ZEROS):
        gone = (at + tl.arange(0, ZEROS)).to(tl.int64)
        filtered = (gone < stop) & (tl.load(mask_ptr + gone, mask=gone < stop, other=1) == 0)
        nothing = tl.zeros((ZEROS, COLUMNS), dtype=DTYPE)
        tl.store(dx_ptr + gone[:, None] * K + k[None, :], nothing, mask=filtered[:, None] & (k < K)[None, :])
    n = r * ROWS + tl.arange(0, ROWS)
    m = tl.arange(0, INNER)
    # Rows behind the last are computed from the first position and not stored.
    row = tl.load(kept_ptr + n, mask=n < N, other=0)
    g_at = g_ptr + row[:, None] * M + m[None, :]
    w_at = w_ptr + m[:, None] * K + k[None, :]
    total = tl.zeros((ROWS, COLUMNS), dtype=tl.float32)
    for _ in range(0, M, INNER):
        w = tl.load(w_at, mask=k[None, :] < K, other=0.0)
        total = tl.dot(operand(tl.load(g_at), DTYPE), operand(w, DTYPE), total, input_precision="ieee")
        g_at += INNER
        w_at += INNER * K
    place = row[:, None] * K + k[None, :]
    tl.store(dx_ptr + place, narrow(total, DTYPE), mask=(n < N)[:, None] & (k < K)[None, :])


@tuned(_CONFIGS, key=("M", "K"))
@triton.jit
def gradients_kernel(
    g_ptr, x_ptr, w_ptr, dx_ptr, dw_ptr, kept_ptr, mask_ptr, N, ALL, M, K, PARTS,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, INNER: tl.constexpr,
):  # fmt: skip
    """Tiles of dW by the first programs, since their sums are the longest; of dx by the others.

    M is a multiple of INNER. The PARTS of dW are left side by side.
    """
    index = tl.program_id(0)
    first = tl.cdiv(M, ROWS) * tl.cdiv(K, COLUMNS) * PARTS
    if index < first:
        _weight_tile(index, g_ptr, x_ptr, dw_ptr, kept_ptr, N, M, K, PARTS, ROWS, COLUMNS, INNER)
    else:
        _input_tile(index - first, g_ptr, w_ptr, dx_ptr, kept_ptr, mask_ptr, N, ALL, M, K, ROWS, COLUMNS, INNER)


def parts_of(N: int, M: int, K: int) -> int:
    """Programs that share a tile of dW: so many that none takes much longer than all multiprocessors together do."""
    tiles, steps = triton.cdiv(M, 128) * triton.cdiv(K, 256), int(triton.cdiv(N, GRAIN))
    together: int = tiles * steps + triton.cdiv(N, 128) * triton.cdiv(K, 256) * (M // GRAIN)
    return max(1, min(round(steps * UNITS / together), steps // 8))


@torch.library.custom_op("rnn_lab::filtered_gradients", mutates_args=())
def filtered_gradients(
    g_BTM: Tensor, x_BTK: Tensor, weight_MK: Tensor, kept_N: Tensor, mask_BT: Tensor
) -> tuple[Tensor, Tensor]:
    """Gradients by x, and by W in fp32, from the rows `kept_N` of dL/dy, which are those where `mask_BT` is True."""
    g, x, weight = g_BTM.contiguous(), x_BTK.contiguous(), weight_MK.contiguous()
    (M, K), N = weight.shape, kept_N.numel()
    dx = torch.empty_like(x)
    parts = parts_of(N, M, K)
    dweight = torch.empty(parts, M, K, dtype=torch.float32, device=x.device)

    def programs(meta: dict[str, int]) -> tuple[int]:
        down = triton.cdiv(M, meta["ROWS"]) * parts + triton.cdiv(N, meta["ROWS"])
        return (down * triton.cdiv(K, meta["COLUMNS"]),)

    mask = mask_BT.view(torch.uint8)
    gradients_kernel[programs](g, x, weight, dx, dweight, kept_N, mask, N, mask.numel(), M, K, parts)
    return dx, dweight[0] if parts == 1 else dweight.sum(0)


@filtered_gradients.register_fake
def _(g_BTM: Tensor, x_BTK: Tensor, weight_MK: Tensor, kept_N: Tensor, mask_BT: Tensor) -> tuple[Tensor, Tensor]:
    return torch.empty_like(x_BTK), torch.empty_like(weight_MK, dtype=torch.float32)
