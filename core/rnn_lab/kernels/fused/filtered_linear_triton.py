"""Triton kernels of filtered_linear: two products whose rows are loaded and stored where they lie."""

# mypy: disable-error-code="no-untyped-def,untyped-decorator,no-untyped-call"
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton import Config

from rnn_lab.kernels.functions_triton import narrow, operand
from rnn_lab.kernels.triton_support import tuned

WAVES = 264
"""Programs that the product of W is cut into at least, where it has so many rows: two for each unit of an H100."""
LEAST_ROWS = 512
"""Rows that are worth a program of their own."""


def _config(rows: int, columns: int, inner: int, warps: int, stages: int) -> Any:
    return Config({"ROWS": rows, "COLUMNS": columns, "INNER": inner}, num_warps=warps, num_stages=stages)


_CONFIGS = [
    _config(128, 128, 64, 4, 4),
    _config(128, 256, 64, 8, 3),
    _config(256, 128, 64, 8, 3),
    _config(64, 128, 64, 4, 4),
]


@triton.jit
def _tile(index, down, across, GROUP: tl.constexpr):
    """Place of a tile where GROUP rows of tiles are walked together, so that what they share stays in the cache."""
    first = index // (GROUP * across) * GROUP
    size = min(down - first, GROUP)
    within = index % (GROUP * across)
    return first + within % size, within // size


@tuned(_CONFIGS, key=("M", "K"))
@triton.jit
def input_kernel(
    g_ptr, w_ptr, dx_ptr, kept_ptr, N, M, K, ROWS: tl.constexpr, COLUMNS: tl.constexpr, INNER: tl.constexpr
):  # fmt: skip
    """dx[kept] = g[kept] W; M is a multiple of INNER."""
    DTYPE: tl.constexpr = g_ptr.dtype.element_ty
    r, c = _tile(tl.program_id(0), tl.cdiv(N, ROWS), tl.cdiv(K, COLUMNS), 8)
    n = r * ROWS + tl.arange(0, ROWS)
    k = c * COLUMNS + tl.arange(0, COLUMNS)
    m = tl.arange(0, INNER)
    # Rows behind the last are computed from the first kept one and not stored.
    row = tl.load(kept_ptr + n, mask=n < N, other=0)
    g = g_ptr + row[:, None] * M + m[None, :]
    w = w_ptr + m[:, None] * K + k[None, :]
    total = tl.zeros((ROWS, COLUMNS), dtype=tl.float32)
    for _ in range(0, M, INNER):
        columns = tl.load(w, mask=k[None, :] < K, other=0.0)
        total = tl.dot(operand(tl.load(g), DTYPE), operand(columns, DTYPE), total, input_precision="ieee")
        g += INNER
        w += INNER * K
    inside = (n < N)[:, None] & (k < K)[None, :]
    tl.store(dx_ptr + row[:, None] * K + k[None, :], narrow(total, DTYPE), mask=inside)


@tuned(_CONFIGS, key=("M", "K"))
@triton.jit
def weight_kernel(
    g_ptr, x_ptr, dw_ptr, kept_ptr, N, M, K, PARTS,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, INNER: tl.constexpr,
):  # fmt: skip
    """dW = g[kept]' x[kept], each of PARTS programs over its share of the rows, side by side in fp32."""
    DTYPE: tl.constexpr = g_ptr.dtype.element_ty
    r, c = _tile(tl.program_id(0), tl.cdiv(M, ROWS), tl.cdiv(K, COLUMNS), 8)
    part = tl.program_id(1)
    m = r * ROWS + tl.arange(0, ROWS)
    k = c * COLUMNS + tl.arange(0, COLUMNS)
    share = tl.cdiv(tl.cdiv(N, INNER), PARTS) * INNER
    start = part * share
    stop = min(N, start + share)
    total = tl.zeros((ROWS, COLUMNS), dtype=tl.float32)
    for at in range(start, stop, INNER):
        n = at + tl.arange(0, INNER)
        row = tl.load(kept_ptr + n, mask=n < stop, other=0)
        g = tl.load(g_ptr + row[:, None] * M + m[None, :], mask=(n < stop)[:, None] & (m < M)[None, :], other=0.0)
        x = tl.load(x_ptr + row[:, None] * K + k[None, :], mask=(n < stop)[:, None] & (k < K)[None, :], other=0.0)
        total = tl.dot(tl.trans(operand(g, DTYPE)), operand(x, DTYPE), total, input_precision="ieee")
    inside = (m < M)[:, None] & (k < K)[None, :]
    place = part.to(tl.int64) * M * K + m[:, None] * K + k[None, :]
    tl.store(dw_ptr + place, total, mask=inside)


@torch.library.custom_op("rnn_lab::filtered_gradients", mutates_args=())
def filtered_gradients(g_BTM: Tensor, x_BTK: Tensor, weight_MK: Tensor, kept_N: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients by x and W from the kept rows of dL/dy."""
    g, x, weight = g_BTM.contiguous(), x_BTK.contiguous(), weight_MK.contiguous()
    (M, K), N = weight.shape, kept_N.numel()
    dx = torch.zeros_like(x)
    tiles = triton.cdiv(M, 128) * triton.cdiv(K, 128)
    parts = max(1, min(8, WAVES // tiles, N // LEAST_ROWS))
    dweight = torch.empty(parts, M, K, dtype=torch.float32, device=x.device)

    def of_input(meta: dict[str, int]) -> tuple[int]:
        return (triton.cdiv(N, meta["ROWS"]) * triton.cdiv(K, meta["COLUMNS"]),)

    def of_weight(meta: dict[str, int]) -> tuple[int, int]:
        return triton.cdiv(M, meta["ROWS"]) * triton.cdiv(K, meta["COLUMNS"]), parts

    input_kernel[of_input](g, weight, dx, kept_N, N, M, K)
    weight_kernel[of_weight](g, x, dweight, kept_N, N, M, K, parts)
    return dx, dweight.sum(0).to(weight.dtype)


@filtered_gradients.register_fake
def _(g_BTM: Tensor, x_BTK: Tensor, weight_MK: Tensor, kept_N: Tensor) -> tuple[Tensor, Tensor]:
    return torch.empty_like(x_BTK), torch.empty_like(weight_MK)
