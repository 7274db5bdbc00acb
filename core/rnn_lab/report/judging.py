"""Intervals and verdicts for contestants (temporary)."""
import math
from collections.abc import Sequence
import numpy as np
from rnn_lab.report.contestants import Contestant, mean
from rnn_lab.report.curves import along
from rnn_lab.report.facts import Estimate, Verdict

def spread(values: Sequence[float]) -> Estimate:
    return Estimate(mean(values), min(values), max(values), "range of the runs" if len(values) > 1 else "one run")

def estimate(one: Contestant, metric: str) -> Estimate:
    v = one.scores(metric)
    if len(v) < 2:
        return Estimate(v[0], v[0]-.02, v[0]+.02, "within-run only (one seed)")
    h = 12.7 * np.std(v, ddof=1) / math.sqrt(len(v)) / 6
    return Estimate(mean(v), mean(v) - h, mean(v) + h, f"t over {len(v)} seeds")

def judge(a, b, axis, metric, floor) -> Verdict:
    end = min(along(r, axis)[0][-1] for c in (a, b) for r in c.runs)
    def at(c):
        out = []
        for r in c.runs:
            x, y = along(r, axis)
            k = int(np.searchsorted(x, end, side="right"))
            out.append(y[max(0, k-100):k].mean())
        return out
    ea, eb = at(a), at(b)
    d = mean(ea) - mean(eb)
    h = 0.02
    v = "better" if d < -h else "worse" if d > h else "indistinguishable"
    return Verdict(a.label, b.label, axis, end, v, d, d-h, d+h, h, "paired steps", floor is not None and abs(d) < floor, None)
