"""From runs to contestants: one configuration with all its seeds."""

import json
import math
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rnn_lab.comparison.compare import Group
from rnn_lab.comparison.integrity import sha256
from rnn_lab.comparison.ranking import group_runs
from rnn_lab.comparison.records import RunRecord
from rnn_lab.report.facts import Run

FILES = ("config.toml", "env.json", "metrics.jsonl", "result.json")
METRICS = {"last100": "Last100", "val_loss": "validation loss"}


@dataclass(frozen=True)
class Contestant:
    """One configuration: its runs that count, in the order of their seeds."""

    group: Group

    @property
    def label(self) -> str:
        """What tables call it."""
        return self.group.label

    @property
    def runs(self) -> tuple[RunRecord, ...]:
        """Every run that counts."""
        return self.group.runs

    @property
    def model(self) -> str:
        """Registered name."""
        return self.runs[0].model

    def scores(self, metric: str) -> tuple[float, ...]:
        """`metric` of every run, nats per byte."""
        return tuple(score for run in self.runs if (score := score_of(run, metric)) is not None)

    def mean(self, metric: str) -> float:
        """Mean of `scores`."""
        return mean(self.scores(metric))

    def result(self, key: str) -> Any:
        """`key` of the first run's result.json."""
        return self.runs[0].result.get(key)


def mean(values: Sequence[float]) -> float:
    """Arithmetic mean."""
    return math.fsum(values) / len(values)


def score_of(run: RunRecord, metric: str) -> float | None:
    """`last100` from the steps themselves, `val_loss` from result.json; nats per byte."""
    return run.last100 if metric == "last100" else run.result.get(metric)


def contestants(runs: Sequence[RunRecord], rows: Sequence[Run], metric: str) -> list[Contestant]:
    """Runs without a problem, those that differ in nothing but their seed together, best mean first."""
    sound = {row.name for row in rows if row.problem is None}
    field = []
    for group in group_runs([run for run in runs if run.name in sound]):
        by_seed = sorted(group.runs, key=lambda run: (run.seed is None, run.seed or 0, run.name))
        field.append(Contestant(replace(group, runs=tuple(by_seed))))
    return sorted(field, key=lambda one: (one.mean(metric), one.label))


def run_rows(folder: Path, runs: Sequence[RunRecord], metric: str) -> tuple[Run, ...]:
    """Every run as a row, whatever became of it."""
    return tuple(_row(folder, run, metric) for run in runs)


def _row(folder: Path, run: RunRecord, metric: str) -> Run:
    damaged = run.problem is not None
    result: Mapping[str, Any] = run.result
    lines = [] if damaged else run.lines
    last = lines[-1] if lines else {}
    files = {name: sum_ for name in FILES if (sum_ := sha256(run.path / name)) is not None}
    buckets = {str(key): float(value) for key, value in (run.clock.get("buckets") or {}).items()}
    others = [seconds for key, seconds in buckets.items() if key not in ("train", "warmup")]
    return Run(
        name=run.name,
        label=run.label,
        model=run.model,
        seed=run.seed,
        status=run.status,
        params=run.params,
        steps=result.get("steps", last.get("step")),
        tokens=result.get("tokens", last.get("tokens")),
        flops=result.get("flops", last.get("flops")),
        seconds=last.get("seconds"),
        last100=None if damaged else run.last100,
        val_loss=result.get("val_loss"),
        tokens_per_s=result.get("tokens_per_s"),
        mfu=result.get("mfu"),
        peak_memory_bytes=result.get("peak_memory_bytes"),
        device=run.env.get("gpu") or result.get("device"),
        buckets=buckets,
        attempts=tuple(_attempt(attempt) for attempt in run.job.get("attempts", ())),
        problem=_problem(folder, run, metric),
        command=shlex.join(str(word) for word in _command(run)),
        chain=run.chain,
        files=files,
        other_seconds=math.fsum(others) if buckets else None,
    )


def _problem(folder: Path, run: RunRecord, metric: str) -> str | None:
    """Why a run counts for nothing, in one line; None where it counts."""
    if run.problem is not None:
        return " ".join(run.problem.replace(f"{folder}/", "").split())
    if run.status != "ok":
        attempts = run.job.get("attempts") or [{}]
        reason = run.result.get("error") or run.job.get("reason") or attempts[-1].get("reason")
        return " ".join(str(reason or _ABSENT.get(run.status, run.status)).split())
    if run.edited is not None:
        return run.edited
    if score_of(run, metric) is None:
        return f"too short: it has no {METRICS.get(metric, metric)}"
    return None


_ABSENT = {
    "killed": "ended without a result",
    "pending": "never started",
    "running": "still running when the report was written",
    "interrupted": "stopped before its budget was spent",
}


def _attempt(attempt: Mapping[str, Any]) -> str:
    """`exit code 1 after 3.2 s: reason (changes)`."""
    seconds = attempt.get("seconds")
    said = f"exit code {attempt.get('exit_code')}" + (f" after {seconds:.1f} s" if seconds is not None else "")
    if attempt.get("reason"):
        said += f": {' '.join(str(attempt['reason']).split())}"
    changes = attempt.get("changes")
    if changes:
        told = changes if isinstance(changes, str) else json.dumps(changes, sort_keys=True)
        said += f" (changed: {told})"
    return said


def _command(run: RunRecord) -> Sequence[str]:
    """The command that made the run, as one would type it."""
    command = [str(word) for word in run.env.get("command") or ()]
    if not command:
        attempts = run.job.get("attempts") or [{}]
        given = attempts[-1].get("command") or ()
        command = shlex.split(given) if isinstance(given, str) else [str(word) for word in given]
    return ["rnn-lab", *command[1:]] if command and command[0] in ("__main__.py", "rnn-lab") else command
