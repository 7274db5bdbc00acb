"""How long a run may go on: steps, bytes read, or minutes of the training clock, whichever ends first."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from rnn_lab.config import TrainSection
from rnn_lab.errors import BudgetTooSmall

DEFAULT_STEPS = 1000


@dataclass(frozen=True)
class Budget:
    """Limits of a run; None where there is none."""

    steps: int | None
    tokens: int | None
    seconds: float | None
    tokens_per_step: int

    @classmethod
    def of(cls, train: TrainSection) -> "Budget":
        """Budget of a configuration; 1,000 steps when it names none.

        Raises:
            BudgetTooSmall: the token budget does not hold one step.
        """
        per_step = train.batch_size * train.seq_len
        if train.tokens is not None and train.tokens < per_step:
            raise BudgetTooSmall(
                f"train.tokens = {train.tokens:,} is less than one step of {train.batch_size} x {train.seq_len} = "
                f"{per_step:,} bytes: raise it, or lower --batch-size or --seq-len"
            )
        none = train.steps is None and train.tokens is None and train.minutes is None
        seconds = None if train.minutes is None else train.minutes * 60
        return cls(DEFAULT_STEPS if none else train.steps, train.tokens, seconds, per_step)

    def allows(self, steps_done: int, train_seconds: float) -> bool:
        """Whether one more step may start after `steps_done` steps and `train_seconds` on the training clock."""
        return (
            (self.steps is None or steps_done < self.steps)
            and (self.tokens is None or (steps_done + 1) * self.tokens_per_step <= self.tokens)
            and (self.seconds is None or train_seconds < self.seconds)
        )

    def fraction(self, steps_done: int, train_seconds: float) -> float:
        """How much of the budget is spent, 0 to 1."""
        parts = [0.0]
        if self.steps is not None:
            parts.append(steps_done / self.steps)
        if self.tokens is not None:
            parts.append(steps_done * self.tokens_per_step / self.tokens)
        if self.seconds is not None:
            parts.append(train_seconds / self.seconds)
        return min(1.0, max(parts))

    def check_first_step(self, step_seconds: float) -> None:
        """Refuse a time budget that the first timed step alone overran by its double.

        Raises:
            BudgetTooSmall: it did.
        """
        if self.seconds is not None and step_seconds > 2 * self.seconds:
            raise BudgetTooSmall(
                f"train.minutes allows {self.seconds:.3g} s, and one step takes {step_seconds:.3g} s: give at least "
                f"--minutes {2 * step_seconds / 60:.2g}, or lower --batch-size, --seq-len or --target"
            )


def budget_text(train: Mapping[str, Any]) -> str:
    """The limits in a [train] table: `1,000 steps`, `10 minutes`, or both; what a run has that names none."""
    names = {"steps": "steps", "tokens": "bytes", "minutes": "minutes"}
    limits = [f"{train[key]:,g} {unit}" for key, unit in names.items() if train.get(key) is not None]
    return " or ".join(limits) or f"{DEFAULT_STEPS:,} steps"
