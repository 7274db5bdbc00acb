"""metrics.jsonl: one line per optimizer step, the source of truth of a run.

Losses are nats per byte over all positions, computed in fp32; bits per byte = nats / ln 2. `last100` is the mean
of the individual losses of the last 100 optimizer steps, null before step 100. A step that was skipped because its loss
was not finite has null for a loss; wherever the losses of all steps are needed, that of the step before stands in.
"""

import json
import math
import os
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from rnn_lab.diagnostics.rule import LONGEST
from rnn_lab.errors import CheckpointError
from rnn_lab.system.atomic import write_bytes_atomic

WINDOW = 100
_TAIL = 1 << 16


def bits_per_byte(nats: float | None) -> float | None:
    """nats / ln 2; None stays None."""
    return None if nats is None else nats / math.log(2)


def read_metrics(path: Path) -> Iterator[dict[str, Any]]:
    """Complete lines of a metrics file in order; a last line torn by a crash is left out.

    Raises:
        CheckpointError: a line is not what this file holds.
    """
    if not path.exists():
        return
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if not line.endswith(b"\n"):
                return
            try:
                record = json.loads(line)
                record["step"], record["loss"]
            except (ValueError, TypeError, KeyError) as error:
                raise CheckpointError(f"{path}, line {number}: not a line of metrics: {line[:60]!r}") from error
            yield record


def last_line(path: Path) -> dict[str, Any]:
    """Last complete line of a metrics file, found from its end; empty before the first step.

    Raises:
        CheckpointError: it is not what this file holds.
    """
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - _TAIL))
            lines = file.read().split(b"\n")[:-1]
    except FileNotFoundError:
        return {}
    if not lines:
        return {}
    try:
        line = json.loads(lines[-1])
        line["step"], line["loss"]
    except (ValueError, TypeError, KeyError) as error:
        raise CheckpointError(f"{path}: its last line is not one of metrics: {lines[-1][:60]!r}") from error
    return dict(line)


class MetricsLog:
    """Appends step lines and knows `last100`.

    Args:
        path: metrics.jsonl; lines after `step` are dropped, because a resumed run repeats those steps.
        step: last step that the run keeps.
    """

    def __init__(self, path: Path, step: int = 0) -> None:
        kept = [line for line in read_metrics(path) if line["step"] <= step]
        if [line["step"] for line in kept] != list(range(1, step + 1)):
            raise CheckpointError(f"{path} does not hold steps 1 to {step} one by one: restore it from a copy")
        self.last_line: dict[str, Any] = kept[-1] if kept else {}
        self.recent = kept[-LONGEST:]
        """The last lines that were there."""
        self._window: deque[float] = deque(maxlen=WINDOW)
        for line in kept:
            self.add_loss(line["loss"])
        write_bytes_atomic(path, b"".join(_encode(line) for line in kept))
        self._file: IO[bytes] = path.open("ab")

    @property
    def last100(self) -> float | None:
        """Mean loss of the last 100 steps, or None before there were so many."""
        return math.fsum(self._window) / WINDOW if len(self._window) == WINDOW else None

    def add_loss(self, loss: float | None) -> None:
        """Count a step's loss towards `last100`; None: it has none."""
        if loss is not None:
            self._window.append(loss)
        elif self._window:
            self._window.append(self._window[-1])

    def write(self, line: dict[str, Any]) -> None:
        """Append one line; the kernel has it when this returns."""
        self._file.write(_encode(line))
        self._file.flush()

    def sync(self) -> None:
        """Make every line durable: called before a checkpoint claims its step."""
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Close the file."""
        self._file.close()


class UnwrittenLog(MetricsLog):
    """The same without lines and file, for a process beside the one that writes them."""

    def __init__(self) -> None:
        self.last_line, self.recent = {}, []
        self._window = deque(maxlen=WINDOW)

    def write(self, line: dict[str, Any]) -> None:
        """Nothing."""

    def sync(self) -> None:
        """Nothing."""

    def close(self) -> None:
        """Nothing."""


def _encode(line: dict[str, Any]) -> bytes:
    return json.dumps(line, allow_nan=False).encode() + b"\n"
