"""Intervals and verdicts for contestants, by the rules of `rnn-lab compare`."""

from collections.abc import Sequence

from rnn_lab.comparison.compare import ONE_SEED, VALIDATION, Comparison, Rules
from rnn_lab.comparison.ranking import Judgement, judge
from rnn_lab.comparison.records import RunRecord
from rnn_lab.comparison.stats import mean_of_seeds, mean_of_steps
from rnn_lab.errors import ConfigError
from rnn_lab.report.contestants import Contestant, mean
from rnn_lab.report.facts import Estimate, Noise, Verdict
from rnn_lab.train.metrics import WINDOW


def judged(field: Sequence[Contestant], metric: str, allow: frozenset[str]) -> Judgement | None:
    """All pairs along every axis, and by validation loss where that is the metric; None for fewer than two."""
    if len(field) < 2:
        return None
    rules = Rules(allow=allow, validation=metric == VALIDATION)
    return judge([one.group for one in field], rules, keep_refused=True)


def verdicts(judgement: Judgement, metric: str, noise: Noise | None) -> tuple[Verdict, ...]:
    """The pairs of a judgement, the better placed first, as the report words them; the noise floor is the metric's."""
    return tuple(
        _verdict(axis.between(b, a), noise if (axis.axis == VALIDATION) == (metric == VALIDATION) else None)
        for axis in judgement.axes
        for a, b in _pairs(judgement)
    )


def _pairs(judgement: Judgement) -> list[tuple[str, str]]:
    labels = [group.label for group in judgement.groups]
    return [(a, b) for i, a in enumerate(labels) for b in labels[i + 1 :]]


def _verdict(one: Comparison, noise: Noise | None) -> Verdict:
    """A comparison of a subject (the first) with a baseline (the second)."""
    low, high = one.interval or (None, None)
    refusal = "; ".join(dict.fromkeys(f"{item.key}: {item.a} and {item.b}" for item in one.told))
    basis = ", ".join(text for text in (one.method, one.label) if text)
    spite = f", in spite of {refusal}" if one.told and one.verdict != "refused" and not _only_pairing(one) else ""
    return Verdict(
        a=one.subject,
        b=one.baseline,
        axis=one.axis,
        at=one.budget,
        verdict=one.verdict,
        effect=one.effect,
        low=low,
        high=high,
        half=None if low is None or high is None else (high - low) / 2,
        p=one.p if one.p_adjusted is None else one.p_adjusted,
        detectable=one.smallest_detectable,
        method=f"{basis}{spite}",
        below_noise=noise is not None and one.effect is not None and abs(one.effect) < noise.floor,
        refusal=refusal if one.verdict == "refused" else None,
        notes=one.notes,
    )


def _only_pairing(one: Comparison) -> bool:
    return all(item.topic == "pairing" for item in one.told)


def estimate(one: Contestant, metric: str) -> Estimate:
    """The metric of a contestant with its 95 % interval: over seeds, or within the one run."""
    scores = one.scores(metric)
    value = mean(scores)
    if len(scores) > 1:
        seeds = mean_of_seeds(scores)
        if not seeds.conclusive:
            return Estimate(value, None, None, "none: the seeds agree to the last digit")
        low, high = seeds.interval()
        return Estimate(value, low, high, f"Student's t over {len(scores)} seeds")
    if metric != "last100":
        return Estimate(value, None, None, "none: one seed")
    return _within(one.runs[0], value)


def _within(run: RunRecord, value: float) -> Estimate:
    """Interval of the mean of the last steps of one run."""
    try:
        steps = mean_of_steps(run.series("loss")[-WINDOW:])
    except ConfigError:
        return Estimate(value, None, None, "none: the run brought no steps")
    if not steps.conclusive:
        return Estimate(value, None, None, "none: too few steps for their autocorrelation")
    low, high = steps.interval()
    return Estimate(value, low, high, ONE_SEED)


def spread(values: Sequence[float]) -> Estimate:
    """Mean and range of a figure over runs."""
    if len(values) == 1:
        return Estimate(values[0], None, None, "one run")
    return Estimate(mean(values), min(values), max(values), f"lowest and highest of {len(values)} runs")
