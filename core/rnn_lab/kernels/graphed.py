"""The plain loop over time, captured once in CUDA graphs and replayed: for recurrences without a kernel of their own.

A graph holds `SEGMENT` steps, whatever the length of the sequence; one walks forward, one walks forward again and then
back. Layers whose steps are alike share them. Saved for backward: the state before each segment, nothing of the steps
between. A replay cannot itself be captured, so that a training step with such a layer is no single CUDA graph.
"""

from collections import OrderedDict
from collections.abc import Callable, Hashable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from rnn_lab.kernels.recurrence import Cell, Streams, walk

SEGMENT = 128
"""Steps per graph."""
KEPT = 16
"""Graphs in use at the same time: a model has one or two shapes."""

_loops: OrderedDict[Hashable, "Loop"] = OrderedDict()
_pools: dict[torch.device, Any] = {}


def refuses(cell: Cell, h: Tensor, streams: Streams, reset_BT: Tensor | None = None) -> str | None:
    """Why the loop cannot be captured, or None."""
    if h.device.type != "cuda":
        return f"tensors are on {h.device.type}, not on cuda"
    if torch.compiler.is_compiling():
        return "torch.compile cannot trace it"
    if torch.cuda.is_current_stream_capturing():
        return "a CUDA graph is being captured"
    return None


def run(cell: Cell, h: Tensor, streams: Streams, reset_BT: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """See recurrence.reference."""
    dtype = torch.promote_types(streams.inputs[0].dtype, torch.float32)
    with torch.autocast(h.device.type, enabled=False):
        inputs, weights, queries, biases, gates = ([x.to(dtype) for x in part] for part in streams)
        if cell.before is not None:
            inputs = list(cell.before(*inputs, *biases))
        counts = (len(inputs), len(queries))
        y, h = _Walk.apply(cell, counts, reset_BT, h.to(dtype), *inputs, *queries, *weights)  # type: ignore[no-untyped-call]
        return y if cell.after is None else cell.after(y, *gates).to(streams.inputs[0].dtype), h


def identity(function: Any) -> Hashable:
    """Equal for functions that do the same: a function itself, a partial by its parts."""
    if isinstance(function, partial):
        arguments = (*function.args, *sorted((function.keywords or {}).items()))
        return (identity(function.func), *(identity(a) for a in arguments))
    return function if isinstance(function, Hashable) else id(function)


class Loop:
    """Static tensors of one segment, and the graphs over them.

    Args:
        cell: the step.
        h: state.
        xs: streams of one segment, the first `counts[0]` for `update`, the rest for `read`.
        weights: tensors without a time axis.
        counts: see above.
        reset_BT: whether there are resets.

    """

    def __init__(
        self, cell: Cell, h: Tensor, xs: list[Tensor], weights: list[Tensor], counts: tuple[int, int],
        reset_BT: Tensor | None,
    ) -> None:  # fmt: skip
        self.cell, self.counts = cell, counts
        self.h = h.clone()
        self.xs, self.weights = [x.clone() for x in xs], [w.clone() for w in weights]
        self.reset = None if reset_BT is None else reset_BT.clone()
        self.y, self.forward = self._captured(self._walk_forward)
        self.backward: torch.cuda.CUDAGraph | None = None

    def prepare_backward(self) -> None:
        """Capture the way back, once."""
        if self.backward is None:
            self.dy, self.dh = torch.zeros_like(self.y), torch.zeros_like(self.h)
            self.dxs = [torch.zeros_like(x) for x in self.xs]
            self.dweights = [torch.zeros_like(w) for w in self.weights]
            _, self.backward = self._captured(self._walk_back)

    def load(self, xs: list[Tensor], reset_BT: Tensor | None) -> None:
        """Inputs of the segment that comes next."""
        torch._foreach_copy_(self.xs, xs)
        if self.reset is not None:
            assert reset_BT is not None
            self.reset.copy_(reset_BT)

    def _walk(self, h: Tensor, xs: list[Tensor], weights: list[Tensor]) -> tuple[Tensor, Tensor]:
        n = self.counts[0]
        return walk(self.cell, h, xs[:n], weights, xs[n:], self.reset)

    def _walk_forward(self) -> Tensor:
        """Outputs; the state moves on in place."""
        with torch.no_grad():
            y, h = self._walk(self.h, self.xs, self.weights)
            self.h.copy_(h)
            return y

    def _walk_back(self) -> Tensor:
        """Gradients by streams; those by the weights add up, that by the state moves back in place."""
        with torch.enable_grad():
            leaves = [t.detach().requires_grad_() for t in (self.h, *self.xs, *self.weights)]
            n = 1 + len(self.xs)
            y, h = self._walk(leaves[0], leaves[1:n], leaves[n:])
            found = torch.autograd.grad([y, h], leaves, [self.dy, self.dh], allow_unused=True)
        with torch.no_grad():
            for target, g in zip((self.dh, *self.dxs), found[:n], strict=True):
                target.zero_() if g is None else target.copy_(g)
            for target, g in zip(self.dweights, found[n:], strict=True):
                if g is not None:
                    target.add_(g)
        return y

    def _captured(self, work: Callable[[], Tensor]) -> tuple[Tensor, torch.cuda.CUDAGraph]:
        """A graph of `work`, and its result in a tensor that stays."""
        stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            result = torch.empty_like(work())
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        pool = _pools.setdefault(self.h.device, torch.cuda.graph_pool_handle())
        with torch.cuda.graph(graph, pool=pool, capture_error_mode="thread_local"):
            result.copy_(work())
        return result, graph


def _loop(
    cell: Cell, h: Tensor, xs: list[Tensor], weights: list[Tensor], counts: tuple[int, int], reset_BT: Tensor | None
) -> Loop:
    """The graphs for these shapes, captured at the first use."""
    shapes = tuple((tuple(t.shape), t.dtype) for t in (h, *xs, *weights))
    key = (identity(cell.update), identity(cell.read), counts, shapes, h.device, reset_BT is not None)
    if key not in _loops:
        while len(_loops) >= KEPT:
            _loops.popitem(last=False)
        _loops[key] = Loop(cell, h, xs, weights, counts, reset_BT)
    _loops.move_to_end(key)
    return _loops[key]


class _Walk(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, cell: Cell, counts: tuple[int, int], reset_BT: Tensor | None, h: Tensor, *rest: Tensor
    ) -> tuple[Tensor, Tensor]:
        xs, weights = list(rest[: sum(counts)]), list(rest[sum(counts) :])
        T, starts, parts = xs[0].shape[1], [], []
        needed = any(ctx.needs_input_grad)
        for t in range(0, T, SEGMENT):
            part, reset = _part(xs, t), None if reset_BT is None else reset_BT[:, t : t + SEGMENT]
            loop = _loop(cell, h, part, weights, counts, reset)
            if needed:
                loop.prepare_backward()
            starts.append(h.clone())
            loop.h.copy_(h)
            loop.load(part, reset)
            torch._foreach_copy_(loop.weights, weights)
            loop.forward.replay()
            parts.append(loop.y.clone())
            h = loop.h.clone()
        ctx.cell, ctx.counts, ctx.reset = cell, counts, reset_BT
        ctx.save_for_backward(*starts, *rest)
        ctx.n_starts = len(starts)
        return torch.cat(parts, 1), h

    @staticmethod
    def backward(ctx: Any, dy: Tensor, dh: Tensor) -> tuple[Any, ...]:
        saved = list(ctx.saved_tensors)
        starts, rest = saved[: ctx.n_starts], saved[ctx.n_starts :]
        xs, weights = rest[: sum(ctx.counts)], rest[sum(ctx.counts) :]
        dxs, dweights = [torch.empty_like(x) for x in xs], [torch.zeros_like(w) for w in weights]
        for i in reversed(range(len(starts))):
            t = i * SEGMENT
            part, reset = _part(xs, t), None if ctx.reset is None else ctx.reset[:, t : t + SEGMENT]
            loop = _loop(ctx.cell, starts[i], part, weights, ctx.counts, reset)
            loop.prepare_backward()
            assert loop.backward is not None
            loop.load(part, reset)
            torch._foreach_copy_([loop.h, loop.dh, loop.dy], [starts[i], dh, dy[:, t : t + SEGMENT]])
            torch._foreach_copy_([*loop.weights, *loop.dweights], [*weights, *dweights])
            loop.backward.replay()
            for whole, piece in zip(dxs, loop.dxs, strict=True):
                whole[:, t : t + SEGMENT] = piece
            dh, dweights = loop.dh.clone(), [d.clone() for d in loop.dweights]
        return None, None, None, dh, *dxs, *dweights


def _part(xs: list[Tensor], t: int) -> list[Tensor]:
    return [x[:, t : t + SEGMENT] for x in xs]
