"""Element-wise recurrences as one kernel per direction, made from the cell's own expression (diagonal_source).

Serves every cell whose `before`, `update`, `read` and `after` stay inside the fused update language
(kernels.expression), whoever wrote it. Saved for backward: the inputs, and the fp32 state before every tile of steps.
"""

import hashlib
import importlib.util
import math
from functools import lru_cache
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from rnn_lab.atomic import write_bytes_atomic
from rnn_lab.kernels.diagonal_source import TILE, Program, parse, source
from rnn_lab.kernels.triton_support import Tuned
from rnn_lab.paths import cache_dir

FILL = 2**17
"""Channels times parts that keep a GPU busy: a linear recurrence is split in time until it has as many."""
SHORTEST = 256
"""Steps that a part has at least: carrying costs one more pass over the inputs."""


class Kernels:
    """The compiled kernels of one program."""

    def __init__(self, module: ModuleType) -> None:
        import triton

        few = [triton.Config({"BLOCK": block}, num_warps=warps) for block, warps in ((64, 1), (32, 1))]
        for name in ("forward", "backward", "ends", "adjoint_ends"):
            kernel = getattr(module, name, None)
            setattr(self, name, kernel and Tuned(kernel, few, ("C", "EVEN", "RESET", "MARKS", "EXACT")))

    forward: Any
    backward: Any
    ends: Any
    adjoint_ends: Any


@lru_cache(maxsize=256)
def kernels(text: str) -> Kernels:
    """Kernels of a program; their source is kept as a file, which Triton reads and people may."""
    code = source(parse(text)).encode()
    name = f"diagonal_{hashlib.sha256(code).hexdigest()[:16]}"
    path = cache_dir() / "generated" / f"{name}.py"
    if not path.exists() or path.read_bytes() != code:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_bytes_atomic(path, code)
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return Kernels(module)


def parts_of(program: Program, B: int, T: int, C: int) -> int:
    """Into how many parts time is split: 1 unless the recurrence is linear and too narrow to fill a GPU."""
    if program.factor is None or B * C * 2 > FILL:
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
) -> tuple[Tensor, Tensor]:
    """Outputs and last state.

    Args:
        program: the step.
        h_BC: initial state.
        xs_BTC: streams, fp32, bf16 or fp16 each.
        ws_C: weights.
        reset_BT: True at t zeroes the state before step t.
        narrow: whether outputs take the dtype of the first stream instead of fp32.
        parts: parts of time that run at once; None: as many as it takes.

    Returns:
        Outputs `[B, T, C]` and the last state `[B, C]` in fp32.

    """
    B, T, C = xs_BTC[0].shape
    parts = parts_of(program, B, T, C) if parts is None else parts
    wanted = torch.is_grad_enabled() and any(t.requires_grad for t in (h_BC, *xs_BTC, *ws_C))
    reset = None if reset_BT is None else reset_BT.to(torch.uint8)
    y, last, _ = _forward(program.text, h_BC.float(), list(xs_BTC), list(ws_C), reset, narrow, wanted, parts)
    return y, last


def _plan(xs: list[Tensor], parts: int) -> tuple[int, int, int, int, int]:
    """B, T, C, steps per part, tiles."""
    B, T, C = xs[0].shape
    tiles = -(-T // TILE)
    return B, T, C, -(-tiles // parts) * TILE, tiles


def _rest(
    xs: list[Tensor], ws: list[Tensor], reset: Tensor | None, parts: int, marks: bool
) -> tuple[list[Any], dict[str, Any]]:
    """Arguments that all kernels share."""
    _, T, C, length, tiles = _plan(xs, parts)
    flags = {"C": C, "EVEN": T % TILE == 0, "RESET": reset is not None, "MARKS": marks}
    flags |= {"EXACT": any(x.dtype == torch.float32 for x in xs), **{f"x{i}_t": x.stride(1) for i, x in enumerate(xs)}}
    return [xs[0] if reset is None else reset, *xs, *ws, *(x.stride(0) for x in xs), T, length, tiles], flags


def _grid(B: int, C: int, parts: int) -> Any:
    return lambda meta: (-(-C // meta["BLOCK"]), B, parts)


def _starts(first: Tensor, end: Tensor, product: Tensor, backward: bool) -> tuple[Tensor, Tensor]:
    """What each part starts from, and what is left after the last."""
    from rnn_lab.kernels.functions_triton import carry

    B, parts, C = end.shape
    starts, last = torch.empty_like(end), torch.empty_like(first)
    carry[(-(-C // 128), B)](first, end, product, starts, last, parts, C, backward, 128)
    return starts, last


def _dense(x: Tensor) -> Tensor:
    """X with channels side by side."""
    return x if x.stride(-1) == 1 or x.shape[-1] == 1 else x.contiguous()


@torch.library.custom_op("rnn_lab::diagonal", mutates_args=())
def _forward(
    program: str, h: Tensor, xs: list[Tensor], ws: list[Tensor], reset: Tensor | None, narrow: bool, marked: bool,
    parts: int,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    xs, ws, h = [_dense(x) for x in xs], [w.contiguous() for w in ws], h.contiguous()
    B, T, C, _, tiles = _plan(xs, parts)
    y = torch.empty(B, T, C, dtype=xs[0].dtype if narrow else torch.float32, device=h.device)
    marks = torch.empty((B, tiles, C) if marked else (0,), dtype=torch.float32, device=h.device)
    found, grid = kernels(program), _grid(B, C, parts)
    rest, flags = _rest(xs, ws, reset, parts, marked)
    start, last = h, torch.empty(B, parts, C, dtype=torch.float32, device=h.device)
    if parts > 1:
        end, product = torch.empty_like(last), torch.empty_like(last)
        found.ends[grid](end, product, *rest, **flags)
        start, _ = _starts(h, end, product, backward=False)
    found.forward[grid](start, y, last, marks, *rest, **flags)
    return y, last[:, -1].contiguous(), marks


@_forward.register_fake
def _(
    program: str, h: Tensor, xs: list[Tensor], ws: list[Tensor], reset: Tensor | None, narrow: bool, marked: bool,
    parts: int,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    B, T, C = xs[0].shape
    y = xs[0].new_empty((B, T, C), dtype=xs[0].dtype if narrow else torch.float32)
    marks = h.new_empty((B, -(-T // TILE), C) if marked else (0,), dtype=torch.float32)
    return y, h.new_empty((B, C), dtype=torch.float32), marks


@torch.library.custom_op("rnn_lab::diagonal_backward", mutates_args=())
def _backward(
    program: str, xs: list[Tensor], ws: list[Tensor], reset: Tensor | None, marks: Tensor, dy: Tensor, dlast: Tensor,
    parts: int,
) -> list[Tensor]:  # fmt: skip
    xs, ws, dy, dlast = [_dense(x) for x in xs], [w.contiguous() for w in ws], dy.contiguous(), dlast.contiguous()
    B, T, C, _, _ = _plan(xs, parts)
    found, grid = kernels(program), _grid(B, C, parts)
    rest, flags = _rest(xs, ws, reset, parts, True)
    dxs = [torch.empty(B, T, C, dtype=x.dtype, device=x.device) for x in xs]
    dws = [torch.empty(B, parts, C, dtype=torch.float32, device=w.device) for w in ws]
    dend, dstart = dlast, torch.empty(B, parts, C, dtype=torch.float32, device=dy.device)
    if parts > 1:
        end, product = torch.empty_like(dstart), torch.empty_like(dstart)
        found.adjoint_ends[grid](marks, dy, end, product, *rest, **flags)
        dend, _ = _starts(dlast, end, product, backward=True)
    found.backward[grid](marks, dy, dend, dstart, *dxs, *dws, *rest, **flags)
    return [dstart[:, 0].contiguous(), *dxs, *(dw.sum((0, 1)).to(w.dtype) for w, dw in zip(ws, dws, strict=True))]


@_backward.register_fake
def _(
    program: str, xs: list[Tensor], ws: list[Tensor], reset: Tensor | None, marks: Tensor, dy: Tensor, dlast: Tensor,
    parts: int,
) -> list[Tensor]:  # fmt: skip
    dxs = [x.new_empty(x.shape) for x in xs]
    return [torch.empty_like(dlast), *dxs, *(torch.empty_like(w) for w in ws)]


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.program, _, xs, ws, reset, _, _, ctx.parts = inputs
    ctx.counts, ctx.reset = (len(xs), len(ws)), reset is not None
    ctx.save_for_backward(output[2], *xs, *ws, *(() if reset is None else (reset,)))
    ctx.set_materialize_grads(True)


def _differentiate(ctx: Any, dy: Tensor, dlast: Tensor, _: Tensor) -> tuple[Any, ...]:
    marks, *rest = ctx.saved_tensors
    n_x, n_w = ctx.counts
    xs, ws = rest[:n_x], rest[n_x : n_x + n_w]
    reset = rest[-1] if ctx.reset else None
    dh, *grads = _backward(ctx.program, xs, ws, reset, marks, dy, dlast, ctx.parts)
    return None, dh, grads[:n_x], grads[n_x:], None, None, None, None


_forward.register_autograd(_differentiate, setup_context=_keep)
