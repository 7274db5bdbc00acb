"""How much less data, time or work a variant needs for the same loss: E_data, E_time, E_flop.

L_b and L_x are the smoothed losses of baseline and variant, x what was spent up to each step (steps or bytes, seconds,
FLOPs), X the baseline's last and X' the variant's last:

    where L_x comes down to L_b(X):   E = X / x*    with x* the first x at which L_x(x) <= L_b(X)
    else:                             E = x* / X'   with x* the first x at which L_b(x) <= L_x(X')     below 1

x* is interpolated between steps. Only losses that could have been the last ones compare: a rate that decays towards a
planned end (cosine, wsd) makes every earlier loss look worse than a run that ends there, so E needs the schedules
constant or none. Over seeds E is judged on its logarithm, by Student's t.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from rnn_lab.comparison.stats import mean_of_seeds, t_quantile
from rnn_lab.errors import ConfigError

WINDOW = 100
CLAIM = 1.15
"""The least gain in data efficiency that the seeds' documents claim for multi-token prediction."""
ANYTIME = ("constant", "none")
"""Schedules under which a loss before the end compares with one at the end."""
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Gain:
    """E over paired seeds.

    Attributes:
        value: the geometric mean.
        lower, upper: one-sided bounds at `level`.
        n: seeds.
        verdict: verified, refuted or inconclusive, against the claim.
        rider: `some gain` or `harm` where a refuted claim leaves either shown; else empty.

    """

    value: float
    lower: float
    upper: float
    n: int
    verdict: str
    rider: str = ""


def smoothed(loss: ArrayLike, window: int = WINDOW) -> Floats:
    """Trailing means over `window` steps, from the first step that has so many on.

    Raises:
        ConfigError: there are fewer steps than that.

    """
    values = np.asarray(loss, dtype=np.float64)
    if len(values) < window:
        raise ConfigError(f"{len(values)} steps are fewer than the {window} that a smoothed loss is the mean of")
    sums = np.cumsum(np.concatenate([[0.0], values]))
    found: Floats = (sums[window:] - sums[:-window]) / window
    return found


def efficiency(
    baseline_loss: ArrayLike, baseline_spent: ArrayLike, loss: ArrayLike, spent: ArrayLike, window: int = WINDOW
) -> float:
    """E of a variant against its baseline: above 1 where the variant needs less.

    Args:
        baseline_loss: the baseline's loss per step.
        baseline_spent: what it had spent after each: steps, bytes, seconds or FLOPs, from 0 at the start.
        loss: the variant's loss per step.
        spent: what it had spent.
        window: steps that a smoothed loss is the mean of; 1 for validation losses.

    Raises:
        ConfigError: a run is shorter than the window, or a loss is not finite.

    """
    one, other = smoothed(baseline_loss, window), smoothed(loss, window)
    if not (np.isfinite(one).all() and np.isfinite(other).all()):
        raise ConfigError("a loss is not finite: a run that diverged has no efficiency")
    x_one = np.asarray(baseline_spent, dtype=np.float64)[window - 1 :]
    x_other = np.asarray(spent, dtype=np.float64)[window - 1 :]
    reached = _first_at(other, x_other, float(one[-1]))
    if reached is not None:
        return float(x_one[-1]) / reached
    needed = _first_at(one, x_one, float(other[-1]))
    assert needed is not None  # the baseline's last loss is below all of the variant's
    return needed / float(x_other[-1])


def _first_at(loss: Floats, spent: Floats, level: float) -> float | None:
    """Where `loss` first comes down to `level`, interpolated; None if it never does."""
    below = np.flatnonzero(loss <= level)
    if not len(below):
        return None
    k = int(below[0])
    if k == 0:
        return float(spent[0])
    share = (loss[k - 1] - level) / (loss[k - 1] - loss[k])
    return float(spent[k - 1] + share * (spent[k] - spent[k - 1]))


def judge(gains: Sequence[float], claim: float = CLAIM, level: float = 0.95) -> Gain:
    """Verdict on E of paired seeds, by a t-interval on log E.

    `verified` if the lower bound is at least the claim, `refuted` if the upper bound is below it, else
    `inconclusive`. A refuted claim may still leave `some gain` (lower bound above 1) or show `harm` (upper below 1).

    Raises:
        ConfigError: fewer than two seeds, or an E that is not positive.

    """
    if any(not gain > 0 or not math.isfinite(gain) for gain in gains):
        raise ConfigError(f"an efficiency is not positive: {', '.join(map(str, gains))}")
    mean = mean_of_seeds([math.log(gain) for gain in gains])
    half = t_quantile(level, mean.df) * mean.se
    lower, upper = math.exp(mean.value - half), math.exp(mean.value + half)
    verdict = "verified" if lower >= claim else "refuted" if upper < claim else "inconclusive"
    rider = ""
    if verdict == "refuted":
        rider = "some gain" if lower > 1 else "harm" if upper < 1 else ""
    return Gain(math.exp(mean.value), lower, upper, mean.n, verdict, rider)


def exponent(loss: ArrayLike, spent: ArrayLike, window: int = WINDOW) -> float:
    """b of loss ~ spent^-b by least squares of the logarithms over the last half of a run.

    With it an efficiency E is worth a share of 1 - E^-b of the loss: `as_loss`.

    Raises:
        ConfigError: the run is shorter than the window and two steps more.

    """
    values = smoothed(loss, window)
    x = np.asarray(spent, dtype=np.float64)[window - 1 :]
    half = slice(len(values) // 2 if len(values) > 3 else 0, None)
    if len(values[half]) < 2:
        raise ConfigError(f"{len(values)} smoothed losses are too few for a slope")
    return -float(np.polyfit(np.log(x[half]), np.log(values[half]), 1)[0])


def as_loss(gain: float, b: float) -> float:
    """Share of the loss that an efficiency of `gain` takes away where loss ~ spent^-b."""
    return 1 - math.exp(-b * math.log(gain))
