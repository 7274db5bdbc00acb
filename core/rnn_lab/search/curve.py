"""The equal-tuning curve: the best loss to expect from k trials, for k up to the number that was spent.

Reporting the best of n trials rewards whoever tuned longer; the curve compares models at equal k (Dodge et al. 2019,
"Show Your Work", arXiv:1909.03004). Their estimator draws with replacement and is biased; this is the one without
replacement, unbiased for every k <= n (Tang et al. 2020, "Showing Your Work Doesn't Always Work", arXiv:2004.13705).
For losses v_1 <= ... <= v_n:

    E[min of k] = sum_i v_i C(n - i, k - 1) / C(n, k)

The band is exact, pointwise and free of assumptions on the losses: the median of the best of k is their quantile at
1 - 2^(-1/k), which order statistics bracket with binomial probability (compare Lourie et al. 2023, "Show Your Work
with Confidence", arXiv:2311.09480). It has no lower end where n trials cannot give one, from k = n / 5.3 on. A
percentile bootstrap of the mean always has two ends, and misses its level widely there (a test measures both).

All of this holds for trials that are drawn independently, as a random search does.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from rnn_lab.errors import ConfigError
from rnn_lab.search.trials import SPENT, TrialRow

UNIFORM = math.log(256)
"""Nats per byte of a model that knows nothing: what a trial that diverged or ran out of memory is worth."""
Array = NDArray[np.float64]


def weights(n: int) -> Array:
    """W[i, k - 1] = C(n - i - 1, k - 1) / C(n, k): weight of the i-th smallest of n losses in the best of k; [n, n]."""
    table = np.zeros((n, n))
    for k in range(1, n + 1):
        weight = k / n
        for i in range(n - k + 1):
            table[i, k - 1] = weight
            weight *= (n - i - k) / (n - i - 1) if i < n - 1 else 0.0
    return table


def expected_best(losses: ArrayLike) -> Array:
    """E[min of k losses drawn without replacement] for k = 1 to n; float64 [n].

    Raises:
        ConfigError: there is no loss, or one is not finite.
    """
    values = np.sort(np.asarray(losses, dtype=np.float64))
    if values.ndim != 1 or not len(values) or not np.isfinite(values).all():
        raise ConfigError("a curve needs losses, all of them finite")
    return np.asarray(values @ weights(len(values)))


def median_best(losses: ArrayLike) -> Array:
    """Median of the best of k losses drawn without replacement, for k = 1 to n; float64 [n]."""
    values = np.sort(np.asarray(losses, dtype=np.float64))
    reached = np.cumsum(weights(len(values)), axis=0) >= 0.5
    return np.asarray(values[np.argmax(reached, axis=0)])


def band(losses: ArrayLike, level: float = 0.95) -> tuple[Array, Array]:
    """Exact pointwise interval of the median of the best of k, for k = 1 to n: lower and upper ends, float64 [n] each.

    NaN where n losses give no such end at this level.
    """
    from scipy.special import bdtr

    values = np.sort(np.asarray(losses, dtype=np.float64))
    n, tail = len(values), (1 - level) / 2
    low, high = np.full(n, np.nan), np.full(n, np.nan)
    for k in range(1, n + 1):
        # v_l > quantile exactly where fewer than l losses are below it: a binomial count of n.
        cumulative = bdtr(np.arange(n), n, 1 - 2 ** (-1 / k))
        below = np.flatnonzero(cumulative <= tail)
        above = np.flatnonzero(1 - cumulative <= tail)
        if len(below):
            low[k - 1] = values[below[-1]]
        if len(above):
            high[k - 1] = values[above[0]]
    return low, high


@dataclass(frozen=True)
class Curve:
    """The curve of one search.

    Attributes:
        label: what tables call it.
        metric: figure that was minimised.
        n: trials that count.
        expected: mean of the best of k, k = 1 to n, nats per byte.
        median: its median.
        low: lower end of the median's 95 % interval; NaN where there is none.
        high: upper end.
        so_far: best of the first k trials as they came.
        notes: what a reader has to know.
    """

    label: str
    metric: str
    n: int
    expected: Array
    median: Array
    low: Array
    high: Array
    so_far: Array
    notes: tuple[str, ...]

    def as_dict(self) -> dict[str, Any]:
        """JSON form: one row per k."""
        columns = {
            "expected_best": self.expected,
            "median_best": self.median,
            "low": self.low,
            "high": self.high,
            "best_so_far": self.so_far,
        }
        return {
            "label": self.label,
            "metric": self.metric,
            "trials": self.n,
            "curve": [
                {"k": k + 1} | {name: _finite(values[k]) for name, values in columns.items()} for k in range(self.n)
            ],
            "notes": list(self.notes),
        }


def curve_of(label: str, search: dict[str, Any], rows: Sequence[TrialRow]) -> Curve:
    """The curve of a search's trials, in their order.

    A trial that diverged or ran out of memory counts with ln 256; a pruned one with the training loss at which it
    stopped; one that failed or timed out says nothing about the model and is left out, as the default configuration
    is, which nobody drew.

    Raises:
        ConfigError: no trial counts.
    """
    counted, notes = [], []
    for row in rows:
        value = _value(row)
        if value is not None and not row.default:
            counted.append(value)
    if not counted:
        raise ConfigError(f"{label}: no trial has ended yet, the default configuration aside")
    outcomes = [row.outcome for row in rows if not row.default]
    if pruned := outcomes.count("pruned"):
        notes.append(f"{pruned} pruned trials count with the training loss at which they stopped, an upper bound")
    if lost := sum(outcomes.count(name) for name in ("diverged", "oom")):
        notes.append(f"{lost} trials that diverged or ran out of memory count with ln 256 = {UNIFORM:.4f}")
    if gone := sum(outcomes.count(name) for name in ("failed", "timeout")):
        notes.append(f"{gone} trials that failed or timed out are left out")
    if search.get("sampler") != "random":
        notes.append(
            f"trials of {search.get('sampler')} are not independent: the expectation holds for --sampler random; "
            "best_so_far is what happened"
        )
    low, high = band(counted)
    so_far = np.minimum.accumulate(np.asarray(counted))
    metric = str(search.get("metric"))
    expected, median = expected_best(counted), median_best(counted)
    return Curve(label, metric, len(counted), expected, median, low, high, so_far, tuple(notes))


def _finite(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None


def _value(row: TrialRow) -> float | None:
    if row.outcome not in SPENT or row.outcome in ("failed", "timeout"):
        return None
    if row.outcome in ("diverged", "oom"):
        return UNIFORM
    return row.value if row.outcome == "ok" else row.last_reported
