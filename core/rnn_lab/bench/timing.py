"""Milliseconds of a call: warmed up, by CUDA events on a GPU, with the spread.

Calls are given as a list that is used in turn, so that inputs which would fit in the cache can be rotated.
"""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from statistics import median, quantiles
from typing import Any

import torch

from rnn_lab.cuda_graphs import capture

Call = Callable[[], object]
LEAST, MOST = 3, 200
"""Timed calls of one measurement."""
GRAPH_MS = 1.0
"""A graph holds as many calls as take this long: the launch of a shorter one would be part of the figure."""
MOST_IN_GRAPH = 64
LONG_MS = 20.0
"""An eager call beyond this is captured once: it is a loop of thousands of kernels, and larger than any cache."""


@dataclass(frozen=True)
class Spread:
    """Median and quartiles in milliseconds, and how many calls they come from."""

    median: float
    q1: float
    q3: float
    n: int

    @classmethod
    def of(cls, ms: Sequence[float]) -> "Spread":
        """Of at least one figure."""
        low, _, high = quantiles(ms, n=4, method="inclusive") if len(ms) > 1 else (ms[0],) * 3
        return cls(median(ms), low, high, len(ms))

    def as_dict(self) -> dict[str, Any]:
        """JSON form."""
        return asdict(self)


def synchronise(device: torch.device) -> None:
    """Wait for everything that was launched."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def intervals(calls: Sequence[Call], n: int, device: torch.device) -> list[float]:
    """Milliseconds of `n` calls that follow each other without a pause."""
    if device.type != "cuda":
        ticks = [time.perf_counter()]
        for i in range(n):
            calls[i % len(calls)]()
            ticks.append(time.perf_counter())
        return [1e3 * (after - before) for before, after in pairwise(ticks)]
    marks = [torch.cuda.Event(enable_timing=True) for _ in range(n + 1)]  # type: ignore[no-untyped-call]
    marks[0].record()
    for i in range(n):
        calls[i % len(calls)]()
        marks[i + 1].record()
    synchronise(device)
    return [before.elapsed_time(after) for before, after in pairwise(marks)]


def time_eager(calls: Sequence[Call], device: torch.device, seconds: float) -> Spread:
    """One call, launched from Python each time; `seconds` bounds the whole measurement."""
    for call in calls:
        call()
    synchronise(device)
    once = intervals(calls, 1, device)[0]
    return Spread.of(intervals(calls, _repeats(once, seconds), device))


def time_graph(calls: Sequence[Call], device: torch.device, seconds: float) -> Spread:
    """One call as part of a replayed CUDA graph."""
    calls[0]()
    synchronise(device)
    once = intervals(calls, 1, device)[0]
    turns = 1 if once > LONG_MS else len(calls) * math.ceil(min(MOST_IN_GRAPH, GRAPH_MS / once) / len(calls))
    graph = captured([calls[i % len(calls)] for i in range(turns)])
    graph.replay()
    synchronise(device)
    replay = intervals([graph.replay], 1, device)[0]
    ms = intervals([graph.replay], _repeats(replay, seconds), device)
    return Spread.of([value / turns for value in ms])


@dataclass(frozen=True)
class Captured:
    """A graph, and the calls in it: what they hold is memory that every replay reads and writes."""

    graph: torch.cuda.CUDAGraph
    calls: tuple[Call, ...]

    def replay(self) -> None:
        """Launch it."""
        self.graph.replay()


def captured(calls: Sequence[Call]) -> Captured:
    """A graph of `calls` in their order; each is run once before, on a stream of its own."""
    side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for call in dict.fromkeys(calls):
            call()
    torch.cuda.current_stream().wait_stream(side)
    return Captured(capture(lambda: [call() for call in calls]), tuple(calls))


def _repeats(ms: float, seconds: float) -> int:
    return max(LEAST, min(MOST, int(1e3 * seconds / max(ms, 1e-3))))
