"""Verdicts: is one run, or one group of runs over seeds, better than another, at an equal budget.

A budget is the largest that all compared runs reach, in steps, tokens, FLOPs or seconds of training. A run's loss there
is the mean of the last `window` steps before it, interpolated between the two steps around it. Differences are the
second less the first, in nats per byte: below zero is better. docs/comparison.md gives formulas and assumptions.
"""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

import numpy as np

from rnn_lab.comparison.differences import (
    AXES,
    ENDED,
    FAILED,
    TOLERANCE,
    TOPICS,
    Difference,
    obstacles,
    validated_otherwise,
)
from rnn_lab.comparison.records import RunRecord, Series1D
from rnn_lab.comparison.stats import LEVEL, MIN_WINDOW, Estimate, mean_of_seeds, mean_of_steps
from rnn_lab.comparison.timing import clock_doubt, clock_error, clock_note, with_clocks
from rnn_lab.errors import ConfigError, RunError
from rnn_lab.train.metrics import WINDOW

Verdict = Literal["better", "worse", "indistinguishable", "inconclusive", "failed", "refused"]
ONE_SEED = "within-run only (one seed)"
VALIDATION = "val_loss"
"""Stands for an axis: the validation loss at the end of runs that were given an equal budget."""
_COLUMN = {"steps": "step", "tokens": "tokens", "flops": "flops", "seconds": "seconds"}


class Refused(ConfigError):
    """The runs are not equal in what must be equal; `obstacles` lists it."""

    def __init__(self, text: str, found: Sequence[Difference]) -> None:
        super().__init__(text)
        self.obstacles = tuple(found)


@dataclass(frozen=True)
class Rules:
    """How to judge.

    Attributes:
        axes: what is held equal: steps, tokens, flops, seconds.
        validation: whether `ranking.judge` judges validation losses, too.
        window: steps that a loss is the mean of.
        level: of intervals; verdicts are tested at 1 - level.
        margin: nats per byte; adds the question whether the second is worse by less than this.
        tolerance: sizes agree where some size lies within this share of both.
        allow: obstacles (differences.TOPICS) to compare in spite of; `pairing` compares steps unpaired.
    """

    axes: tuple[str, ...] = AXES
    window: int = WINDOW
    level: float = LEVEL
    margin: float | None = None
    tolerance: float = TOLERANCE
    allow: frozenset[str] = frozenset()
    validation: bool = False

    def __post_init__(self) -> None:
        if not set(self.axes) <= set(AXES) or not self.axes:
            raise ConfigError(f"axes {', '.join(self.axes) or '(none)'}: choose from {', '.join(AXES)}")
        if unknown := self.allow - set(TOPICS):
            raise ConfigError(f"cannot allow {', '.join(sorted(unknown))}: choose from {', '.join(TOPICS)}")
        if self.window < MIN_WINDOW:
            raise ConfigError(f"a window of {self.window} steps is too short for an interval: at least {MIN_WINDOW}")
        if not 0.5 <= self.level < 1:
            raise ConfigError(f"level {self.level}: must be at least 0.5 and below 1")
        if not 0 <= self.tolerance < 1 or (self.margin is not None and not self.margin > 0):
            raise ConfigError("the tolerance must be at least 0 and below 1, the margin above 0")


@dataclass(frozen=True)
class Group:
    """Runs that differ in nothing but their seed, under one label; `killed`: judge those that left no result, too."""

    label: str
    runs: tuple[RunRecord, ...]
    killed: bool = False

    @property
    def judged(self) -> tuple[RunRecord, ...]:
        """Those that have losses to judge."""
        return tuple(run for run in self.runs if self._has_losses(run))

    @property
    def lost(self) -> tuple[RunRecord, ...]:
        """The others."""
        return tuple(run for run in self.runs if not self._has_losses(run))

    def _has_losses(self, run: RunRecord) -> bool:
        return run.status not in FAILED and (self.killed or run.status != "killed") and run.edited is None

    @property
    def params(self) -> int | None:
        """Parameters of its runs."""
        return next((run.params for run in self.runs if run.params is not None and run.edited is None), None)


@dataclass(frozen=True)
class Comparison:
    """The verdict on `subject` against `baseline` at an equal budget.

    Attributes:
        baseline, subject: labels; `effect` is the loss of the subject less that of the baseline.
        axis, budget: what is equal, and how much of it; VALIDATION where validation losses were compared.
        verdict: on the subject. indistinguishable: no difference was shown, which does not mean that there is none;
            inconclusive: too few steps for their autocorrelation or for the window, seeds that agree to the last digit,
            or a clock that shows nothing; failed: it has no losses; refused: `told` stands in the way.
        losses: of baseline and subject, nats per byte.
        effect, interval: nats per byte; the interval is of this comparison alone.
        p, p_adjusted: two-sided; adjusted by Holm where several were judged together, which then decides the verdict.
        method: what was subtracted from what.
        label: what the interval speaks about: seeds, or one pair of runs.
        smallest_detectable: effect that would be found four times in five.
        margin, non_inferior: whether the subject is shown to be worse by less than the margin.
        n, n_eff, df: values, their worth in independent values, degrees of freedom.
        drift: change of the difference from the first to the last step of the window.
        told: obstacles that it was made in spite of.
        notes: what a reader has to know.
    """

    baseline: str
    subject: str
    axis: str
    budget: float | None
    verdict: Verdict
    losses: tuple[float | None, float | None] = (None, None)
    effect: float | None = None
    interval: tuple[float, float] | None = None
    p: float | None = None
    p_adjusted: float | None = None
    method: str | None = None
    label: str | None = None
    smallest_detectable: float | None = None
    margin: float | None = None
    non_inferior: bool | None = None
    n: int | None = None
    n_eff: float | None = None
    df: float | None = None
    drift: float | None = None
    told: tuple[Difference, ...] = ()
    notes: tuple[str, ...] = field(default=())

    def as_dict(self) -> dict[str, Any]:
        """JSON form."""
        return asdict(self)


@dataclass(frozen=True)
class Reading:
    """A run at a budget: its interpolated loss, the losses of the window before it, and the error of its clock."""

    loss: float
    window: Series1D
    last_step: int
    exact: bool
    clock: Estimate | None = None


def compare_runs(
    a: RunRecord | Group, b: RunRecord | Group, axis: str = "steps", rules: Rules | None = None,
    budget: float | None = None,
) -> Comparison:  # fmt: skip
    """Judge `b` against the baseline `a`.

    Args:
        a: the baseline: a run, or runs over seeds.
        b: what is judged, likewise.
        axis: what is held equal; or VALIDATION, which one seed decides nothing about.
        rules: how to judge.
        budget: how much of it; default: the most that all of both reach.

    Raises:
        Refused: they are unequal in something that `rules.allow` does not name.
        RunError: a run's files are damaged.
    """
    rules = rules or Rules()
    one, other = as_group(a, rules), as_group(b, rules)
    if not one.judged or not other.judged:
        dead = other if not other.judged else one
        why = "; ".join(f"{run.name}: {run.fate}" for run in dead.runs)
        return Comparison(one.label, other.label, axis, None, "failed", notes=(why,))
    told = _obstacles(one, other, axis, rules)
    if refused := [item for item in told if item.topic not in rules.allow]:
        raise Refused(_refusal(one, other, axis, refused), refused)
    if axis != VALIDATION and budget is None:
        budget = common_budget((one, other), axis)
    unpaired = any(item.topic in ("pairing", "data", "batch") for item in told)
    used = _used(one, other, paired=not unpaired)
    notes = (*_failures(one, other), *_left_out(one, other, used))
    base = Comparison(one.label, other.label, axis, budget, "inconclusive", told=told, notes=notes)
    readings = [[_reading(run, axis, budget, rules.window) for run in runs] for runs in used]
    full = [[reading for reading in side if reading] for side in readings]
    if [len(side) for side in full] != [len(side) for side in readings]:
        lack = "no validation loss" if budget is None else f"fewer than {rules.window} steps up to the {axis} of all"
        sides = zip((one, other), full, used, strict=True)
        short = (f"{group.label} has {lack}" for group, found, given in sides if len(found) < len(given))
        return replace(base, notes=(*notes, *short))
    losses = (_mean(full[0]), _mean(full[1]))
    if axis == VALIDATION and len(full[0]) < 2:
        why = "one seed: nobody knows how far apart validation losses of other seeds would lie"
        effect = losses[1] - losses[0]
        return replace(base, losses=losses, effect=effect, method="one run each", label=ONE_SEED, notes=(*notes, why))
    if axis == "seconds" and (doubt := clock_doubt(*used, f"{other.label} and {one.label}")):
        method, label = ("one run each", ONE_SEED) if len(full[0]) < 2 else ("seeds", f"{len(full[0])} seeds")
        effect = losses[1] - losses[0]
        return replace(base, losses=losses, effect=effect, method=method, label=label, notes=(*notes, doubt))
    if axis == "seconds":
        base = replace(base, notes=(*notes, *clock_note(*used)))
    estimate, method, label = _estimate(full[0], full[1], paired=not unpaired)
    return _judged(replace(base, losses=losses, method=method, label=label), estimate, rules)


def as_group(a: RunRecord | Group, rules: Rules) -> Group:
    """A run as a group of one; runs that were killed are judged where `rules` let unfinished ones through."""
    group = a if isinstance(a, Group) else Group(a.label, (a,))
    return replace(group, killed="unfinished" in rules.allow)


def common_budget(groups: Sequence[Group], axis: str) -> float:
    """The largest budget that every judged run of the groups reaches.

    Raises:
        RunError: a run has no steps, or never recorded what the axis measures.
    """
    ends = []
    for run in (run for group in groups for run in group.judged):
        if not run.lines:
            raise RunError(f"{run.path} has no steps to compare; a published figure goes to --against")
        x_n = run.series(_COLUMN[axis])
        if np.isnan(x_n).any() or (np.diff(x_n) < 0).any():
            raise RunError(f"{run.path / 'metrics.jsonl'}: {axis} are missing or fall: choose another --axis")
        ends.append(float(x_n[-1]))
    return min(ends)


def too_short(group: Group, axis: str, budget: float, rules: Rules) -> bool:
    """Whether a run that is judged has fewer steps up to the budget than the window."""
    return any(np.searchsorted(run.series(_COLUMN[axis]), budget, side="right") < rules.window for run in group.judged)


def verdict_of(effect: float, p: float, conclusive: bool, level: float) -> Verdict:
    """The word for an effect (nats per byte, below zero is better) with its p-value."""
    if not conclusive:
        return "inconclusive"
    if p >= 1 - level:
        return "indistinguishable"
    return "better" if effect < 0 else "worse"


def _judged(base: Comparison, estimate: Estimate, rules: Rules) -> Comparison:
    effect, p = estimate.value, estimate.p()
    notes = base.notes
    if not estimate.conclusive:
        notes = (*notes, _weakness(estimate))
    if not estimate.conclusive and estimate.se == 0:
        return replace(base, effect=effect, n=estimate.n, df=estimate.df, notes=notes)
    return replace(
        base,
        verdict=verdict_of(effect, p, estimate.conclusive, rules.level),
        effect=effect,
        interval=estimate.interval(rules.level),
        p=p,
        smallest_detectable=estimate.smallest_detectable(rules.level),
        margin=rules.margin,
        non_inferior=None if rules.margin is None else estimate.below(rules.margin, rules.level),
        n=estimate.n,
        n_eff=estimate.n_eff,
        df=estimate.df,
        drift=None if estimate.slope is None else estimate.slope * (estimate.n - 1),
        notes=notes,
    )


def _weakness(estimate: Estimate) -> str:
    """Why nothing is concluded from it."""
    if estimate.n_eff is not None:
        return f"the steps are worth {estimate.n_eff:.1f} independent ones: take a longer window, or seeds"
    return "the seeds agree to the last digit, which independent runs do not: nothing shows how far apart others lie"


def _estimate(one: list[Reading], other: list[Reading], *, paired: bool) -> tuple[Estimate, str, str]:
    """Difference of the subject to the baseline, how it was made, and what it speaks about."""
    if paired and len(one) >= 2:
        gaps = [b.loss - a.loss for a, b in zip(one, other, strict=True)]
        return mean_of_seeds(gaps), "paired seeds", f"{len(gaps)} seeds"
    if len(one) >= 2:
        first, second = (mean_of_seeds([reading.loss for reading in side]) for side in (one, other))
        return second.minus(first), "unpaired seeds", f"{len(one)} and {len(other)} seeds"
    a, b = one[0], other[0]
    if paired and a.exact and b.exact and a.last_step == b.last_step:
        return with_clocks(mean_of_steps(b.window - a.window), (a.clock, b.clock)), "paired steps", ONE_SEED
    first, second = (replace(mean_of_steps(reading.window), value=reading.loss) for reading in (a, b))
    return with_clocks(second.minus(first), (a.clock, b.clock)), "unpaired windows", ONE_SEED


def _used(one: Group, other: Group, *, paired: bool) -> tuple[tuple[RunRecord, ...], tuple[RunRecord, ...]]:
    """Runs that are judged: partners by seed, or all of both sides, or one of each where a side has but one."""
    if paired and (matched := _matched(one, other)):
        return tuple(a for a, _ in matched), tuple(b for _, b in matched)
    if min(len(one.judged), len(other.judged)) >= 2:
        return one.judged, other.judged
    return one.judged[:1], other.judged[:1]


def _left_out(one: Group, other: Group, used: tuple[tuple[RunRecord, ...], tuple[RunRecord, ...]]) -> tuple[str, ...]:
    lost = [run for group, runs in zip((one, other), used, strict=True) for run in group.judged if run not in runs]
    return tuple(f"{run.name} (seed {run.seed}) has no partner: left out" for run in lost)


def _matched(one: Group, other: Group) -> list[tuple[RunRecord, RunRecord]]:
    by_seed = {run.seed: run for run in one.judged}
    return [(by_seed[run.seed], run) for run in other.judged if run.seed in by_seed]


def _obstacles(one: Group, other: Group, axis: str, rules: Rules) -> tuple[Difference, ...]:
    """What stands in the way of comparing the runs of two groups on an axis."""
    found: set[Difference] = set()
    for pair in _pairs(one, other, rules):
        held = (held_equal(one.judged) if axis == VALIDATION else axis,)
        found |= {item for item in obstacles(*pair, rules.tolerance) if set(held) & set(item.axes)}
        if axis == VALIDATION:
            found |= set(validated_otherwise(*pair))
    return tuple(sorted(found, key=lambda item: item.key))


def held_equal(runs: Sequence[RunRecord]) -> str:
    """What the runs were given an equal amount of: steps, tokens, or seconds of the training clock."""
    budgets = [run.config.get("train", {}) for run in runs if run.config]
    for key, axis in (("minutes", "seconds"), ("tokens", "tokens")):
        if budgets and all(train.get(key) is not None for train in budgets):
            return axis
    return "steps"


def _pairs(one: Group, other: Group, rules: Rules) -> list[tuple[RunRecord, RunRecord]]:
    """Pairs of runs that must be equal: those with the same seed, or else every run with every other."""
    matched = _matched(one, other)
    if matched and "pairing" not in rules.allow:
        return matched
    return [(a, b) for a in one.judged for b in other.judged]


def _reading(run: RunRecord, axis: str, budget: float | None, window: int) -> Reading | None:
    """The run at the budget, without one its validation loss; None where fewer than `window` steps lead to it."""
    if budget is None:
        known = run.result.get(VALIDATION)
        return None if known is None else Reading(float(known), np.array([]), 0, exact=False)
    x_n, loss_n = run.series(_COLUMN[axis]), run.series("loss")
    done = int(np.searchsorted(x_n, budget, side="right"))
    if done < window:
        return None
    losses = loss_n[done - window : done]
    at = float(losses.mean())
    clock = clock_error(x_n, loss_n, done, window) if axis == "seconds" else None
    if done == len(x_n) or x_n[done - 1] == budget:
        return Reading(at, losses, done, exact=True, clock=clock)
    share = (budget - x_n[done - 1]) / (x_n[done] - x_n[done - 1])
    following = float(loss_n[done - window + 1 : done + 1].mean())
    return Reading(at + float(share) * (following - at), losses, done, exact=False, clock=clock)


def _mean(readings: Sequence[Reading]) -> float:
    return math.fsum(reading.loss for reading in readings) / len(readings)


def _failures(one: Group, other: Group) -> tuple[str, ...]:
    lost = [run for group in (one, other) for run in group.lost]
    short = [run for group in (one, other) for run in group.judged if run.status not in ENDED]
    return (
        *(f"{run.name} {run.fate}: judged without it" for run in lost),
        *(f"{run.name} did not end ({run.status})" for run in short),
    )


def _refusal(one: Group, other: Group, axis: str, refused: Sequence[Difference]) -> str:
    """One line for each obstacle: what, both values, and what to type."""
    lines = [f"{other.label} and {one.label} are not equal enough to compare by {axis.replace('_', ' ')}:"]
    for item in refused:
        shown = f" ({item.a} and {item.b})" if item.topic != "pairing" else ""
        cure = "--unpaired compares them without pairing" if item.topic == "pairing" else f"--allow {item.topic}"
        if len(item.axes) < len(AXES):
            others = " ".join(f"--axis {name}" for name in AXES if name not in item.axes)
            cure += f", or leave it out: {others}"
        lines.append(f"  {TOPICS[str(item.topic)]}: {item.key}{shown}: {cure}")
    return "\n".join(lines)
