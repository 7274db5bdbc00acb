"""CUDA C++ kernel of filtered_linear: all products in one launch, their rows loaded and stored where they lie.

A block per multiprocessor takes one tile after the other. Four of its warps fetch operands by asynchronous copies into
a ring of stages in shared memory; two times four multiply what has come by Hopper's products of four warps and store,
each 128 rows of a tile. Barriers in shared memory say which stage is full and which was read.
"""

import math
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from rnn_lab.kernels.cuda_jit import Kernel, refuses_cuda, skeleton
from rnn_lab.kernels.triton_support import capability, form, multiprocessors

MAPS = 4
"""Matrices that one launch takes."""
STAGES = 4
"""Of 56 KB of operands, in shared memory."""
ROWS, COLUMNS, INNER, THREADS = 256, 192, 64, 384
"""Of a tile, of a stage, and of a block: those of ring.cuh."""
SHARED = STAGES * ((ROWS + COLUMNS) * INNER * 2 + 16) + 1024
"""Bytes: stages, their barriers, and what aligns them."""
HOPPER = 9
FEW = 8
"""Blocks of a second small run."""
STORE_WEIGHT, STORE_INPUT = 16, 8
"""Stages that are multiplied in the time that a tile takes to be stored; docs/performance.md says how it was found."""
BYTES = 3 << 19
"""That are moved to and from global memory in the time of a stage of every block."""


@dataclass(frozen=True)
class Share:
    """Who computes what: sums of dW are cut into parts; blocks are of two kinds, the first `split` and the others."""

    parts: int
    split: int
    weights: tuple[int, int]
    """For how many tiles of dW a block of each kind has room."""
    inputs: tuple[int, int]
    """And of dx."""


def source() -> str:
    """CUDA C++ with the kernel `filtered`."""
    sizes = f"constexpr int MAPS = {MAPS}, STAGES = {STAGES};\n"
    return sizes + skeleton("ptx", "cluster", "warpgroup", "ring", "filtered_linear")


@cache
def _kernel() -> Kernel:
    return Kernel(source(), "filtered", [f"{4 * MAPS + 19}Q"], "filtered_linear.cu")


def refuses(*tensors: Tensor) -> str | None:
    """Why the kernel cannot take these tensors, or None."""
    if reason := refuses_cuda(*tensors):
        return reason
    return None if capability(tensors[0].device.index or 0)[0] == HOPPER else "the GPU is no sm_90"


def tiles_of(N: int, heights: tuple[int, ...], K: int) -> tuple[int, int]:
    """Tiles of all dW, and of dx."""
    weights = sum(min(over(M, ROWS) * over(K, COLUMNS), over(K, ROWS) * over(M, COLUMNS)) for M in heights)
    return weights, over(K, ROWS) * over(N, COLUMNS)


@cache
def share_of(N: int, heights: tuple[int, ...], K: int, blocks: int, least: int = 1) -> Share:
    """The cut and the division among blocks by which the last block ends first, with the time to add up the parts.

    Args:
        N: kept rows.
        heights: rows of each W.
        K: their columns.
        blocks: of the launch.
        least: parts of a sum at least.

    """
    steps, (weights, rest) = over(N, INNER), tiles_of(N, heights, K)
    inputs = rest, sum(heights) // INNER + STORE_INPUT
    best, found = math.inf, Share(1, blocks, (0, 0), (0, 0))
    for parts in range(least, max(least, steps // 8) + 1):
        adding = (parts + 1) * 4 * sum(heights) * K / BYTES if parts > 1 else 0
        if adding + (weights * (steps + parts * STORE_WEIGHT) + math.prod(inputs)) / blocks > best:
            break  # and so it is for more
        end, share = _leveled((weights * parts, over(steps, parts) + STORE_WEIGHT), inputs, blocks)
        if end + adding < best:
            best, found = end + adding, Share(parts, *share)
    return found


_Division = tuple[int, tuple[int, int], tuple[int, int]]


def _leveled(weights: tuple[int, int], inputs: tuple[int, int], blocks: int) -> tuple[int, _Division]:
    """When the last block ends, at the least, if blocks are of two kinds; how many are of the first, and their tiles.

    Args:
        weights: how many tiles, and stages of each.
        inputs: tiles of the other sort, likewise.
        blocks: that take them.

    """
    (W, long), (X, short) = weights, inputs
    ends = sorted({w * long + x * short for w in range(over(W, blocks) + 1) for x in range(over(X, blocks) + 2)})

    def division(end: int) -> _Division | None:
        for w in range(end // long + 1):
            for v in range(w + 1):
                split = over(W - v * blocks, w - v) if w > v else blocks * (w * blocks >= W)
                room = (end - w * long) // short, (end - v * long) // short
                if 0 < split <= blocks and split * room[0] + (blocks - split) * room[1] >= X:
                    return split, (w, v), room
        return None

    at = bisect_left(ends, True, key=lambda end: division(end) is not None)
    found = division(ends[at])
    assert found is not None
    return ends[at], found


@torch.library.custom_op("rnn_lab::filtered_gradients", mutates_args=())
def filtered_gradients(
    g_BTM: Sequence[Tensor], x_BTK: Tensor, weight_MK: Sequence[Tensor], kept_N: Tensor, mask_BT: Tensor
) -> tuple[Tensor, list[Tensor]]:
    """Gradients by x, and by each W in fp32, from the rows `kept_N` of each dL/dy: those where `mask_BT` is True.

    Args:
        g_BTM: dL/dy of each map, bf16.
        x_BTK: their input, bf16.
        weight_MK: matrices, bf16, with as many rows and columns as FILTERED_LINEAR's backend takes.
        kept_N: kept positions as indices into B * T, each once.
        mask_BT: True where a position is kept.

    """
    x, mask = _dense(x_BTK), mask_BT.contiguous().view(torch.uint8)
    maps = [(_dense(g), _dense(w)) for g, w in zip(g_BTM, weight_MK, strict=True)]
    kept = kept_N.to(torch.int64).contiguous()
    sizes = N, heights, K = kept.numel(), tuple(len(w) for _, w in maps), x.shape[-1]
    if N == 0:
        return torch.zeros_like(x), [torch.zeros_like(w, dtype=torch.float32) for _, w in maps]
    # A certificate sees few blocks too, that take one tile after the other, and sums that are cut.
    blocks, least = (FEW, 2) if form(2) == 1 else (multiprocessors(x.device.index or 0), 1)
    share, (weights, inputs) = share_of(*sizes, blocks, least), tiles_of(*sizes)
    dx = torch.empty_like(x)
    dweights = [torch.empty(share.parts, M, K, dtype=torch.float32, device=x.device) for M in heights]
    none = [None] * (MAPS - len(maps))
    cut = share.parts, over(over(N, INNER), share.parts), sum(heights)
    tiles = weights * share.parts, inputs, *share.weights, *share.inputs
    _kernel()(
        (blocks, 1, 1), (THREADS, 1, 1),
        *(g for g, _ in maps), *none, *(w for _, w in maps), *none, *dweights, *none, *heights, *none, len(maps),
        x, dx, kept, mask, N, mask.numel(), K, *cut, blocks, share.split, *tiles, shared=SHARED,
    )  # fmt: skip
    return dx, [d[0] if share.parts == 1 else d.sum(0) for d in dweights]


@filtered_gradients.register_fake
def _(
    g_BTM: Sequence[Tensor], x_BTK: Tensor, weight_MK: Sequence[Tensor], kept_N: Tensor, mask_BT: Tensor
) -> tuple[Tensor, list[Tensor]]:
    return x_BTK.new_empty(x_BTK.shape), [w.new_empty(w.shape, dtype=torch.float32) for w in weight_MK]


def _dense(x: Tensor) -> Tensor:
    """The tensor, or a copy whose rows lie one behind the other and begin where 16 bytes can be copied at once."""
    x = x.contiguous()
    return x if x.data_ptr() % 16 == 0 else x.clone()


def over(n: int, by: int) -> int:
    """How many times `by` it takes to reach n."""
    return -(-n // by)
