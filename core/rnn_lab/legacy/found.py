"""What a reader finds in a file: runs with the figures that the source states, and what it left unread.

Nothing is inferred. A figure that the source does not state is None; a mean whose window it does not state stays one.
"""

import math
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rnn_lab.errors import DataError
from rnn_lab.train.metrics import WINDOW


class LogError(DataError):
    """A line of a source that looks like something we know and is not; the message names file and line."""


def log_error(path: Path, line: int, what: str) -> LogError:
    """An error at a line of a source."""
    return LogError(f"{path}:{line}: {what}")


@dataclass(frozen=True)
class Point:
    """One printed loss.

    Attributes:
        step: optimizer step that it was printed at; counts from 1.
        loss: as printed, nats per byte; NaN where that was printed.
        line: of the source, from 1.
        values: what else stood there: lr, grad_norm, tokens_per_s, seconds, memory_bytes.
    """

    step: int
    loss: float
    line: int
    values: dict[str, float] = field(default_factory=dict)


@dataclass
class FoundRun:
    """One run of a source.

    Attributes:
        label: what the source calls it.
        first: first line that belongs to it.
        last: last one.
        points: printed losses in the order of the source.
        figures: further losses by the source's own name, each with its line.
        stated: everything else that the source says, by our names where we have one.
        complete: whether the source says that the run came to its end.
        error: what the source says went wrong.
    """

    label: str
    first: int
    last: int
    points: list[Point] = field(default_factory=list)
    figures: dict[str, tuple[float, int]] = field(default_factory=dict)
    stated: dict[str, Any] = field(default_factory=dict)
    complete: bool = False
    error: str | None = None

    @property
    def steps(self) -> int | None:
        """Steps of the run: as stated, else the last one that was printed."""
        stated = self.stated.get("steps")
        if stated is not None:
            return int(stated)
        return self.points[-1].step if self.points else None

    @property
    def diverged(self) -> bool:
        """Whether a loss was printed that is not finite."""
        losses = [point.loss for point in self.points] + [value for value, _ in self.figures.values()]
        return any(not math.isfinite(loss) for loss in losses)


@dataclass
class Source:
    """A file that was read: its runs, and how many lines of each kind were not used.

    Attributes:
        path: the file.
        format: reader that understood it.
        runs: in the order of the file.
        ignored: lines by kind that hold no figure of a run.
        examples: first line of each ignored kind.
    """

    path: Path
    format: str
    runs: list[FoundRun] = field(default_factory=list)
    ignored: Counter[str] = field(default_factory=Counter)
    examples: dict[str, int] = field(default_factory=dict)

    def ignore(self, kind: str, line: int) -> None:
        """Count a line that is not used."""
        self.ignored[kind] += 1
        self.examples.setdefault(kind, line)


def number(text: str) -> float:
    """A printed number: `16,384,000`, `1.6347`, `nan`, `102M`, `~88K`.

    Raises:
        ValueError: it is none.
    """
    plain = text.strip().lstrip("~").replace(",", "").replace("_", "")
    scale = {"K": 1e3, "M": 1e6, "B": 1e9, "G": 1e9}.get(plain[-1:].upper(), 1.0) if plain else 1.0
    return float(plain[:-1] if scale != 1.0 else plain) * scale


def whole(text: str) -> int:
    """A printed whole number, commas allowed.

    Raises:
        ValueError: it is none.
    """
    return int(text.replace(",", "").replace("_", ""))


def last100(run: FoundRun, window: int | None) -> float | None:
    """Our last100 from printed means of `window` steps each, or None where they do not give exactly that.

    They do when disjoint windows cover the last 100 steps: one mean of 100 steps, ten of 10, a hundred of 1.

    Args:
        run: with its points in order.
        window: optimizer steps that every printed loss is the mean of; None when nobody said.
    """
    steps = run.steps
    if window is None or steps is None or steps < WINDOW or WINDOW % window:
        return None
    wanted = range(steps - WINDOW + window, steps + 1, window)
    by_step = {point.step: point.loss for point in run.points}
    losses = [by_step.get(step, math.nan) for step in wanted]
    return math.fsum(losses) / len(losses) if all(map(math.isfinite, losses)) else None
