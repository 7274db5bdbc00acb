"""Many runs at once: groups over seeds, verdicts on every pair with Holm's correction, and ranks that change sides."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import combinations
from typing import Any

from rnn_lab.comparison.compare import (
    VALIDATION,
    Comparison,
    Group,
    Refused,
    Rules,
    Verdict,
    as_group,
    common_budget,
    compare_runs,
    too_short,
    verdict_of,
)
from rnn_lab.comparison.differences import Difference, differences
from rnn_lab.comparison.records import RunRecord
from rnn_lab.comparison.stats import holm
from rnn_lab.errors import ConfigError, RunError

_OPPOSITE: dict[Verdict, Verdict] = {"better": "worse", "worse": "better"}


@dataclass(frozen=True)
class AxisVerdicts:
    """Everything about one axis.

    `pairs` holds each pair once, the earlier group as baseline; `ranking` is by loss, the lowest first, over the groups
    that have a loss at the common budget (None for VALIDATION); `short` are those with fewer steps up to it than the
    window.
    """

    axis: str
    budget: float | None
    losses: Mapping[str, float]
    ranking: tuple[str, ...]
    pairs: tuple[Comparison, ...]
    short: tuple[str, ...] = ()

    def between(self, baseline: str, subject: str) -> Comparison:
        """The comparison of two groups by label, whichever way round it was made."""
        for one in self.pairs:
            if (one.baseline, one.subject) == (baseline, subject):
                return one
            if (one.subject, one.baseline) == (baseline, subject):
                return turned(one)
        raise KeyError((baseline, subject))


@dataclass(frozen=True)
class Reversal:
    """Two groups whose order depends on what is held equal.

    `decided` says that each order is a verdict somewhere, and not merely the sign of an effect.
    """

    a: str
    b: str
    a_ahead: tuple[str, ...]
    b_ahead: tuple[str, ...]
    decided: bool


@dataclass(frozen=True)
class Judgement:
    """Groups, their verdicts on every axis, rank reversals, and what else they differ in."""

    groups: tuple[Group, ...]
    axes: tuple[AxisVerdicts, ...]
    reversals: tuple[Reversal, ...]
    confounds: Mapping[str, tuple[Difference, ...]]

    def as_dict(self) -> dict[str, Any]:
        """JSON form."""
        return {
            "groups": [
                {
                    "label": group.label,
                    "params": group.params,
                    "runs": [
                        {
                            "path": str(run.path),
                            "seed": run.seed,
                            "status": run.status,
                            "problem": run.problem or run.edited,
                        }
                        for run in group.runs
                    ],
                }
                for group in self.groups
            ],
            "axes": [
                {
                    "axis": one.axis,
                    "budget": one.budget,
                    "losses": dict(one.losses),
                    "ranking": list(one.ranking),
                    "short": list(one.short),
                    "pairs": [pair.as_dict() for pair in one.pairs],
                }
                for one in self.axes
            ],
            "reversals": [asdict(one) for one in self.reversals],
            "confounds": {label: [one.as_dict() for one in found] for label, found in self.confounds.items()},
        }


def group_runs(runs: Sequence[RunRecord], *, each: bool = False) -> list[Group]:
    """Runs that differ in nothing but their seed, together; a seed that comes twice begins a group of its own.

    Args:
        runs: in the order of the table.
        each: every run by itself.
    """
    parts: dict[tuple[str, int], list[RunRecord]] = {}
    for number, run in enumerate(runs):
        key, copy = (f"{number}" if each else _recipe(run)), 0
        while any(run.seed == known.seed for known in parts.get((key, copy), ())):
            copy += 1
        parts.setdefault((key, copy), []).append(run)
    labels = _labels(list(parts.values()))
    return [Group(label, tuple(members)) for label, members in zip(labels, parts.values(), strict=True)]


def judge(groups: Sequence[Group], rules: Rules | None = None, *, keep_refused: bool = False) -> Judgement:
    """Verdicts on all pairs of groups, on every axis at one budget that all of them reach, and by validation loss.

    With more than one pair, p-values are adjusted over the pairs of an axis (Holm 1979), and decide. Pairs that failed
    or were refused asked nothing and are not counted.

    Args:
        groups: at least two.
        rules: how to judge.
        keep_refused: a pair that must be refused is a comparison with that verdict, and one that is refused for its
            pairing alone is compared unpaired. A group without losses along an axis has inconclusive pairs there.

    Raises:
        ConfigError: fewer than two groups.
        RunError: a run has no losses along an axis, unless `keep_refused`.
        Refused: two of them are unequal in something that `rules.allow` does not name.
    """
    rules = rules or Rules()
    groups = [as_group(group, rules) for group in groups]
    if len(groups) < 2:
        raise ConfigError(
            "nothing to compare: the runs differ in nothing but their seed. `--each` takes every run by itself"
        )
    asked = (*rules.axes, *((VALIDATION,) if rules.validation else ()))
    axes = tuple(_on_axis(groups, axis, rules, keep_refused) for axis in asked)
    first = groups[0].judged[:1]
    confounds = {
        group.label: tuple(
            item
            for a, b in zip(first, group.judged[:1], strict=False)
            for item in differences(a, b, rules.tolerance)
            if item.severity == "training"
        )
        for group in groups[1:]
    }
    return Judgement(tuple(groups), axes, tuple(_reversals(groups, axes)), confounds)


def turned(one: Comparison) -> Comparison:
    """The same comparison with baseline and subject exchanged; what was asked of the margin does not carry over."""
    return replace(
        one,
        baseline=one.subject,
        subject=one.baseline,
        verdict=_OPPOSITE.get(one.verdict, one.verdict),
        losses=(one.losses[1], one.losses[0]),
        effect=None if one.effect is None else -one.effect,
        interval=None if one.interval is None else (-one.interval[1], -one.interval[0]),
        drift=None if one.drift is None else -one.drift,
        non_inferior=None,
    )


def _on_axis(groups: Sequence[Group], axis: str, rules: Rules, keep_refused: bool) -> AxisVerdicts:
    alive = [group for group in groups if group.judged]
    lacking = {group.label: why for group in alive if (why := _lacks(group, axis))} if keep_refused else {}
    whole = [group for group in alive if group.label not in lacking]
    budget = None if axis == VALIDATION else common_budget(whole, axis) if whole else 0.0
    pairs = [_compared(a, b, axis, rules, budget, keep_refused, lacking) for a, b in combinations(groups, 2)]
    tested = [number for number, pair in enumerate(pairs) if pair.verdict not in ("failed", "refused")]
    if len(tested) > 1:  # a run that crashed asks no question, and must not make the others' answers less sure
        known = [p if (p := pairs[i].p) is not None and pairs[i].verdict != "inconclusive" else 1.0 for i in tested]
        for i, p in zip(tested, holm(known), strict=True):
            pairs[i] = _adjusted(pairs[i], p, rules.level)
    losses: dict[str, float] = {}
    for pair in pairs:
        for label, loss in zip((pair.baseline, pair.subject), pair.losses, strict=True):
            if loss is not None:
                losses.setdefault(label, loss)
    ranking = tuple(sorted(losses, key=lambda label: losses[label]))
    short = tuple(one.label for one in whole if budget is not None and too_short(one, axis, budget, rules))
    return AxisVerdicts(axis, budget, losses, ranking, tuple(pairs), short)


def _lacks(group: Group, axis: str) -> str | None:
    """Why a group has no place on an axis; None where it has one."""
    if axis == VALIDATION:
        return None
    try:
        common_budget([group], axis)
    except RunError:
        return f"{group.label} has no loss for every step along {axis}"
    return None


def _compared(
    a: Group, b: Group, axis: str, rules: Rules, budget: float | None, keep_refused: bool, lacking: Mapping[str, str]
) -> Comparison:
    missing = tuple(lacking[one.label] for one in (a, b) if one.label in lacking)
    if missing and a.judged and b.judged:
        return Comparison(a.label, b.label, axis, None, "inconclusive", notes=missing)
    try:
        return compare_runs(a, b, axis, rules, budget)
    except Refused as refused:
        if not keep_refused:
            raise
        if {item.topic for item in refused.obstacles} == {"pairing"}:
            return compare_runs(a, b, axis, replace(rules, allow=rules.allow | {"pairing"}), budget)
        return Comparison(a.label, b.label, axis, budget, "refused", told=refused.obstacles)


def _adjusted(pair: Comparison, p: float, level: float) -> Comparison:
    if pair.effect is None or pair.verdict in ("inconclusive", "failed"):
        return pair
    return replace(pair, p_adjusted=p, verdict=verdict_of(pair.effect, p, True, level))


def _reversals(groups: Sequence[Group], axes: Sequence[AxisVerdicts]) -> list[Reversal]:
    found = []
    for a, b in combinations([group.label for group in groups], 2):
        pairs = {one.axis: one.between(a, b) for one in axes if one.axis != VALIDATION}
        ahead = {axis: pair.effect for axis, pair in pairs.items() if pair.effect}
        a_ahead = tuple(axis for axis, effect in ahead.items() if effect > 0)
        b_ahead = tuple(axis for axis, effect in ahead.items() if effect < 0)
        if a_ahead and b_ahead:
            decided = any(pairs[axis].verdict == "worse" for axis in a_ahead) and any(
                pairs[axis].verdict == "better" for axis in b_ahead
            )
            found.append(Reversal(a, b, a_ahead, b_ahead, decided))
    return found


def _recipe(run: RunRecord) -> str:
    """What runs of one group have in common: the group of their series, or all of their configuration but the seed."""
    if run.group is not None:
        return f"group {run.group}"
    tables = {name: dict(table) for name, table in run.config.items() if name not in ("log", "checkpoint")}
    tables.get("train", {}).pop("seed", None)
    return json.dumps([run.label, tables], sort_keys=True, default=str)


def _labels(parts: Sequence[Sequence[RunRecord]]) -> list[str]:
    """One label for each group; those that share theirs add the name, or else the path, of their first run."""
    labels = [part[0].label for part in parts]
    for name in (lambda run: run.name, lambda run: str(run.path)):
        labels = [
            label if labels.count(label) == 1 else f"{part[0].label} ({name(part[0])})"
            for label, part in zip(labels, parts, strict=True)
        ]
    return labels
