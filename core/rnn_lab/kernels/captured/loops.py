"""The plain loop over time, captured once in CUDA graphs and replayed: for recurrences without a kernel of their own.

A graph holds `SEGMENT` steps, whatever the length of the sequence; one walks forward, one walks back. Layers whose
steps are alike share them. Saved for backward: every state where they are no larger than what enters, and then nothing
is walked again; else only the state before each segment. A step is two small graphs of operations, which TorchInductor
fuses (step_graphs). A replay cannot itself be captured, so that a training step with such a layer is no single CUDA
graph.
"""

from collections import OrderedDict
from collections.abc import Callable, Hashable
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from rnn_lab.cuda_graphs import capture
from rnn_lab.kernels.captured.step_graphs import FUSED, Step, part, saving, step_of
from rnn_lab.kernels.cell import Cell, Streams
from rnn_lab.kernels.recurrence import run_by

SEGMENT = 128
"""Steps per graph."""
KEPT = 16
"""Graphs in use at the same time: a model has one or two shapes."""

T = TypeVar("T")
Kind = tuple[int, int]
_loops: OrderedDict[Hashable, "Loop"] = OrderedDict()
_steps: OrderedDict[Hashable, Step] = OrderedDict()


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
    """Segments of time, each by its graph; read-outs of states that are kept apart, for all steps at once."""
    apart = cell.read is not None and h[0].numel() <= sum(x[0, 0].numel() for x in inputs)
    walked, seen = (Cell(cell.update), []) if apart else (cell, queries)
    kind = (len(inputs), len(seen))
    # Inside of a Function neither tells: there gradients are off, and what is needed says nothing of no_grad.
    back = torch.is_grad_enabled() and any(t.requires_grad for t in (h, *inputs, *seen, *weights))
    y, h = _Walk.apply(walked, kind, back, reset_BT, h, *inputs, *seen, *weights)  # type: ignore[no-untyped-call]
    return (_read(cell, y, queries) if apart else y), h


def _read(cell: Cell, h: Tensor, queries: list[Tensor]) -> Tensor:
    """Read-outs of states `[B, T, ...]` or `[T, B, ...]`, all steps as one batch."""
    if cell.read is None:
        return h
    o = cell.read(h.flatten(0, 1), *[q.flatten(0, 1) for q in queries])
    return o.unflatten(0, h.shape[:2])  # type: ignore[no-untyped-call, no-any-return]


def identity(function: Any) -> Hashable:
    """Equal for functions that do the same: a function itself, a partial by its parts."""
    if isinstance(function, partial):
        arguments = (*function.args, *sorted((function.keywords or {}).items()))
        return (identity(function.func), *(identity(a) for a in arguments))
    return function if isinstance(function, Hashable) else id(function)


class Loop:
    """Static tensors of one segment, and the graphs over them; streams are `[S, B, ...]`, so that a step is dense.

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
        self.cell, self.n, self.steps = cell, kind[0], xs[0].shape[1]
        self.h = h.clone(memory_format=torch.contiguous_format)
        self.xs = [x.transpose(0, 1).clone(memory_format=torch.contiguous_format) for x in xs]
        self.weights = [w.clone() for w in weights]
        self.reset = None if reset_BT is None else reset_BT.T.clone(memory_format=torch.contiguous_format)
        with torch.enable_grad():
            if _read(cell, self.h[None], [x[:1] for x in self.xs[self.n :]]).requires_grad:
                raise ValueError("read uses a trained tensor that is none of its arguments")
        self.step = self._step()
        self.y = torch.empty_like(self._walk_forward())
        self.forward = self._captured(lambda: self.y.copy_(self._walk_forward()))
        self.backward: torch.cuda.CUDAGraph | None = None

    def prepare_backward(self) -> None:
        """Capture the way back, once."""
        if self.backward is None:
            self.dy, self.dh = torch.zeros_like(self.y), torch.zeros_like(self.h)
            self.dxs = [torch.zeros_like(x) for x in self.xs]
            self.dweights = [torch.zeros_like(w) for w in self.weights]
            self.backward = self._captured(self._walk_back)

    def load(self, xs: list[Tensor], reset_BT: Tensor | None) -> None:
        """Inputs of the segment that comes next."""
        copy_all(self.xs, [x.transpose(0, 1) for x in xs])
        if self.reset is not None:
            assert reset_BT is not None
            self.reset.copy_(reset_BT.T)

    def _step(self) -> Step:
        """One step: loops of other lengths share it, but only long ones take the time to fuse it."""
        xs, fresh, fuse = self._inputs(0), self._fresh(0), self.h.is_cuda and self.steps >= FUSED
        key = (*_key(self.cell, self.h, xs, self.weights), len(fresh), fuse)
        return _kept(_steps, key, lambda: step_of(self.cell.update, self.h, xs, self.weights, fresh, fuse))

    def _inputs(self, t: int) -> list[Tensor]:
        return [x[t] for x in self.xs[: self.n]]

    def _fresh(self, t: int) -> list[Tensor]:
        """Where a document begins at step t, `[B, 1...]`; empty without resets."""
        return [] if self.reset is None else [self.reset[t].view(-1, *[1] * (self.h.dim() - 1))]

    def _states(self) -> Tensor:
        """States after every step `[S, B, ...]`."""
        h, states = self.h, []
        for t in range(self.steps):
            h = self.step.forward(h, *self._inputs(t), *self.weights, *self._fresh(t))
            states.append(h)
        return torch.stack(states)

    def _walk_forward(self) -> Tensor:
        """Outputs; the state moves on in place."""
        with torch.no_grad():
            states = self._states()
            self.h.copy_(states[-1])
            return _read(self.cell, states, self.xs[self.n :]).transpose(0, 1)

    def _walk_back(self) -> None:
        """Gradients by streams; those by the weights add up, that by the state moves back in place.

        Only the chain of states is walked: what reads them before, and streams and weights after, are differentiated
        for all steps at once.
        """
        n = self.n
        with torch.no_grad():
            states = self._states() if self.cell.read is not None else self.y.transpose(0, 1)
            before = torch.cat([self.h[None], states[:-1]])
            if self.reset is not None:
                before = torch.where(self.reset.view(*self.reset.shape, *[1] * (self.h.dim() - 1)), 0, before)
        with torch.enable_grad():
            read, *queries = [x.detach().requires_grad_() for x in (states, *self.xs[n:])]
            y = _read(self.cell, read, queries)
            dstates, *dqueries = torch.autograd.grad(y, [read, *queries], self.dy.transpose(0, 1), allow_unused=True)
            dstates = dstates.contiguous()
        leaves = [x.detach().requires_grad_() for x in (*self.xs[:n], *self.weights)]
        start = before.flatten(0, 1).requires_grad_()
        last, saved = saving(lambda: self.cell.update(start, *[x.flatten(0, 1) for x in leaves[:n]], *leaves[n:]))
        arriving, dh = [], self.dh
        with torch.no_grad():
            for t in reversed(range(self.steps)):
                pieces = [part(x, shape, t) for x, shape in zip(saved, self.step.shapes, strict=True)]
                total, dh = self.step.back(dh, dstates[t], *pieces, *self._fresh(t))
                arriving.append(total)
            cotangent = torch.stack(arriving[::-1]).flatten(0, 1)
        found = torch.autograd.grad(last, leaves, cotangent, allow_unused=True)
        self.dh.copy_(dh)
        for target, g in zip(self.dxs, (*found[:n], *dqueries), strict=True):
            target.zero_() if g is None else target.copy_(g)
        for target, g in zip(self.dweights, found[n:], strict=True):
            if g is not None:
                target.add_(g)

    def _captured(self, work: Callable[[], object]) -> torch.cuda.CUDAGraph:
        """A graph of `work`, which leaves its results in tensors that stay: what it returns is not to be used."""
        stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            work()
        torch.cuda.current_stream().wait_stream(stream)
        return capture(work, shared=True)


def _loop(cell: Cell, h: Tensor, xs: list[Tensor], weights: list[Tensor], kind: Kind, reset_BT: Tensor | None) -> Loop:
    """The graphs for these shapes, captured at the first use."""
    key = (identity(cell.read), kind, *_key(cell, h, xs, weights), reset_BT is not None)
    return _kept(_loops, key, lambda: Loop(cell, h, xs, weights, kind, reset_BT))


def _key(cell: Cell, h: Tensor, xs: list[Tensor], weights: list[Tensor]) -> tuple[Hashable, ...]:
    return (identity(cell.update), h.device, *((tuple(t.shape), t.dtype) for t in (h, *xs, *weights)))


def _kept(store: OrderedDict[Hashable, T], key: Hashable, make: Callable[[], T]) -> T:
    """What the store has under the key, made at the first use; the least recently used leave."""
    if key not in store:
        while len(store) >= KEPT:
            store.popitem(last=False)
        store[key] = make()
    store.move_to_end(key)
    return store[key]


class _Walk(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, cell: Cell, kind: Kind, back: bool, reset_BT: Tensor | None, h: Tensor, *rest: Tensor
    ) -> tuple[Tensor, Tensor]:
        n = sum(kind)
        xs, weights = list(rest[:n]), list(rest[n:])
        steps, starts, parts = xs[0].shape[1], [], []
        for t in range(0, steps, SEGMENT):
            part, reset = _segment(xs, t), None if reset_BT is None else reset_BT[:, t : t + SEGMENT]
            loop = _loop(cell, h, part, weights, kind, reset)
            if back:
                loop.prepare_backward()
            starts.append(h.clone())
            loop.h.copy_(h)
            loop.load(part, reset)
            copy_all(loop.weights, weights)
            loop.forward.replay()
            parts.append(loop.y.clone())
            h = loop.h.clone()
        ctx.cell, ctx.kind, ctx.reset = cell, kind, reset_BT
        y = torch.cat(parts, 1)
        ctx.save_for_backward(*starts, *rest, *([y] if cell.read is None else []))
        ctx.n_starts = len(starts)
        return y, h

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor, dh: Tensor) -> tuple[Any, ...]:
        saved = list(ctx.saved_tensors)
        states = saved.pop() if ctx.cell.read is None else None
        starts, rest = saved[: ctx.n_starts], saved[ctx.n_starts :]
        n = sum(ctx.kind)
        xs, weights = rest[:n], rest[n:]
        dxs, dweights = [torch.empty_like(x) for x in xs], [torch.zeros_like(w) for w in weights]
        for i in reversed(range(len(starts))):
            t = i * SEGMENT
            part, reset = _segment(xs, t), None if ctx.reset is None else ctx.reset[:, t : t + SEGMENT]
            loop = _loop(ctx.cell, starts[i], part, weights, ctx.kind, reset)
            loop.prepare_backward()
            assert loop.backward is not None
            loop.load(part, reset)
            copy_all([loop.h, loop.dh, loop.dy], [starts[i], dh, dy[:, t : t + SEGMENT]])
            if states is not None:
                loop.y.copy_(states[:, t : t + SEGMENT])
            copy_all([*loop.weights, *loop.dweights], [*weights, *dweights])
            loop.backward.replay()
            for whole, piece in zip(dxs, loop.dxs, strict=True):
                whole[:, t : t + SEGMENT] = piece.transpose(0, 1)
            dh, dweights = loop.dh.clone(), [d.clone() for d in loop.dweights]
        return None, None, None, None, dh, *dxs, *dweights


def copy_all(targets: list[Tensor], sources: list[Tensor]) -> None:
    """Copy tensor by tensor, in one launch; there may be none."""
    if targets:
        torch._foreach_copy_(targets, sources)


def _segment(xs: list[Tensor], t: int) -> list[Tensor]:
    return [x[:, t : t + SEGMENT] for x in xs]
