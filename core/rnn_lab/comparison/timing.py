"""What seconds are worth: how sure a run's speed is, and whether others shared its CPU.

A run that was slowed down for a while stands at fewer steps after the same seconds, and has a higher loss there. One
run shows how its step times vary, which bounds that error; it does not show what held it up from its first step to its
last. docs/comparison.md has the formula.
"""

from collections.abc import Iterable, Sequence
from dataclasses import replace

import numpy as np

from rnn_lab.comparison.differences import differences
from rnn_lab.comparison.records import RunRecord
from rnn_lab.comparison.stats import MIN_FREQUENCIES, MIN_WINDOW, Estimate, Floats, mean_of_steps

PREFIX = "at equal seconds "
SLOPE_WINDOWS = 2
Runs = Sequence[RunRecord]


def clock_error(seconds_n: Floats, loss_n: Floats, done: int, window: int) -> Estimate:
    """Zero, with the standard error that the clock gives the loss after `done` steps, nats per byte.

    The relative error of the mean step time, times the steps done, times the fall of the loss per step over the last
    two windows. Where step times are too autocorrelated for an error of their mean, their SD stands for it.

    Args:
        seconds_n: training clock after each step, [n]; steps that it did not time add nothing.
        loss_n: losses, [n].
        done: steps that fit into the budget.
        window: steps that a loss is the mean of.
    """
    taken_n = np.diff(seconds_n[:done])
    taken_n = taken_n[taken_n > 0]
    if len(taken_n) < MIN_WINDOW:
        return Estimate(0.0, 0.0, 1, len(taken_n), conclusive=False)
    mean = float(taken_n.mean())
    if np.ptp(taken_n) <= 1e-9 * mean:  # what is left is rounding
        return Estimate(0.0, 0.0, len(taken_n) - 1, len(taken_n))
    times = mean_of_steps(taken_n)
    if not times.conclusive:
        times = replace(times, se=float(taken_n.std(ddof=1)), df=MIN_FREQUENCIES - 2)
    recent_m = loss_n[max(0, done - SLOPE_WINDOWS * window) : done]
    slope = float(np.polyfit(np.arange(len(recent_m)), recent_m, 1)[0])
    return Estimate(0.0, abs(slope) * len(taken_n) * times.se / mean, times.df, len(taken_n))


def _shared(runs: Runs) -> str | None:
    """What is wrong with the seconds of runs on a CPU; None on a GPU, and for runs that had the CPU to themselves."""
    company = [run.beside for run in runs if str(run.result.get("device")) == "cpu"]
    if any(company):
        return "jobs of their series ran on the same CPU meanwhile and slowed them down"
    return "nothing tells what else ran on their CPU" if None in company else None


def clock_doubt(first: Runs, second: Runs, labels: str) -> str | None:
    """Why nothing is concluded at equal seconds: one recipe twice, or one run a side by a clock that was shared."""
    if all(_same_recipe(a, b) for a, b in zip(first, second, strict=False)):
        return f"{PREFIX}{labels} are of one recipe: only their clocks differ"
    shared = _shared((*first, *second)) if len(first) < 2 else None
    return shared and f"{PREFIX}one run a side shows nothing, because {shared}: compare at equal steps, or over seeds"


def clock_note(first: Runs, second: Runs) -> tuple[str, ...]:
    """What a reader has to know of the seconds of runs that are judged all the same."""
    shared = _shared((*first, *second))
    return () if shared is None else (f"{PREFIX}take care, because {shared}: better compare at equal steps",)


def with_clocks(estimate: Estimate, clocks: Iterable[Estimate | None]) -> Estimate:
    """A difference at equal seconds with the errors of its clocks; any other as it is."""
    wider = estimate
    for clock in clocks:
        wider = wider.minus(clock) if clock is not None and (clock.se or not clock.conclusive) else wider
    return replace(wider, n=estimate.n, n_eff=estimate.n_eff, slope=estimate.slope)


def _same_recipe(a: RunRecord, b: RunRecord) -> bool:
    """Whether two runs differ in nothing that could make one faster or better, but their seed."""
    if not a.config or a.config.get("model") != b.config.get("model"):
        return False
    told = (item for item in differences(a, b) if item.severity != "record" and item.topic != "pairing")
    return all(item.key == "train.seed" for item in told)
