"""Where figures go besides metrics.jsonl."""

from typing import Any, Protocol


class Tracker(Protocol):
    """Receives every step of a run. Made by a factory that takes (run_dir, RunConfig, first_step)."""

    def log(self, step: int, line: dict[str, Any]) -> None:
        """One line of metrics.jsonl."""

    def close(self, result: dict[str, Any]) -> None:
        """The run is over; `result` is what result.json holds."""
