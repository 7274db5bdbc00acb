"""Layers at work on several chunks of time at once: layer l on chunk c while layer l - 1 is on chunk c + 1.

A recurrence waits for its own last step most of the time and leaves much of a GPU idle, above all where the batch is
small. Layer l may begin a chunk as soon as layer l - 1 has ended it, and layer l itself the chunk before, whose last
state it goes on from. The results are those of the plain pass; gradients by weights are summed chunk by chunk.

A chunk has a CUDA stream of its own while the step is captured in a graph, and autograd goes back on the same ones.
Outside of a capture chunks follow each other: launches from Python leave nothing to overlap, and a loop that replays
graphs of its own has one set of buffers. Chunks are walked in waves either way, l + c = 0, 1, 2, ...
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from rnn_lab.blocks import Blocks, cut, cut_if, joined
from rnn_lab.kernels.beside import beside
from rnn_lab.layer import State
from rnn_lab.token_filter import active

CHUNKS, SHORTEST = 3, 128
"""Chunks of time where nobody says how many, and steps of the shortest.

Of 1, 3, 4 and 6 chunks of 512 steps three or four were the best for each model that was measured (docs/performance.md);
six, of 85 steps, lost more the larger a kernel's beginning and end are. Other lengths are not measured.
"""


@dataclass(frozen=True)
class Wavefront:
    """How time is cut.

    Attributes:
        chunks: of time, as equal as can be.
        unasked: whether `overlap` decided that there are any.

    """

    chunks: int
    unasked: bool = False

    def of(self, blocks: Blocks) -> Blocks:
        """`blocks`, wave by wave."""

        def run(
            which: range, stream: Tensor, y: Tensor | None, states: list[State] | None, reset: Tensor | None
        ) -> tuple[Tensor, Tensor | None, list[State]]:
            T, depth, held = stream.shape[1], len(which), active()
            n = min(self.chunks, T)
            ends = [c * T // n for c in range(n + 1)]
            streams, added, resets = list(cut(stream, ends)), list(cut_if(y, ends)), cut_if(reset, ends)
            carried: list[list[State] | None]
            carried = [None] * depth if states is None else [[state] for state in states]
            lanes = _Lanes(n, stream.device)
            with lanes.beside(min(n, depth)):
                for layer, c in _waves(depth, n):
                    before, own = carried[layer], which[layer : layer + 1]
                    read = [streams[c], added[c], *(t for state in before or [] for t in state.values())]
                    with lanes.on(c, layer, read), held.during(ends[c], ends[c + 1]) if held else nullcontext():
                        streams[c], added[c], carried[layer] = blocks(own, streams[c], added[c], before, resets[c])
            return *joined(streams, added), [state for own in carried for state in own or []]

        return run


def leave_room(model: Any) -> bool:
    """Whether each of an `LM`'s layers left most of a GPU idle in the last pass, so that several may share it."""
    return len(model.layers) > 1 and all(map(_leaves_room, model.layers))


def overlap(model: Any, T: int) -> bool:
    """Let the layers of an `LM` work on several chunks of T steps at once; False where that is decided, or T short."""
    chunks = min(CHUNKS, T // SHORTEST)
    if model.walk is not None or chunks < 2:
        return False
    model.walk = Wavefront(chunks, unasked=True)
    return True


def undo_overlap(model: Any) -> None:
    """One layer after the other again, unless somebody asked for chunks."""
    if isinstance(model.walk, Wavefront) and model.walk.unasked:
        model.walk = None


def _leaves_room(layer: nn.Module) -> bool:
    return any(choice.leaves_room for choice in getattr(layer, "backends", {}).values())


def _waves(depth: int, chunks: int) -> Iterator[tuple[int, int]]:
    """Layers and chunks in an order in which each comes behind what it needs."""
    for wave in range(depth + chunks - 1):
        for c in range(max(0, wave - depth + 1), min(chunks, wave + 1)):
            yield wave - c, c


class _Lanes:
    """A stream for each chunk while a graph is captured; else the current one for all.

    torch hands memory on from call to call of one stream without a wait. What comes from another stream is therefore
    marked as used by both, and a weight is rounded by each lane for itself, not once for all by autocast. Gradients by
    a weight come from all lanes and are summed on the first that read it: torch waits, and would warn that it does.
    """

    def __init__(self, n: int, device: torch.device) -> None:
        self.streams: list[torch.cuda.Stream] = []
        if device.type == "cuda" and torch.cuda.is_current_stream_capturing():
            self.streams = _streams(n, device)
            torch.autograd.graph.set_warn_on_accumulate_grad_stream_mismatch(False)
        self.ended: dict[int, torch.cuda.Event] = {}
        """By layer: the end of its newest chunk."""

    @contextmanager
    def beside(self, most: int) -> Iterator[None]:
        """All lanes begin where the current stream is, and it waits for all; `most` are at work at once."""
        if not self.streams:
            yield
            return
        around, cached = torch.cuda.current_stream(), torch.is_autocast_cache_enabled()
        for lane in self.streams:
            lane.wait_stream(around)
        torch.set_autocast_cache_enabled(False)
        try:
            with beside(most):
                yield
        finally:
            torch.set_autocast_cache_enabled(cached)
        for lane in self.streams:
            around.wait_stream(lane)

    @contextmanager
    def on(self, c: int, layer: int, read: Iterable[Tensor | None]) -> Iterator[None]:
        """Chunk c of a layer, behind the chunk before it, which reads these tensors."""
        if not self.streams:
            yield
            return
        lane = self.streams[c]
        if c:
            lane.wait_event(self.ended[layer])
        for tensor in read:
            if tensor is not None:
                tensor.record_stream(lane)
        with torch.cuda.stream(lane):
            yield
            self.ended[layer] = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self.ended[layer].record(lane)


@cache
def _streams(n: int, device: torch.device) -> list[torch.cuda.Stream]:
    return [torch.cuda.Stream(device) for _ in range(n)]  # type: ignore[no-untyped-call]
