"""Batched products whose results are symmetric: C = alpha A A' + beta S + d 1, half of their tiles stored twice.

Newton-Schulz iterations need X X' and, of the symmetric A = X X', a + b A + c A A. A library computes all of both.
"""

# mypy: disable-error-code="no-untyped-def,untyped-decorator,no-untyped-call"
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton import Config

from rnn_lab.kernels.functions_triton import narrow, operand
from rnn_lab.kernels.triton_support import tuned


def _config(side: int, inner: int, warps: int, stages: int) -> Any:
    return Config({"SIDE": side, "INNER": inner}, num_warps=warps, num_stages=stages)


_CONFIGS = [_config(128, 64, 8, 3), _config(128, 64, 4, 4), _config(128, 32, 4, 4), _config(64, 64, 4, 4)]


@tuned(_CONFIGS, key=("m", "n"))
@triton.jit
def symmetric_kernel(
    a_ptr, s_ptr, c_ptr, m, n, alpha, beta, diagonal, ADDS: tl.constexpr, SIDE: tl.constexpr, INNER: tl.constexpr
):  # fmt: skip
    """One tile on or below the diagonal of one matrix of the batch."""
    DTYPE: tl.constexpr = a_ptr.dtype.element_ty
    p = tl.program_id(0)
    # The row of tiles that p lies in: the largest r with r (r + 1) / 2 <= p.
    r = ((tl.sqrt(8.0 * p.to(tl.float32) + 1.0) - 1.0) * 0.5).to(tl.int32)
    r = tl.where(r * (r + 1) // 2 > p, r - 1, r)
    r = tl.where((r + 1) * (r + 2) // 2 <= p, r + 1, r)
    c = p - r * (r + 1) // 2
    k = tl.program_id(1).to(tl.int64)
    i = r * SIDE + tl.arange(0, SIDE)
    j = c * SIDE + tl.arange(0, SIDE)
    at = tl.arange(0, INNER)
    rows = a_ptr + k * m * n + i[:, None] * n + at[None, :]
    columns = a_ptr + k * m * n + j[:, None] * n + at[None, :]
    total = tl.zeros((SIDE, SIDE), dtype=tl.float32)
    for start in range(0, n, INNER):
        inside = (start + at < n)[None, :]
        one = tl.load(rows, mask=(i < m)[:, None] & inside, other=0.0)
        two = tl.load(columns, mask=(j < m)[:, None] & inside, other=0.0)
        total = tl.dot(operand(one, DTYPE), tl.trans(operand(two, DTYPE)), total, input_precision="ieee")
        rows += INNER
        columns += INNER
    total = total * alpha
    inside = (i < m)[:, None] & (j < m)[None, :]
    place = k * m * m + i[:, None] * m + j[None, :]
    if ADDS:
        total += beta * tl.load(s_ptr + place, mask=inside, other=0.0).to(tl.float32)
    total += tl.where(i[:, None] == j[None, :], diagonal, 0.0)
    tl.store(c_ptr + place, narrow(total, DTYPE), mask=inside)
    if r != c:
        mirrored = k * m * m + j[:, None] * m + i[None, :]
        tl.store(c_ptr + mirrored, narrow(tl.trans(total), DTYPE), mask=(j < m)[:, None] & (i < m)[None, :])


def symmetric(
    A_Kmn: Tensor, S_Kmm: Tensor | None = None, alpha: float = 1.0, beta: float = 0.0, diagonal: float = 0.0
) -> Tensor:
    """`alpha A A' + beta S + diagonal 1` `[K, m, m]`, S symmetric, in the dtype of A, with sums in fp32."""
    A_Kmn = A_Kmn.contiguous()
    K, m, n = A_Kmn.shape
    C_Kmm = torch.empty(K, m, m, dtype=A_Kmn.dtype, device=A_Kmn.device)
    S = C_Kmm if S_Kmm is None else S_Kmm.contiguous()

    def grid(meta: dict[str, int]) -> tuple[int, int]:
        across = triton.cdiv(m, meta["SIDE"])
        return across * (across + 1) // 2, K

    symmetric_kernel[grid](A_Kmn, S, C_Kmm, m, n, alpha, beta, diagonal, ADDS=S_Kmm is not None)
    return C_Kmm
