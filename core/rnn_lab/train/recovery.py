"""What becomes of a run some of whose steps are not finite: `train.on_nonfinite`.

`stop` ends it at the first. `rollback` skips up to two such steps in a row, which are then steps without a loss; after
the third the run goes back to its last checkpoint, which none of them is in, and takes smaller steps for a while. A run
that comes to it a second time ends.
"""

from collections.abc import Sequence
from typing import Any

from rnn_lab.train.step import PATIENCE, SLOWED

SLOW_STEPS = 100
"""Steps after a roll-back at the smaller rate."""
MOST = 1
"""Roll-backs of a run."""


class Recovery:
    """Counts what was skipped and how often the run went back.

    Args:
        active: whether `rollback` is asked for.
        rows: roll-backs of earlier sessions.

    """

    def __init__(self, active: bool, rows: Sequence[dict[str, Any]] = ()) -> None:
        self.active, self.rows = active, list(rows)
        self.missed = 0
        """Steps in a row that were not applied."""

    def count(self, finite: bool) -> None:
        """Another step."""
        self.missed = 0 if finite else self.missed + 1

    @property
    def spent(self) -> bool:
        """Whether the run cannot go on from here."""
        return self.missed >= (PATIENCE if self.active else 1)

    @property
    def may_go_back(self) -> bool:
        """Whether a roll-back is left."""
        return self.active and len(self.rows) < MOST

    @property
    def slow_until(self) -> int:
        """Last step at the smaller rate; 0 where there was no roll-back."""
        return int(self.rows[-1]["to"]) + SLOW_STEPS if self.rows else 0

    @property
    def told(self) -> str:
        """The last roll-back, for people."""
        row = self.rows[-1]
        return (
            f"steps {row['at'] - PATIENCE + 1} to {row['at']} were not finite ({row['where']} first): back to step "
            f"{row['to']}, at {SLOWED:g} times the rate until step {self.slow_until}"
        )

    def went_back(self, at: int, to: int, where: str) -> None:
        """A roll-back from step `at` to the checkpoint of step `to`."""
        self.rows.append({"at": at, "to": to, "where": where})
        self.missed = 0
