"""What a diagnostic is: an id, a severity, a condition over the last lines of metrics.jsonl, and what to change.

No torch here: rules read numbers that are on record anyway, so that looking costs the device nothing.
"""

from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from math import isfinite
from statistics import fmean, median
from typing import Any, Literal

from rnn_lab.config import RunConfig

Severity = Literal["info", "warning", "error"]
Moment = Literal["start", "step", "end", "event", "comparison"]
LONGEST = 200
"""Lines of metrics that a rule can look back at."""
SMOOTH = 0.05
"""Weight of a new loss in its moving average."""
SETTLING = 50
"""Steps of a run that count as its beginning where it has no warm-up, or a shorter one."""


@dataclass(frozen=True)
class Facts:
    """What does not change over a run.

    Attributes:
        cfg: the resolved configuration.
        total_steps: budget in steps; None for minutes.
        warmup_steps: steps over which the rate rises; None where that is a share of minutes.
        muon: whether matrices are stepped by Muon, which a gradient's length does not matter to.
        memory: bytes of the device, or None where that is no limit.
        needs: bytes that the run takes at least, by what for.
        unsaved: share of Muon's parameters whose projection would save nothing; None without GaLore.
        wider: a larger rank than GaLore's that still saves; None where there is none.
        backward: seconds of backward through one product, dense and filtered; None where not measured.

    """

    cfg: RunConfig
    total_steps: int | None = None
    warmup_steps: int | None = 0
    muon: bool = False
    memory: int | None = None
    needs: Mapping[str, int] = field(default_factory=dict)
    unsaved: float | None = None
    wider: int | None = None
    backward: tuple[float, float] | None = None


class Window:
    """The last lines of metrics.jsonl, and what rules ask of them."""

    def __init__(self, facts: Facts, lines: Iterable[Mapping[str, Any]] = ()) -> None:
        self.facts = facts
        self.at: Moment = "start"
        self.lines: deque[Mapping[str, Any]] = deque(maxlen=LONGEST)
        self.smooth: float | None = None
        """Moving average of the loss."""
        self.lowest: float | None = None
        """The lowest that it was after the run's beginning."""
        self.begun = 0
        """Last step of the beginning: of the warm-up, or SETTLING."""
        self._medians: dict[tuple[str, int], tuple[int, float | None]] = {}
        for line in lines:
            self.add(line)

    def add(self, line: Mapping[str, Any]) -> None:
        """The next line."""
        self.lines.append(line)
        if self._begins(line):
            self.begun = line["step"]
        loss = line.get("loss")
        if loss is None:
            return
        self.smooth = loss if self.smooth is None else self.smooth + SMOOTH * (loss - self.smooth)
        if self.step > self.begun:
            self.lowest = self.smooth if self.lowest is None else min(self.lowest, self.smooth)

    def _begins(self, line: Mapping[str, Any]) -> bool:
        steps = self.facts.warmup_steps
        if line["step"] <= max(SETTLING, steps or 0):
            return True
        minutes = self.facts.cfg.train.minutes
        if steps is not None or minutes is None:
            return False
        return float(line["seconds"]) < self.facts.cfg.schedule.warmup * 60 * minutes

    @property
    def step(self) -> int:
        """Of the last line; 0 before there is one."""
        return int(self.lines[-1]["step"]) if self.lines else 0

    @property
    def line(self) -> Mapping[str, Any]:
        """The last line."""
        return self.lines[-1] if self.lines else {}

    def settled(self, lines: int = 1) -> bool:
        """Whether the last `lines` lines are there and lie after the warm-up, or the first steps of a run without."""
        return len(self.lines) >= lines and self.step - lines >= self.begun

    def column(self, name: str, lines: int = LONGEST) -> list[float]:
        """Values of the last `lines` lines, oldest first, without those that have none."""
        found = (line.get(name) for line in list(self.lines)[-lines:])
        return [float(value) for value in found if value is not None and isfinite(value)]

    def mean(self, name: str, lines: int) -> float | None:
        """Mean of a column, None where it is empty."""
        values = self.column(name, lines)
        return fmean(values) if values else None

    def running_median(self, name: str, lines: int) -> float | None:
        """As `median`, renewed every tenth step: for what is asked at every step."""
        key, now = (name, lines), self.step // 10
        if key not in self._medians or self._medians[key][0] != now:
            self._medians[key] = now, self.median(name, lines)
        return self._medians[key][1]

    def median(self, name: str, lines: int) -> float | None:
        """Median of a column, None where it is empty."""
        values = self.column(name, lines)
        return median(values) if values else None


Check = Callable[[Window], str | None]
Advice = str | Callable[[Window], str]


@dataclass(frozen=True)
class Rule:
    """One diagnostic.

    Attributes:
        id: `D-...`, also the key `diag/<id>` of metrics.jsonl.
        severity: an error ends the run under `diagnostics.strict`.
        condition: in words, for the documentation.
        check: the message, with the current value, where the condition holds; else None.
        suggest: keys of the configuration to change, as TOML.
        at: when it is looked at: `start` and `end` of a session, every `step`; or when others find it to hold: an
            `event` of the trainer, a `comparison` of runs.
        every: steps between looks at steps.
        for_muon: severity where matrices are stepped by Muon, if that is another.

    """

    id: str
    severity: Severity
    condition: str
    check: Check
    suggest: Advice
    at: tuple[Moment, ...] = ("step",)
    every: int = 1
    for_muon: Severity | None = None

    def weight(self, facts: Facts) -> Severity:
        """Its severity in this run."""
        return self.for_muon if facts.muon and self.for_muon is not None else self.severity

    def advice(self, window: Window) -> str:
        """What to change, as TOML."""
        return self.suggest if isinstance(self.suggest, str) else self.suggest(window)


@dataclass(frozen=True)
class Finding:
    """A rule whose condition held.

    Attributes:
        id, severity: of the rule.
        step: where.
        message: with the value.
        suggestion: what to change, as TOML.

    """

    id: str
    severity: Severity
    step: int
    message: str
    suggestion: str

    def __str__(self) -> str:
        """One line for a person."""
        cure = f" Try: {self.suggestion}" if self.suggestion else ""
        return f"{self.id} ({self.severity}) at step {self.step}: {self.message}.{cure}"


def nothing(window: Window) -> str | None:
    """The check of rules that somebody else finds to hold."""
    return None
