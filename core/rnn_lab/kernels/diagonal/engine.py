"""Element-wise recurrences as one kernel per direction, made from the cell's own expression (source.py).

Serves every cell whose `before`, `update`, `read` and `after` stay inside the fused update language
(kernels.expression), whoever wrote it. Saved for backward: the inputs, and the fp32 state before every tile of steps.
One operation, two printers: `triton` (engine_triton.py) and `cuda` (cuda.py).
"""

import math
from dataclasses import dataclass
from importlib import import_module
from typing import Any, Literal

import torch
from torch import Tensor

from rnn_lab.kernels.diagonal.source import TILE, Program
from rnn_lab.kernels.saving import keep, kept
from rnn_lab.kernels.triton_support import form

FILL = 2**15
"""Channels times parts that keep a GPU busy: a linear recurrence is split in time until it has as many."""
SHORTEST = 256
"""Steps that a part has at least: carrying costs one more pass over the inputs."""


@dataclass(frozen=True)
class Call:
    """What both directions are given: a program's text, streams `[B, T, C]` and weights `[C]`, resets, parts of time.

    Streams have their channels side by side, weights are dense.
    """

    program: str
    xs: list[Tensor]
    ws: list[Tensor]
    reset: Tensor | None
    parts: int

    @property
    def shape(self) -> tuple[int, int, int]:
        """B, T, C."""
        B, T, C = self.xs[0].shape
        return B, T, C

    @property
    def tiles(self) -> int:
        """Tiles of steps in a sequence."""
        return -(-self.shape[1] // TILE)


def parts_of(program: Program, B: int, T: int, C: int) -> int:
    """Into how many parts time is split: 1 unless the recurrence is linear and too narrow to fill a GPU."""
    if program.factor is None or FILL < B * C * 2:
        return 1
    return max(1, min(math.ceil(FILL / (B * C)), T // SHORTEST, 256))


def run(
    program: Program,
    h_BC: Tensor,
    xs_BTC: list[Tensor],
    ws_C: list[Tensor],
    reset_BT: Tensor | None,
    narrow: bool,
    parts: int | None = None,
    backend: Literal["triton", "cuda"] = "triton",
) -> tuple[Tensor, Tensor]:
    """Outputs and last state.

    Args:
        program: the step.
        h_BC: initial state.
        xs_BTC: streams, fp32, bf16 or fp16 each.
        ws_C: weights.
        reset_BT: True at t zeroes the state before step t.
        narrow: whether outputs take the dtype of the first stream instead of fp32.
        parts: parts of time that run at once, 1 for `cuda`; None: as many as it takes.
        backend: the printer of the kernels.

    Returns:
        Outputs `[B, T, C]` and the last state `[B, C]` in fp32.

    """
    B, T, C = xs_BTC[0].shape
    if parts is None:
        parts = parts_of(program, B, T, C) if backend == "triton" else 1
        tried = form(2) if backend == "triton" and program.factor is not None and T > TILE else None
        parts = parts if tried is None else tried + 1
    wanted = torch.is_grad_enabled() and any(t.requires_grad for t in (h_BC, *xs_BTC, *ws_C))
    reset = None if reset_BT is None else reset_BT.to(torch.uint8)
    y, last, _ = _forward(backend, program.text, h_BC.float(), list(xs_BTC), list(ws_C), reset, narrow, wanted, parts)
    return y, last


def _launches(backend: str) -> Any:
    """The module with a printer's `forward` and `backward`."""
    return import_module(f"rnn_lab.kernels.diagonal.{'engine_triton' if backend == 'triton' else backend}")


def _call(program: str, xs: list[Tensor], ws: list[Tensor], reset: Tensor | None, parts: int) -> Call:
    dense = [x if x.stride(-1) == 1 or x.shape[-1] == 1 else x.contiguous() for x in xs]
    return Call(program, dense, [w.contiguous() for w in ws], None if reset is None else reset.contiguous(), parts)


@torch.library.custom_op("rnn_lab::diagonal", mutates_args=())
def _forward(
    backend: str, program: str, h: Tensor, xs: list[Tensor], ws: list[Tensor], reset: Tensor | None, narrow: bool,
    marked: bool, parts: int,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    call = _call(program, xs, ws, reset, parts)
    B, T, C = call.shape
    y = torch.empty(B, T, C, dtype=xs[0].dtype if narrow else torch.float32, device=h.device)
    marks = torch.empty((B, call.tiles, C) if marked else (0,), dtype=torch.float32, device=h.device)
    last = torch.empty(B, parts, C, dtype=torch.float32, device=h.device)
    _launches(backend).forward(call, h.contiguous(), y, last, marks if marked else None)
    return y, last[:, -1].contiguous(), marks


@_forward.register_fake
def _(
    backend: str, program: str, h: Tensor, xs: list[Tensor], ws: list[Tensor], reset: Tensor | None, narrow: bool,
    marked: bool, parts: int,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    B, T, C = xs[0].shape
    y = xs[0].new_empty((B, T, C), dtype=xs[0].dtype if narrow else torch.float32)
    marks = h.new_empty((B, -(-T // TILE), C) if marked else (0,), dtype=torch.float32)
    return y, h.new_empty((B, C), dtype=torch.float32), marks


@torch.library.custom_op("rnn_lab::diagonal_backward", mutates_args=())
def _backward(
    backend: str, program: str, xs: list[Tensor], ws: list[Tensor], reset: Tensor | None, marks: Tensor, dy: Tensor,
    dlast: Tensor, parts: int,
) -> list[Tensor]:  # fmt: skip
    """Gradients by the initial state, by every stream, and by all weights `[n, C]`, summed in one launch."""
    call = _call(program, xs, ws, reset, parts)
    B, T, C = call.shape
    dxs = [torch.empty(B, T, C, dtype=x.dtype, device=x.device) for x in xs]
    dws = torch.empty(len(ws), B, parts, C, dtype=torch.float32, device=dy.device)
    dstart = torch.empty(B, parts, C, dtype=torch.float32, device=dy.device)
    _launches(backend).backward(call, marks, dy.contiguous(), dlast.contiguous(), dstart, dxs, list(dws))
    return [dstart[:, 0].contiguous(), *dxs, dws.sum((1, 2))]


@_backward.register_fake
def _(
    backend: str, program: str, xs: list[Tensor], ws: list[Tensor], reset: Tensor | None, marks: Tensor, dy: Tensor,
    dlast: Tensor, parts: int,
) -> list[Tensor]:  # fmt: skip
    dxs = [x.new_empty(x.shape) for x in xs]
    return [torch.empty_like(dlast), *dxs, dlast.new_empty((len(ws), dlast.shape[1]))]


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.backend, ctx.program, _, xs, ws, reset, _, _, ctx.parts = inputs
    keep(ctx, output[2], xs, ws, reset)


def _differentiate(ctx: Any, dy: Tensor, dlast: Tensor, _: Tensor) -> tuple[Any, ...]:
    marks, xs, ws, reset = kept(ctx)
    dh, *dxs, dws = _backward(ctx.backend, ctx.program, xs, ws, reset, marks, dy, dlast, ctx.parts)
    narrow = [dw.to(w.dtype) for w, dw in zip(ws, dws, strict=True)]
    return None, None, dh, dxs, narrow, None, None, None, None


_forward.register_autograd(_differentiate, setup_context=_keep)
