"""Signs of life of a run: what changes in its files while it lives."""

import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from rnn_lab.errors import CheckpointError
from rnn_lab.train.metrics import last_line


class Signs:
    """How long a run has been silent, by this machine's clock: its log, its metrics, its checkpoints."""

    def __init__(self, folder: Path, log: Path) -> None:
        self._paths = (log, folder / "metrics.jsonl", folder / "checkpoints")
        self._seen: tuple[object, ...] = ()
        self._since = time.monotonic()

    def idle(self) -> float:
        """Seconds since something changed; to be asked again and again."""
        now = tuple(_stamp(path) for path in self._paths)
        if now != self._seen:
            self._seen, self._since = now, time.monotonic()
        return time.monotonic() - self._since


def newest(folder: Path) -> dict[str, Any]:
    """Newest line of a run's metrics; a file that somebody damaged is the run's own trouble, not the executor's."""
    try:
        return last_line(folder / "metrics.jsonl")
    except (CheckpointError, OSError):
        return {}


def say(log: Path, text: str) -> None:
    """Add a line to a task's log, where it can be written."""
    with suppress(OSError):
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("a", encoding="utf-8") as file:
            file.write(f"{text}\n")


def _stamp(path: Path) -> object:
    try:
        stat = path.stat()
    except OSError:
        return None
    return stat.st_mtime_ns, stat.st_size
