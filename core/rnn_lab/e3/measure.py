"""Figures of the suite's configurations, from their runs alone: means over seeds, differences to the baseline.

Losses are nats per byte of the next byte over all positions, whatever a configuration back-propagates. Differences are
of runs with the same seed, which read the same bytes, at the same number of steps.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rnn_lab.comparison.efficiency import ANYTIME, efficiency
from rnn_lab.comparison.pairing import unpaired_because
from rnn_lab.comparison.records import RunRecord
from rnn_lab.comparison.stats import mean_of_seeds, t_quantile
from rnn_lab.errors import ConfigError

WINDOW = 100
SETTLED = 10
"""Steps at the start that compile and warm up; speeds leave them out."""
CALM = (0.5, 5.0)
"""Gradient norms that the documents call reasonable."""
POWER = 2.8
"""Standard errors that a difference must have to be found four times in five."""


@dataclass(frozen=True)
class Mean:
    """Mean over seeds, with their standard deviation where there are several."""

    value: float
    sd: float | None
    n: int


@dataclass(frozen=True)
class Paired:
    """Mean of paired differences or of ratios' logarithms, over seeds.

    `low` and `high` are the two-sided 95 % interval, `lower` and `upper` the one-sided bounds; None for one seed.
    `detectable` is 2.8 sd / sqrt(n).
    """

    values: tuple[float, ...]
    value: float
    low: float | None
    high: float | None
    lower: float | None
    upper: float | None
    detectable: float | None


@dataclass(frozen=True)
class Row:
    """One configuration, all its runs; a figure that no run has is None.

    `skipped` and `rollbacks` count steps that were not finite and roll-backs, of every run, however it ended.
    """

    label: str
    model: str
    ok: int
    total: int
    status: str
    features: Mapping[str, str]
    params: int | None = None
    steps: Mean | None = None
    last: Mean | None = None
    val: Mean | None = None
    bpb: Mean | None = None
    delta: Paired | None = None
    e_data: Paired | None = None
    e_time: Paired | None = None
    e_flop: Paired | None = None
    no_efficiency: str | None = None
    speed: Mean | None = None
    step_ms: Mean | None = None
    speed_ratio: Paired | None = None
    state: Mapping[str, Any] = field(default_factory=dict)
    heads_params: int = 0
    peak: Mean | None = None
    waited: Mean | None = None
    busy: Mean | None = None
    norms: tuple[float, float, float] | None = None
    calm: float | None = None
    skipped: int = 0
    rollbacks: int = 0
    sparsity: Mean | None = None
    ahead: Mapping[str, Mean] = field(default_factory=dict)


def windows(runs: Sequence[RunRecord]) -> tuple[int, int]:
    """Steps that the last loss is a mean of, and that a loss along the way is: 100 each in runs of 200 and more."""
    shortest = min((len(run.lines) for run in runs), default=0)
    along = WINDOW if shortest >= 2 * WINDOW else max(1, shortest // 4)
    return (WINDOW if shortest >= WINDOW else along), along


def rows(by_label: Mapping[str, Sequence[RunRecord]], baseline: str) -> list[Row]:
    """A row per configuration, in the order given."""
    sound = {label: [run for run in runs if counts(run)] for label, runs in by_label.items()}
    last, along = windows([run for runs in sound.values() for run in runs])
    base = {run.seed: run for run in sound.get(baseline, [])}
    return [_row(label, runs, sound[label], base, last, along) for label, runs in by_label.items()]


def counts(run: RunRecord) -> bool:
    """Whether a run's figures may be used: it ended well and its files are what was written."""
    return run.problem is None and run.status == "ok" and run.edited is None and bool(run.lines)


def _row(
    label: str, every: Sequence[RunRecord], sound: Sequence[RunRecord], base: Mapping[int | None, RunRecord], last: int,
    along: int,
) -> Row:  # fmt: skip
    ran = features(next(iter(sound), every[0]))
    head = (label, every[0].model, len(sound), len(every), _status(every), ran)
    skipped, rollbacks = sum(map(not_finite, every)), sum(map(_rollbacks, every))
    if not sound:
        return Row(*head, skipped=skipped, rollbacks=rollbacks)
    pairs = [(base[run.seed], run) for run in sound if run.seed in base and run is not base[run.seed]]
    pairs = [(b, x) for b, x in pairs if b.model == x.model and unpaired_because(b, x) is None]
    gains = {axis: _gains(pairs, axis, along) for axis in ("step", "seconds", "flops")}
    result = sound[0].result
    return Row(
        *head,
        params=result.get("params"),
        steps=mean_of([len(run.lines) for run in sound]),
        last=mean_of([loss_before(run, len(run.lines), last) for run in sound]),
        val=mean_of([run.result.get("val_loss") for run in sound]),
        bpb=mean_of([loss_before(run, len(run.lines), last) / math.log(2) for run in sound]),
        delta=paired([_difference(b, x, last) for b, x in pairs]),
        e_data=gains["step"][0], e_time=gains["seconds"][0], e_flop=gains["flops"][0],
        no_efficiency=gains["step"][1],
        speed=mean_of([speed(run) for run in sound]),
        step_ms=mean_of([1e3 * per_step(run) / speed(run) for run in sound]),
        speed_ratio=paired([speed(x) / speed(b) for b, x in pairs], ratio=True),
        state=dict(result.get("optimizer_state") or {}),
        heads_params=int(result.get("heads_params") or 0),
        peak=mean_of([run.result.get("peak_memory_bytes") for run in sound]),
        waited=mean_of([_column(run, "data_wait_frac") for run in sound]),
        busy=mean_of([_column(run, "gpu_util") for run in sound]),
        norms=_norms(sound),
        calm=_calm(sound),
        skipped=skipped,
        rollbacks=rollbacks,
        sparsity=mean_of([_last_of(run, "collider_sparsity", last) for run in sound]),
        ahead={
            key: found for key in sorted(sound[0].lines[-1]) if key.startswith("mtp_k")
            if (found := mean_of([_last_of(run, key, last) for run in sound])) is not None
        },
    )  # fmt: skip


def _status(runs: Sequence[RunRecord]) -> str:
    """How many runs ended how, and how often those went back: `2 ok (1 roll-back), 1 diverged`."""
    states: dict[str, int] = {}
    back: dict[str, int] = {}
    for run in runs:
        state = "ok" if counts(run) else (run.problem and "damaged") or (run.edited and "edited") or run.status
        states[state] = states.get(state, 0) + 1
        back[state] = back.get(state, 0) + _rollbacks(run)
    return ", ".join(f"{n} {state}{f' ({times(back[state])})' if back[state] else ''}" for state, n in states.items())


def times(rollbacks: int) -> str:
    """Roll-backs in words."""
    return f"{rollbacks} roll-back{'' if rollbacks == 1 else 's'}"


def _rollbacks(run: RunRecord) -> int:
    rows = run.result.get("rollbacks")
    return len(rows) if isinstance(rows, list) else 0


def not_finite(run: RunRecord) -> int:
    """Steps of a run that were not finite: lines without a loss, or what D-NAN counted, of which a roll-back drops."""
    told = run.result.get("diagnostics")
    counted = 0
    if isinstance(told, list):
        nans = [one for one in told if isinstance(one, Mapping) and one.get("id") == "D-NAN"]
        counted = sum(int(one.get("count") or 1) for one in nans)
    return max(counted, sum(bool(line.get("skipped")) for line in _lines(run)))


def _lines(run: RunRecord) -> list[dict[str, Any]]:
    """Lines of a run, none of one that cannot be read."""
    return [] if run.problem is not None else run.lines


def features(run: RunRecord) -> dict[str, str]:
    """What a configuration turned on, for a table: asked for by config.toml, and off where the run had nothing of it.

    A run without a line tells nothing, so that what it asked for stands.
    """
    config = run.config
    if not config:
        return {}
    objective, optimizer = config.get("objective", {}), config.get("optimizer", {})
    loader, train, schedule = config.get("loader", {}), config.get("train", {}), config.get("schedule", {})
    name = str(optimizer.get("name", "?"))
    kept = (run.result.get("optimizer_state") or {}).get("by_category")
    mtp = collider = galore = eight = ahead = "-"
    if objective.get("use_mtp"):
        mtp = f"{objective.get('mtp_variant')}, n = {objective.get('mtp_n_tokens')}"
        mtp = mtp if _any(run, "mtp_k2") else "off (no further byte predicted)"
    if objective.get("use_collider"):
        rule = f"{objective.get('collider_mode')} by {objective.get('collider_scorer')}"
        collider = f"{rule}, s = {objective.get('collider_sparsity')}"
        collider = collider if _any(run, "collider_sparsity") else "off (never filtered)"
    if loader.get("workers"):
        ahead = f"{loader['workers']} / {loader.get('prefetch')}"
        ahead = ahead if _any(run, "queue_depth", least=0) else "off (no thread read ahead)"
    if name.startswith("galore"):
        galore = f"r = {optimizer.get('galore_rank', 'd/4')}, every {optimizer.get('galore_update_freq')}"
        galore = galore if kept is None or kept.get("subspaces") else "off (no matrix projected)"
    if name == "muon8bit" or optimizer.get("bits") == 8:
        eight = "yes" if kept is None or kept.get("scales") else "off (no momentum in 8 bits)"
    return {
        "MTP": mtp,
        "Collider": collider,
        "reading ahead": ahead,
        "optimizer": name,
        "8 bits": eight,
        "GaLore": galore,
        "checkpointing": "yes" if train.get("checkpoint_every") else "-",
        "schedule": str(schedule.get("type", "none")),
        "precision": str(run.result.get("dtype") or train.get("dtype", "auto")),
    }


def _any(run: RunRecord, key: str, least: float | None = None) -> bool:
    """Whether a step had the figure at all, above 0 or `least` at least; true of a run without a line."""
    values = [line[key] for line in _lines(run) if isinstance(line.get(key), int | float)]
    return not _lines(run) or any(value > 0 if least is None else value >= least for value in values)


def mean_of(values: Sequence[float | int | None]) -> Mean | None:
    """Mean and standard deviation of the values that are there."""
    known = [float(value) for value in values if value is not None and math.isfinite(value)]
    if not known:
        return None
    return Mean(math.fsum(known) / len(known), float(np.std(known, ddof=1)) if len(known) > 1 else None, len(known))


def paired(values: Sequence[float], *, ratio: bool = False) -> Paired | None:
    """Mean of values of paired seeds with its bounds, by Student's t; on logarithms where they are ratios."""
    if not values:
        return None
    kept = tuple(values)
    back: Callable[[float], float] = math.exp if ratio else float
    logs = [math.log(value) for value in values] if ratio else list(values)
    if len(logs) == 1:
        return Paired(kept, kept[0], None, None, None, None, None)
    mean = mean_of_seeds(logs)
    low, high = mean.interval()
    one = t_quantile(0.95, mean.df) * mean.se
    return Paired(
        kept, back(mean.value), back(low), back(high), back(mean.value - one), back(mean.value + one), POWER * mean.se
    )


def loss_before(run: RunRecord, step: int, window: int) -> float:
    """Mean loss of the `window` steps up to `step`."""
    loss = run.series("loss")[max(0, step - window) : step]
    return math.fsum(loss) / len(loss)


def _difference(base: RunRecord, run: RunRecord, window: int) -> float:
    """Loss less the baseline's after as many steps as both have."""
    step = min(len(base.lines), len(run.lines))
    return loss_before(run, step, window) - loss_before(base, step, window)


def _gains(pairs: Sequence[tuple[RunRecord, RunRecord]], axis: str, window: int) -> tuple[Paired | None, str | None]:
    """E along an axis over paired seeds, or why there is none."""
    kinds = {str(run.config.get("schedule", {}).get("type", "none")) for pair in pairs for run in pair}
    if kinds - set(ANYTIME):
        return None, f"schedule {min(kinds - set(ANYTIME))}: only losses that could be the last ones compare"
    values = []
    for base, run in pairs:
        try:
            values.append(
                efficiency(base.series("loss"), base.series(axis), run.series("loss"), run.series(axis), window)
            )
        except ConfigError as error:
            return None, str(error)
    usable = [value for value in values if value > 0 and math.isfinite(value)]
    return (paired(usable, ratio=True), None) if len(usable) == len(values) else (None, "no time passed")


def per_step(run: RunRecord) -> int:
    """Bytes of an optimizer step."""
    return int(run.lines[0]["tokens"])


def speed(run: RunRecord) -> float:
    """Bytes per second: median over steps, the first ten left out."""
    values = [line["tokens_per_s"] for line in settled(run) if line.get("tokens_per_s")]
    return float(median(values)) if values else math.nan


def settled(run: RunRecord) -> list[dict[str, Any]]:
    """Lines of the steps after the first ten; all of a run that is no longer."""
    return run.lines[SETTLED:] or run.lines


def after_warmup(run: RunRecord) -> list[dict[str, Any]]:
    """Lines of the steps after the learning rate's warm-up."""
    schedule = run.config.get("schedule", {})
    steps = float(schedule.get("warmup") or run.config.get("optimizer", {}).get("warmup_steps") or 0)
    first = int(steps) if steps >= 1 else round(steps * len(run.lines))
    return run.lines[first:]


def _column(run: RunRecord, key: str) -> float | None:
    values = [line[key] for line in settled(run) if line.get(key) is not None]
    return math.fsum(values) / len(values) if values else None


def _last_of(run: RunRecord, key: str, window: int) -> float | None:
    values = [line[key] for line in run.lines[-window:] if line.get(key) is not None]
    return math.fsum(values) / len(values) if values else None


def _gradient_norms(runs: Sequence[RunRecord]) -> NDArray[np.float64]:
    found = [line["grad_norm"] for run in runs for line in after_warmup(run) if line.get("grad_norm") is not None]
    return np.asarray(found, dtype=np.float64)


def _norms(runs: Sequence[RunRecord]) -> tuple[float, float, float] | None:
    """Median and 5th and 95th percentile of gradient norms after the warm-up, before the clip."""
    norms = _gradient_norms(runs)
    if not len(norms):
        return None
    low, middle, high = np.percentile(norms, [5, 50, 95])
    return float(middle), float(low), float(high)


def _calm(runs: Sequence[RunRecord]) -> float | None:
    """Share of steps after the warm-up whose gradient norm is one that the documents call reasonable."""
    norms = _gradient_norms(runs)
    return float(((norms >= CALM[0]) & (norms <= CALM[1])).mean()) if len(norms) else None
