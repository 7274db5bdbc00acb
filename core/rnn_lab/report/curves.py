"""Training loss along steps, tokens, FLOPs and seconds of the training clock, from the same runs."""

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from rnn_lab.comparison.records import RunRecord
from rnn_lab.report.contestants import Contestant, mean
from rnn_lab.report.facts import AXES, Curve, Milestones

COLUMN = {"steps": "step", "tokens": "tokens", "flops": "flops", "seconds": "seconds"}
POINTS = 80
MARKS = (0.25, 0.5, 0.75, 1.0)
Array = NDArray[np.float64]


def curves(field: Sequence[Contestant], window: int) -> tuple[Curve, ...]:
    """A curve of every contestant along every axis that all its runs have; each point a mean of `window` steps."""
    drawn = []
    for axis in AXES:
        for one in field:
            pairs = [pair for run in one.runs if (pair := along(run, axis)) is not None and len(pair[0]) >= window]
            if pairs:
                drawn.append(_curve(one.label, axis, pairs, window))
    return tuple(drawn)


def along(run: RunRecord, axis: str) -> tuple[Array, Array] | None:
    """Amounts of `axis` and losses, float64 [steps] each, from step 2 on, or None where the run has no such figures.

    The first step is left out: it is warm-up, at zero seconds, and its loss is that of an untrained model.
    """
    at, loss = run.series(COLUMN[axis])[1:], run.series("loss")[1:]
    known = np.isfinite(at)
    return (at[known], loss[known]) if known.any() and at[known][-1] > 0 else None


def _curve(label: str, axis: str, pairs: Sequence[tuple[Array, Array]], window: int) -> Curve:
    """Moving means of every seed at the same points, up to what every seed reached; their mean and range."""
    smooth = [(at[window - 1 :], np.convolve(loss, np.full(window, 1 / window), "valid")) for at, loss in pairs]
    start, end = max(float(at[0]) for at, _ in smooth), min(float(at[-1]) for at, _ in smooth)
    points = np.linspace(start, end, min(POINTS, min(len(at) for at, _ in smooth)))
    seeds = np.stack([np.interp(points, at, loss) for at, loss in smooth])
    return Curve(
        label=label,
        axis=axis,
        at=tuple(points.tolist()),
        loss=tuple(seeds.mean(axis=0).tolist()),
        low=tuple(seeds.min(axis=0).tolist()),
        high=tuple(seeds.max(axis=0).tolist()),
    )


def milestones(field: Sequence[Contestant], window: int) -> tuple[Milestones, ...]:
    """Losses at a quarter, half, three quarters and all of what every contestant reached, per axis, in whole units.

    Each is the mean of the `window` steps before that point, over all seeds; None where there were fewer.
    """
    found = []
    for axis in AXES:
        pairs = {one.label: [pair for run in one.runs if (pair := along(run, axis)) is not None] for one in field}
        reached = [float(at[-1]) for known in pairs.values() for at, _ in known]
        if not reached or not all(pairs.values()):
            continue
        # There is no half step, byte or FLOP.
        marks = tuple(at if axis == "seconds" else float(math.floor(at)) for at in (min(reached) * s for s in MARKS))
        losses = {label: tuple(_loss_before(known, mark, window) for mark in marks) for label, known in pairs.items()}
        found.append(Milestones(axis, marks, losses))
    return tuple(found)


def _loss_before(pairs: Sequence[tuple[Array, Array]], mark: float, window: int) -> float | None:
    """Mean over seeds of the mean loss of the `window` steps up to `mark`."""
    means = []
    for at, loss in pairs:
        done = int(np.searchsorted(at, mark * (1 + 1e-12), side="right"))
        if done < window:
            return None
        means.append(math.fsum(loss[done - window : done]) / window)
    return mean(means)
