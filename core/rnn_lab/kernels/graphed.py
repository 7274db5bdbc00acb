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

from rnn_lab.kernels.recurrence import Cell, Streams, run_by

SEGMENT = 128
"""Steps per graph."""
KEPT = 16
"""Graphs in use at the same time: a model has one or two shapes."""

Kind = tuple[int, int]
_loops: OrderedDict[Hashable, "Loop"] = OrderedDict()


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
    return run_by(_walk, cell, h, streams, reset_BT)


def _walk(
    cell: Cell,
    h: Tensor,
    inputs: list[Tensor],
    weights: list[Tensor],
    queries: list[Tensor],
    reset_BT: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Segments of time, each by its graph."""
    kind = (len(inputs), len(queries))
    y, h = _Walk.apply(cell, kind, reset_BT, h, *inputs, *queries, *weights)  # type: ignore[no-untyped-call]
    return y, h


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
        xs: streams of one segment, first those for `update`, then those for `read`.
        weights: tensors without a time axis.
        kind: how many streams of either sort.
        reset_BT: whether there are resets.

    """

    def __init__(
        self, cell: Cell, h: Tensor, xs: list[Tensor], weights: list[Tensor], kind: Kind, reset_BT: Tensor | None
    ) -> None:
        self.cell, self.n = cell, kind[0]
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
        copy_all(self.xs, xs)
        if self.reset is not None:
            assert reset_BT is not None
            self.reset.copy_(reset_BT)

    def _start(self, t: int, h: Tensor) -> Tensor:
        """State before step t: zero where a document begins."""
        if self.reset is None:
            return h
        return torch.where(self.reset[:, t].view(-1, *[1] * (h.dim() - 1)), 0, h)

    def _inputs(self, t: int) -> list[Tensor]:
        return [x[:, t] for x in self.xs[: self.n]]

    def _read(self, h_SB: Tensor, queries: list[Tensor]) -> Tensor:
        """Read-outs of all steps at once, as one batch: `[B, S, ...]`."""
        if self.cell.read is None:
            return h_SB.transpose(0, 1)
        o = self.cell.read(h_SB.flatten(0, 1), *[_batch(q) for q in queries])
        return o.unflatten(0, h_SB.shape[:2]).transpose(0, 1)  # type: ignore[no-untyped-call, no-any-return]

    def _walk_forward(self) -> Tensor:
        """Outputs; the state moves on in place."""
        with torch.no_grad():
            h, states = self.h, []
            for t in range(self.xs[0].shape[1]):
                h = self.cell.update(self._start(t, h), *self._inputs(t), *self.weights)
                states.append(h)
            self.h.copy_(h)
            return self._read(torch.stack(states), self.xs[self.n :])

    def _walk_back(self) -> Tensor:
        """Gradients by streams; those by the weights add up, that by the state moves back in place.

        Only the chain of states is walked: what reads them before, and streams and weights after, are differentiated
        for all steps at once, as if steps were sequences of a larger batch.
        """
        n, h, before, after = self.n, self.h, [], []
        for t in range(self.xs[0].shape[1]):
            with torch.enable_grad():
                before.append(self._start(t, h).detach().requires_grad_())
                after.append(self.cell.update(before[t], *self._inputs(t), *self.weights))
            h = after[t].detach()
        with torch.enable_grad():
            states = torch.stack([s.detach() for s in after]).requires_grad_()
            queries = [q.detach().requires_grad_() for q in self.xs[n:]]
            y = self._read(states, queries)
            dstates, *dqueries = torch.autograd.grad(y, [states, *queries], self.dy, allow_unused=True)
        arriving, dh = [], self.dh
        for t in reversed(range(len(after))):
            arriving.append(dh + dstates[t])
            (dh,) = torch.autograd.grad(after[t], before[t], arriving[-1])
            dh = self._start(t, dh)
        with torch.enable_grad():
            leaves = [x.detach().requires_grad_() for x in (*self.xs[:n], *self.weights)]
            start = torch.stack([b.detach() for b in before]).flatten(0, 1)
            last = self.cell.update(start, *[_batch(x) for x in leaves[:n]], *leaves[n:])
            cotangent = torch.stack(arriving[::-1]).flatten(0, 1)
            found = torch.autograd.grad(last, leaves, cotangent, allow_unused=True)
        self.dh.copy_(dh)
        for target, g in zip(self.dxs, (*found[:n], *dqueries), strict=True):
            target.zero_() if g is None else target.copy_(g)
        for target, g in zip(self.dweights, found[n:], strict=True):
            if g is not None:
                target.add_(g)
        return y.detach()

    def _captured(self, work: Callable[[], Tensor]) -> tuple[Tensor, torch.cuda.CUDAGraph]:
        """A graph of `work`, and its result in a tensor that stays."""
        stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            result = torch.empty_like(work())
        torch.cuda.current_stream().wait_stream(stream)
        # Memory of its own: graphs that shared a pool gave wrong states, or wrote out of bounds, when replayed again.
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):
            result.copy_(work())
        return result, graph


def _loop(cell: Cell, h: Tensor, xs: list[Tensor], weights: list[Tensor], kind: Kind, reset_BT: Tensor | None) -> Loop:
    """The graphs for these shapes, captured at the first use."""
    shapes = tuple((tuple(t.shape), t.dtype) for t in (h, *xs, *weights))
    key = (identity(cell.update), identity(cell.read), kind, shapes, h.device, reset_BT is not None)
    if key not in _loops:
        while len(_loops) >= KEPT:
            _loops.popitem(last=False)
        _loops[key] = Loop(cell, h, xs, weights, kind, reset_BT)
    _loops.move_to_end(key)
    return _loops[key]


class _Walk(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, cell: Cell, kind: Kind, reset_BT: Tensor | None, h: Tensor, *rest: Tensor
    ) -> tuple[Tensor, Tensor]:
        n = sum(kind)
        xs, weights = list(rest[:n]), list(rest[n:])
        T, starts, parts = xs[0].shape[1], [], []
        needed = any(ctx.needs_input_grad)
        for t in range(0, T, SEGMENT):
            part, reset = _part(xs, t), None if reset_BT is None else reset_BT[:, t : t + SEGMENT]
            loop = _loop(cell, h, part, weights, kind, reset)
            if needed:
                loop.prepare_backward()
            starts.append(h.clone())
            loop.h.copy_(h)
            loop.load(part, reset)
            copy_all(loop.weights, weights)
            loop.forward.replay()
            parts.append(loop.y.clone())
            h = loop.h.clone()
        ctx.cell, ctx.kind, ctx.reset = cell, kind, reset_BT
        ctx.save_for_backward(*starts, *rest)
        ctx.n_starts = len(starts)
        return torch.cat(parts, 1), h

    @staticmethod
    def backward(ctx: Any, dy: Tensor, dh: Tensor) -> tuple[Any, ...]:
        saved = list(ctx.saved_tensors)
        starts, rest = saved[: ctx.n_starts], saved[ctx.n_starts :]
        n = sum(ctx.kind)
        xs, weights = rest[:n], rest[n:]
        dxs, dweights = [torch.empty_like(x) for x in xs], [torch.zeros_like(w) for w in weights]
        for i in reversed(range(len(starts))):
            t = i * SEGMENT
            part, reset = _part(xs, t), None if ctx.reset is None else ctx.reset[:, t : t + SEGMENT]
            loop = _loop(ctx.cell, starts[i], part, weights, ctx.kind, reset)
            loop.prepare_backward()
            assert loop.backward is not None
            loop.load(part, reset)
            copy_all([loop.h, loop.dh, loop.dy], [starts[i], dh, dy[:, t : t + SEGMENT]])
            copy_all([*loop.weights, *loop.dweights], [*weights, *dweights])
            loop.backward.replay()
            for whole, piece in zip(dxs, loop.dxs, strict=True):
                whole[:, t : t + SEGMENT] = piece
            dh, dweights = loop.dh.clone(), [d.clone() for d in loop.dweights]
        return None, None, None, dh, *dxs, *dweights


def _batch(x: Tensor) -> Tensor:
    """`[B, S, ...]` as a batch of S * B, step after step."""
    return x.transpose(0, 1).flatten(0, 1)


def copy_all(targets: list[Tensor], sources: list[Tensor]) -> None:
    """Copy tensor by tensor, in one launch; there may be none."""
    if targets:
        torch._foreach_copy_(targets, sources)


def _part(xs: list[Tensor], t: int) -> list[Tensor]:
    return [x[:, t : t + SEGMENT] for x in xs]
