"""The winner again with fresh seeds: the best of many trials is partly luck, and its own value says how much not.

Winner and default train with the same fresh seeds, so that their difference is paired: equal seeds have equal
batches. The validation bytes stay those that the winner was chosen on.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from rnn_lab.comparison.stats import mean_of_seeds
from rnn_lab.errors import RnnLabError
from rnn_lab.search import child
from rnn_lab.search.plan import Candidate, SearchPlan
from rnn_lab.search.run import Worker, write_config
from rnn_lab.search.trials import TrialRow, best_of
from rnn_lab.system.atomic import write_text_atomic


def confirm(plan: SearchPlan, worker: Worker, rows: Sequence[TrialRow], count: int) -> dict[str, Any]:
    """Train the best trial and the default with `count` fresh seeds each; finished runs are kept.

    Returns:
        What confirm.json holds: values per arm and seed, means, and the paired gain with its 95 % t-interval.

    Raises:
        RnnLabError: no trial has a value.
    """
    best = best_of(rows)
    if best is None:
        raise RnnLabError("no trial reached the end of its budget: there is no winner to confirm")
    seed = plan.default.resolved.config.train.seed
    seeds = [seed + i for i in range(1, count + 1)]
    arms = {"default": plan.default_candidate()}
    if not best.default:
        arms["best"] = plan.candidate(best.point)
    values: dict[str, list[float | None]] = {name: [] for name in arms}
    for number in seeds:
        for name, candidate in arms.items():
            value = _value(plan, worker, f"{name}-seed-{number}", candidate, number)
            values[name].append(value)
            worker.note(f"confirm {name}, seed {number}: {'no value' if value is None else format(value, '.4f')}")
    table = {
        "metric": plan.metric,
        "trial": best.number,
        "selected_value": best.value,
        "seeds": seeds,
        "values": values,
        "mean": {name: _mean(column) for name, column in values.items()},
        "gain": _gain(values["default"], values["best"]) if "best" in values else None,
    }
    write_text_atomic(worker.out / "confirm.json", json.dumps(table, indent=1, allow_nan=False) + "\n")
    return table


def paired_gain(default: Sequence[float], best: Sequence[float]) -> dict[str, Any]:
    """Mean of default - best over seeds, with its 95 % t-interval (Student); none for one seed, or for equal gains."""
    differences = [d - b for d, b in zip(default, best, strict=True)]
    if len(differences) < 2:
        return {"mean": differences[0], "low": None, "high": None, "n": 1}
    mean = mean_of_seeds(differences)
    low, high = mean.interval() if mean.conclusive else (None, None)
    return {"mean": mean.value, "low": low, "high": high, "n": mean.n}


def _gain(default: Sequence[float | None], best: Sequence[float | None]) -> dict[str, Any] | None:
    pairs = [(d, b) for d, b in zip(default, best, strict=True) if d is not None and b is not None]
    return paired_gain([d for d, _ in pairs], [b for _, b in pairs]) if pairs else None


def _mean(values: Sequence[float | None]) -> float | None:
    """Mean of an arm; None where a run of it has no value, because the others alone would flatter it."""
    known = [value for value in values if value is not None]
    return fmean(known) if len(known) == len(values) else None


def _value(plan: SearchPlan, worker: Worker, name: str, candidate: Candidate, seed: int) -> float | None:
    tables = {**candidate.tables, "train": {**candidate.tables["train"], "seed": seed}}
    folder = Path("confirm") / name
    config = write_config(worker.out, name, Candidate(tables, candidate.params))
    ended = child.train(
        worker.program,
        config,
        worker.out / folder,
        worker.out / "logs" / f"{name}.log",
        on_step=lambda line: False,
        timeout=worker.timeout,
    )
    value = ended.result.get(plan.metric) if ended.outcome == "ok" else None
    if value is None:
        worker.note(f"confirm {name}: {ended.outcome}: {ended.reason or 'no value'}")
    return value
