"""metrics.jsonl: one line per optimizer step, the source of truth of a run.

Losses are nats per byte over all positions, computed in fp32; bits per byte = nats / ln 2. `last100` is the mean
of the individual losses of the last 100 optimizer steps, null before step 100.
"""

import json
import math
import os
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from rnn_lab.atomic import write_bytes_atomic

WINDOW = 100


def bits_per_byte(nats: float | None) -> float | None:
    """nats / ln 2; None stays None."""
    return None if nats is None else nats / math.log(2)


def read_metrics(path: Path) -> Iterator[dict[str, Any]]:
    """Complete lines of a metrics file in order; a last line torn by a crash is left out."""
    if not path.exists():
        return
    with path.open("rb") as file:
        for line in file:
            if line.endswith(b"\n"):
                yield json.loads(line)


class MetricsLog:
    """Appends step lines and knows `last100`.

    Args:
        path: metrics.jsonl; lines after `step` are dropped, because a resumed run repeats those steps.
        step: last step that the run keeps.
    """

    def __init__(self, path: Path, step: int = 0) -> None:
        kept = [line for line in read_metrics(path) if line["step"] <= step]
        self._window = deque((line["loss"] for line in kept if "loss" in line), maxlen=WINDOW)
        write_bytes_atomic(path, b"".join(_encode(line) for line in kept))
        self._file: IO[bytes] = path.open("ab")

    @property
    def last100(self) -> float | None:
        """Mean loss of the last 100 steps, or None before there were so many."""
        return math.fsum(self._window) / WINDOW if len(self._window) == WINDOW else None

    def add_loss(self, loss: float) -> None:
        """Count a step's loss towards `last100`."""
        self._window.append(loss)

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


def _encode(line: dict[str, Any]) -> bytes:
    return json.dumps(line, allow_nan=False).encode() + b"\n"
