"""Recurrences over matrices whose rows never meet, one kernel per direction, made from the cell's own expression.

Serves every cell whose update and read-out stay inside the language of kernels.matrix.expression, whoever wrote it:
products of the state with a vector along one axis, outer products, element-wise functions. Saved for backward: the
inputs, and the state every few steps, in 16 bits where inputs are narrow and states within 1 (`saved_bytes`).
"""

from dataclasses import replace
from functools import cache, lru_cache
from math import prod
from typing import Any

import torch
from torch import Tensor

from rnn_lab.kernels.cuda_jit import Kernel
from rnn_lab.kernels.matrix.cuda import source
from rnn_lab.kernels.matrix.layout import REGISTERS, Form, Layout, Tiling, axes, power_of_two
from rnn_lab.kernels.matrix.source import Program, parse
from rnn_lab.kernels.saving import keep, kept
from rnn_lab.kernels.triton_support import tried

BUSY = 128
"""Blocks that keep a GPU busy."""
WIDEST = 16
"""Columns of a lane."""
NARROW = 48
"""Columns up to which a lane has 4 of them where matrices are few."""
LARGEST = 24
"""Entries of a lane where matrices are many."""
FEW_WARPS = 2
"""Warps of a block up to which shorter tiles of steps were faster."""
DEMANDING = 16
"""Entries of a lane from which registers, not blocks, decide how many warps a multiprocessor has."""
FILE = 65536
"""Registers of a multiprocessor."""
SHARED = 227 * 1024
"""Bytes of shared memory that a block may have on Hopper; a GPU with less takes shorter tiles of steps."""


def across(rows: int, columns: int, narrow: bool = False) -> tuple[int, int] | None:
    """Lanes that share a row, and columns of each; None where a row is too long.

    As little padding as possible; then 8 columns per lane, or else more, or else fewer. `narrow` lanes have 4 columns
    where that is enough, padded or not.
    """
    if narrow and columns <= NARROW:
        return power_of_two(-(-columns // 4)), 4
    found = []
    for lanes in (1, 2, 4, 8, 16, 32):
        own = -(-columns // (4 * lanes)) * 4
        height = 32 // lanes
        area = lanes * own * -(-rows // height) * height
        if own <= WIDEST:
            found.append((area, (8, 12, 16, 4).index(own), lanes, own))
    return min(found)[2:] if found else None


@lru_cache(maxsize=256)
def tilings(text: str, shared: int = SHARED) -> tuple[Tiling, ...]:
    """Ways to spread a matrix.

    For many matrices, where instructions count: lanes with many entries, registers for as many warps as hide latency.
    For fewer: lanes with one row. For few, where latency counts: lanes with few columns, several blocks per matrix.
    """
    program = parse(text)
    return tuple(
        dict.fromkeys(
            _tiling(program, shared, entries, most, narrow)
            for entries, most, narrow in ((LARGEST, 8, False), (1, 8, False), (1, 4, True))
        )
    )


def _tiling(program: Program, shared: int, entries: int, most: int, narrow: bool) -> Tiling:
    """Lanes with as many rows as make `entries` at most, blocks of `most` warps at most."""
    found = across(program.rows, program.columns, narrow)
    assert found is not None
    lanes, own = found
    height = 32 // lanes
    of_lane = max(1, min(power_of_two(entries // own // 2 + 1), -(-program.rows // height)))
    warps = -(-program.rows // (height * of_lane))
    split = -(-warps // most)
    warps = -(-warps // split)
    size = of_lane * own
    segment = power_of_two(REGISTERS // size // 2 + 1)
    steps = 16 if narrow or warps > FEW_WARPS else 8
    resident = max(1, FILE // (32 * warps * (REGISTERS + 4 * size))) if size >= DEMANDING else 1
    tiling = Tiling(of_lane, own, lanes, warps, split, steps, min(steps, segment), resident)
    while tiling.steps > 1 and _bytes(program, tiling) > shared:
        steps = tiling.steps // 2
        tiling = replace(tiling, steps=steps, segment=min(steps, segment))
    return tiling


def _bytes(program: Program, tiling: Tiling) -> int:
    """Shared memory of backward where all streams are fp32."""
    n = len(program.uses) + 1
    form = Form(False, tiling, (torch.float32,) * n, (0,) * n, torch.float32, False, False, False, True)
    return Layout(program, form).bytes


def choose(found: tuple[Tiling, ...], matrices: int) -> int:
    """Index of the tiling for so many matrices: the first that gives a GPU enough warps, else the last."""
    index = tried(len(found))
    if index is not None:
        return index
    for i, tiling in enumerate(found):
        blocks = matrices * tiling.split
        if blocks >= BUSY and (blocks * tiling.warps >= 8 * BUSY or i > 0):
            return i
    return len(found) - 1


@cache
def _shared(device: torch.device) -> int:
    """Bytes of shared memory that a block may have."""
    if device.type != "cuda":
        return SHARED
    return int(torch.cuda.get_device_properties(device).shared_memory_per_block_optin)  # type: ignore[attr-defined]


def saved_bytes(program: Program, tiling: Tiling, narrow: bool) -> float:
    """Bytes that one matrix saves per step, besides its inputs, over whole segments.

    T steps save ceil(T / K) marks, with K = `tiling.segment` steps between two: as many as the registers of a lane hold
    states, and no more than the steps of a tile. A last segment that is cut short has a whole mark.
    """
    return tiling.mark * (2 if narrow and program.bounded else 4) / tiling.segment


def run(
    program: Program, h: Tensor, xs: list[Tensor], ws: list[Tensor], reset_BT: Tensor | None, narrow: bool
) -> tuple[Tensor, Tensor]:
    """Outputs and last state.

    Args:
        program: the step.
        h: initial state `[B, *heads, rows, columns]`, transposed if the program says so.
        xs: streams `[B, T, *heads, n]` or `[B, T, *heads]`, fp32, bf16 or fp16 each.
        ws: weights `[n]`, `[*heads, n]`, `[*heads]` or `[]`.
        reset_BT: True at t zeroes the state before step t.
        narrow: whether outputs take the dtype of the first stream instead of fp32.

    Returns:
        Outputs `[B, T, *heads, rows]` and the last state like `h`, in fp32.

    """
    heads = h.shape[1:-2]
    H = prod(heads)
    flat = [x.flatten(2, 1 + len(heads)) if heads else x.unsqueeze(2) for x in xs]
    weights = [w.flatten(0, len(heads) - 1) if len(heads) > 1 and w.dim() >= len(heads) else w for w in ws]
    wanted = torch.is_grad_enabled() and any(t.requires_grad for t in (h, *xs, *ws))
    reset = None if reset_BT is None else reset_BT.to(torch.uint8)
    start = h.float().reshape(h.shape[0], H, *h.shape[-2:])
    y, last, _ = _forward(program.text, start, flat, weights, reset, narrow, wanted)
    return y.view(*y.shape[:2], *heads, program.rows), last.view(h.shape)


@torch.library.custom_op("rnn_lab::matrix", mutates_args=())
def _forward(
    program: str, h: Tensor, xs: list[Tensor], ws: list[Tensor], reset: Tensor | None, narrow: bool, marked: bool
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    call = _Call(program, h, xs, ws, reset)
    B, T, H, rows = *xs[0].shape[:2], h.shape[1], call.program.rows
    y = h.new_empty((B, T, H, rows), dtype=xs[0].dtype if narrow else torch.float32)
    marks = h.new_empty(_marks(B * H, T, call.tiling) if marked else (0,), dtype=mark_type(call.program, call.used))
    last = torch.empty_like(h, memory_format=torch.contiguous_format)
    call.launch(call.form(y, forward=True, marks=marked), y, h.contiguous(), last, marks, [])
    return y, last, marks


def _marks(matrices: int, T: int, tiling: Tiling) -> tuple[int, ...]:
    return (matrices * -(-T // tiling.segment) * tiling.mark,)


@_forward.register_fake
def _(
    program: str, h: Tensor, xs: list[Tensor], ws: list[Tensor], reset: Tensor | None, narrow: bool, marked: bool
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    call = _Call(program, h, xs, ws, reset)
    B, T, H = *xs[0].shape[:2], h.shape[1]
    y = h.new_empty((B, T, H, call.program.rows), dtype=xs[0].dtype if narrow else torch.float32)
    marks = _marks(B * H, T, call.tiling) if marked else (0,)
    return y, h.new_empty(h.shape), h.new_empty(marks, dtype=mark_type(call.program, call.used))


@torch.library.custom_op("rnn_lab::matrix_backward", mutates_args=())
def _backward(
    program: str, xs: list[Tensor], ws: list[Tensor], reset: Tensor | None, marks: Tensor, dy: Tensor, dlast: Tensor
) -> list[Tensor]:  # fmt: skip
    call, dy = _Call(program, dlast, xs, ws, reset), dy.contiguous()
    B, T, H = *xs[0].shape[:2], dlast.shape[1]
    form = call.form(dy, forward=False)
    found = call.gradients(form, B, T, H)
    dh = torch.empty_like(dlast, memory_format=torch.contiguous_format)
    call.launch(form, dy, dlast.contiguous(), dh, marks, found)
    return [dh, *call.collected(form, found)]


@_backward.register_fake
def _(
    program: str, xs: list[Tensor], ws: list[Tensor], reset: Tensor | None, marks: Tensor, dy: Tensor, dlast: Tensor
) -> list[Tensor]:  # fmt: skip
    return [dlast.new_empty(dlast.shape), *(x.new_empty(x.shape) for x in (*xs, *ws))]


def mark_type(program: Program, used: list[Tensor]) -> torch.dtype:
    """Backward starts each segment from a mark: of 16 bits where its gradients are narrow anyway, and within 1.

    A state without a bound may be beyond what fp16 holds, and bf16 drops too much: gradients by weights, which add up
    what nearly cancels, were four times as far off as the plain loop's.
    """
    return torch.float16 if program.bounded and not _exact(used) else torch.float32


def _exact(used: list[Tensor]) -> bool:
    """Whether errors of 1e-7 matter."""
    return all(x.dtype == torch.float32 for x in used)


class _Call:
    """A call of either direction: its streams and weights by the uses of the program."""

    def __init__(self, program: str, h: Tensor, xs: list[Tensor], ws: list[Tensor], reset: Tensor | None) -> None:
        self.program = parse(program)
        self.xs, self.ws, self.reset = xs, ws, None if reset is None else reset.contiguous()
        self.H = h.shape[1]
        found = tilings(program, _shared(h.device))
        self.tiling = found[choose(found, h.shape[0] * self.H)]
        self.used = [self._tensor(name) for name in self.program.uses]

    def _tensor(self, name: str) -> Tensor:
        if name[0] == "w":
            return self._owner(name).float().contiguous()
        x = self._owner(name)
        return x if (not axes(name) or x.stride(-1) == 1) and x.stride(1) < 2**27 else x.contiguous()

    def _owner(self, name: str) -> Tensor:
        return (self.xs if name[0] == "x" else self.ws)[int(name[1:].partition(".")[0])]

    def form(self, y: Tensor, forward: bool, marks: bool = False) -> Form:
        """What the kernel is printed for; y is dy in backward."""
        names = self.program.uses if forward else [*self.program.uses, "y.r"]
        tensors = self.used if forward else [*self.used, y]
        units = tuple(self._unit(name, x) for name, x in zip(names, tensors, strict=True))
        types = tuple(x.dtype for x in tensors)
        even = self.xs[0].shape[1] % self.tiling.steps == 0
        exact = _exact(self.used)
        return Form(forward, self.tiling, types, units, y.dtype, even, self.reset is not None, marks, exact)

    def _unit(self, name: str, x: Tensor) -> int:
        """Bytes of the largest asynchronous copy to which every row is aligned; 0: none, or nothing to copy."""
        if name[0] == "w":
            return 0
        size, t = x.element_size(), self.tiling
        widths = {"c": [self.program.columns], "r": [self.program.rows, t.block_rows], "": [1]}[axes(name)]
        for unit in (16, 8, 4):
            steps = (*widths, *x.stride()[:3])
            if x.data_ptr() % unit == 0 and all(n * size % unit == 0 for n in steps):
                return unit
        return 0

    def gradients(self, form: Form, B: int, T: int, H: int) -> list[Tensor]:
        """Memory for what backward finds for every use."""
        split, out = self.tiling.split, []
        for name, x in zip(self.program.uses, self.used, strict=True):
            kind = axes(name)
            if name[0] == "w":
                width = {"r": self.tiling.block_rows, "c": self.program.columns, "": 1}[kind]
                out.append(x.new_empty(B, H, split, width))
            elif split > 1 and kind != "r":
                out.append(x.new_empty(split, *x.shape, dtype=torch.float32))
            else:
                out.append(x.new_empty(x.shape))
        return out

    def collected(self, form: Form, found: list[Tensor]) -> list[Tensor]:
        """Gradients by streams and weights: uses of one are added up, and so are blocks, sequences and shared heads."""
        sums: dict[str, Tensor] = {}
        for name, g in zip(self.program.uses, found, strict=True):
            owner, _, kind = name.partition(".")
            x = self._owner(name)
            if name[0] == "w":
                g = g.flatten(2)[..., : self.program.rows] if kind == "r" else g.sum(2)
                g = g.sum(0) if kind else g.sum((0, 2))
                g = (g if g.dim() == x.dim() else g.sum(0)).to(x.dtype)
            elif g.dim() > x.dim():
                g = g.sum(0).to(x.dtype)
            sums[owner] = sums[owner] + g if owner in sums else g
        names = [f"x{i}" for i in range(len(self.xs))] + [f"w{i}" for i in range(len(self.ws))]
        return [sums[n] if n in sums else torch.zeros_like(x) for n, x in zip(names, [*self.xs, *self.ws], strict=True)]

    def launch(self, form: Form, y: Tensor, start: Tensor, stop: Tensor, marks: Tensor, found: list[Tensor]) -> None:
        """Launch a direction. The values are the fields of Args in matrix.cuh."""
        tensors = self.used if form.forward else [*self.used, y]
        strides: list[tuple[int, ...]] = []
        for name, x in zip([*self.program.uses, "y.r"], tensors, strict=False):
            if name[0] == "w":
                per_head = x.dim() > len(axes(name))
                strides.append((0, 0, x.stride(0) if per_head else 0))
            else:
                strides.append(x.stride()[:3])
        B, T = self.xs[0].shape[:2]
        values = [*tensors, *(s[0] for s in strides), *(s[1] for s in strides), *(s[2] for s in strides)]
        values += [*found, *[None] * (len(tensors) - len(found))]
        values += [start, stop, y, marks, self.reset, B, T, self.H]
        call, shared = kernel(self.program.text, form)
        call((B * self.H * self.tiling.split, 1, 1), (self.tiling.threads, 1, 1), *values, shared=shared)


@lru_cache(maxsize=1024)
def kernel(text: str, form: Form) -> tuple[Kernel, int]:
    """A kernel of the program with this text, and its shared memory."""
    program = parse(text)
    fields = 5 * (len(program.uses) + (0 if form.forward else 1)) + 8
    name = "forward" if form.forward else "backward"
    return Kernel(source(program, form), name, [f"{fields}Q"], "matrix.cu"), Layout(program, form).bytes


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.program, _, xs, ws, reset, _, _ = inputs
    keep(ctx, output[2], xs, ws, reset)


def _differentiate(ctx: Any, dy: Tensor, dlast: Tensor, _: Tensor) -> tuple[Any, ...]:
    marks, xs, ws, reset = kept(ctx)
    dh, *grads = _backward(ctx.program, xs, ws, reset, marks, dy, dlast)
    return None, dh, grads[: len(xs)], grads[len(xs) :], None, None, None


_forward.register_autograd(_differentiate, setup_context=_keep)
