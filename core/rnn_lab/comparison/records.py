"""Reading what runs left behind: the one interface between run folders and everything that judges them.

A run folder is what `fit` writes (train.rundir). A series folder is what `protocol run` writes: series.json with the
plan, runs/<job>/ with a run folder each, jobs/<job>.json with how each job went. Reading changes nothing and never
guesses: a run that ended without a result is a row with status `killed`; a file that is damaged or was edited into
something that cannot be is an error that names it.
"""

import json
import math
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from rnn_lab.comparison.clocks import beside
from rnn_lab.comparison.integrity import edited
from rnn_lab.config import read_toml
from rnn_lab.errors import CheckpointError, RnnLabError, RunError
from rnn_lab.train.metrics import WINDOW, read_metrics
from rnn_lab.train.rundir import RunDir

MARKS = ("config.toml", "metrics.jsonl", "result.json")
SERIES = "series.json"
RUNS = "runs"
SERIES_COLUMNS = ("step", "tokens", "flops", "seconds", "loss", "grad_norm")
Series1D = NDArray[np.float64]
_CURE = "restore it from a copy, or remove the run's folder and run it again"
_PLAN_CURE = "restore it from a copy, or move it away: the runs can be read without their plan"
_ASIDE_CURE = "restore it from a copy, or remove it: no run's figures are in it"


class _Result(BaseModel):
    """What result.json must hold for a run to be judged; the rest is taken as it is."""

    model_config = ConfigDict(extra="allow", strict=True, allow_inf_nan=False)

    status: Literal["ok", "interrupted", "diverged", "oom", "failed", "timeout"]
    model: str
    seed: int | None = None
    params: int | None = Field(None, ge=1)
    steps: int | None = Field(None, ge=0)
    tokens: int | None = Field(None, ge=0)
    flops: int | None = Field(None, ge=0)
    last100: float | None = None
    tokens_per_s: float | None = Field(None, ge=0)
    data_chain: str | None = None
    backends: list[dict[str, Any]] | None = None
    clock: dict[str, Any] = Field(default_factory=dict)
    external: bool = False


@dataclass(frozen=True)
class RunRecord:
    """One run, as its folder tells it; figures that do not exist are None, empty where they are collections.

    Attributes:
        path: the run's folder.
        name: the folder's name, or the job's name in a series.
        label: what tables call it: the model's name, or the label of the job.
        model: registered name.
        seed: of weights and batches.
        params: parameters, counted; None for a run without a result.
        status: ok, interrupted, diverged, oom, failed, timeout, running, killed or pending.
        config: the tables of config.toml, origins left out.
        origins: the layer that set each `section.key`.
        env: env.json.
        result: result.json.
        chain: hash chain of the consumed offsets.
        backends: per operation: what ran, why nothing faster, the layers.
        clock: seconds per bucket, their sum, the bucket that a budget counts.
        external: figures that somebody else measured, imported.
        group: name that a series gives to the runs which differ in nothing but their seed.
        job: jobs/<name>.json of a series: state, attempts, reasons.
        problem: what is wrong with the folder of a run that was read with `keep_damaged`; its status is then damaged.
    """

    path: Path
    name: str
    label: str
    model: str
    seed: int | None = None
    params: int | None = None
    status: str = "killed"
    config: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    origins: Mapping[str, str] = field(default_factory=dict)
    env: Mapping[str, Any] = field(default_factory=dict)
    result: Mapping[str, Any] = field(default_factory=dict)
    chain: str | None = None
    backends: tuple[Mapping[str, Any], ...] = ()
    clock: Mapping[str, Any] = field(default_factory=dict)
    external: bool = False
    group: str | None = None
    job: Mapping[str, Any] = field(default_factory=dict)
    problem: str | None = None

    @cached_property
    def lines(self) -> list[dict[str, Any]]:
        """Every line of metrics.jsonl, steps 1 to n; empty where there is none.

        Raises:
            RunError: a line is damaged, missing, or not finite, or they are not as many as result.json says.
        """
        path = self.path / "metrics.jsonl"
        try:
            lines = list(read_metrics(path))
        except (CheckpointError, OSError) as error:
            raise RunError(f"{error}: {_CURE}") from error
        for number, line in enumerate(lines, 1):
            if line["step"] != number:
                raise RunError(f"{path}, line {number}: step {line['step']!r} where step {number} belongs: {_CURE}")
            for column in SERIES_COLUMNS:
                value = line.get(column)
                number_ok = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
                if not number_ok and not (value is None and (column != "loss" or line.get("skipped"))):
                    raise RunError(f"{path}, line {number}: {column} = {value!r} is no finite number: {_CURE}")
        steps = self.result.get("steps")
        if self.external and not lines:  # a source that printed means of many steps, or none at all
            return lines
        if self.status in ("ok", "interrupted") and steps is not None and steps != len(lines):
            raise RunError(f"{path} holds {len(lines)} steps, but result.json says {steps}: {_CURE}")
        return lines

    def series(self, column: str) -> Series1D:
        """One column of metrics.jsonl, float64 [steps]; NaN where a step has no such figure.

        `tokens`, `flops` and `seconds` are cumulative; `loss` is nats per byte, and that of the step before
        where a step was skipped.

        Raises:
            RunError: see `lines`.
        """
        values: Iterable[Any] = (line.get(column) for line in self.lines)
        if column == "loss":
            values = carried(values)
        return np.array([math.nan if value is None else value for value in values], dtype=np.float64)

    @cached_property
    def edited(self) -> str | None:
        """Why a run that ended well counts for nothing: its files are not what was written; None where they are.

        Raises:
            RunError: see `lines`.
        """
        return edited(self)

    @property
    def fate(self) -> str:
        """What became of the run: its status, or what is wrong with its files."""
        return self.problem or self.edited or self.status

    @cached_property
    def beside(self) -> tuple[str, ...] | None:
        """Jobs of its series that ran on the same CPU meanwhile; None where nothing tells, as for a run by itself."""
        return beside(self.path.resolve().parent.parent / "jobs", self.job)

    @property
    def last100(self) -> float | None:
        """Mean loss of the last 100 steps, nats per byte, from the steps themselves; None for fewer.

        An external run without steps has the figure that was imported.
        """
        loss = self.series("loss")
        if not len(loss) and self.external:
            return self.result.get("last100")
        known = len(loss) >= WINDOW and not math.isnan(loss[-WINDOW])
        return math.fsum(loss[-WINDOW:]) / WINDOW if known else None


class ExternalRow(BaseModel):
    """A published figure: somebody else's, not reproduced here. `loss` is nats per byte."""

    model_config = ConfigDict(frozen=True, extra="ignore", allow_inf_nan=False)

    label: str
    document: str
    loss: float | None = None
    bpb: float | None = None
    tokens_per_s: float | None = Field(None, ge=0)
    params: int | None = Field(None, ge=1)
    caveat: str | None = None
    preset: str | None = None
    run: str | None = None
    history: str | None = None

    @property
    def nats(self) -> float | None:
        """Nats per byte, from whichever of `loss` and `bpb` was published."""
        if self.loss is None and self.bpb is not None:
            return self.bpb * math.log(2)
        return self.loss


def carried(losses: Iterable[float | None]) -> list[float | None]:
    """Losses with that of the step before where a step, having been skipped, has none."""
    found: list[float | None] = []
    for loss in losses:
        found.append(found[-1] if loss is None and found else loss)
    return found


@dataclass(frozen=True)
class Series:
    """A series: its plan, every job as a run (failed and pending ones too, in plan order), and published figures."""

    path: Path
    meta: Mapping[str, Any]
    runs: tuple[RunRecord, ...]
    external: tuple[ExternalRow, ...] = ()
    noise: Mapping[str, Any] | None = None


def read_run(path: Path) -> RunRecord:
    """The run in the folder `path`.

    Raises:
        RunError: it is no run, or a file of it is damaged or edited into something that cannot be.
    """
    if not any((path / mark).is_file() for mark in MARKS):
        raise RunError(f"{path} is not a run: it holds none of {', '.join(MARKS)} (`rnn-lab runs DIR` lists runs)")
    run = RunDir(path)
    result = _result(run.result)
    external = bool(result.get("external"))
    config = _config(run, external)
    model = str(result.get("model") or config.get("model", {}).get("name"))
    named = config.get("model", {}).get("name", model)
    if model != named:
        raise RunError(f"{run.result}: model {model!r}, but {run.config.name} trains {named!r}: {_CURE}")
    origins = config.pop("origins", {})
    return RunRecord(
        path=path,
        name=path.name,
        label=str(result.get("label") or model),
        model=model,
        seed=result.get("seed", config.get("train", {}).get("seed")),
        params=result.get("params"),
        status="running" if run.locked() else str(result.get("status", "killed")),
        config=config,
        origins=origins,
        env=_object(run.env) if run.env.exists() else {},
        result=result,
        chain=result.get("data_chain"),
        backends=tuple(result.get("backends") or ()),
        clock=result.get("clock", {}),
        external=external,
    )


def find_runs(folder: Path) -> Iterator[Path]:
    """Run folders at or below `folder`, by path; nothing inside a run is searched."""
    for top, folders, files in os.walk(folder):
        folders.sort()
        if any(mark in files for mark in MARKS):
            folders.clear()
            yield Path(top)


def read_runs(path: Path, *, keep_damaged: bool = False) -> list[RunRecord]:
    """Every run of a series, of a folder of runs, or the one run that `path` is.

    Args:
        path: the folder; the `runs` folder of a series is the series. A run of a series that is read by itself has the
            label and the state that the series gives it.
        keep_damaged: a damaged run is a record with status `damaged` and its `problem`, not an error.

    Raises:
        RunError: there is none, or one is damaged.
    """
    for series in (path, path.parent if path.name == RUNS else path.resolve().parent):
        if (series / SERIES).is_file() and (series == path or path.resolve().name == RUNS):
            return list(read_series(series, keep_damaged=keep_damaged).runs)
    if not path.is_dir():
        raise RunError(f"{path}: no such folder (`rnn-lab runs DIR` lists runs)")
    runs = [_found(folder, keep_damaged) for folder in find_runs(path)]
    if not runs:
        raise RunError(f"{path} holds no runs: give a run's folder, or one that holds runs")
    return runs


def _found(folder: Path, keep_damaged: bool) -> RunRecord:
    """The run in `folder`; where a series planned it, as that series has it, but in no group of other folders' runs."""
    series = folder.resolve().parent.parent
    if folder.resolve().parent.name == RUNS and (series / SERIES).is_file():
        with suppress(RunError, KeyError, TypeError):
            planned = {str(job["name"]): job for job in _object(series / SERIES)["jobs"]}
            run = _job(series, folder.resolve().name, planned[folder.resolve().name], keep_damaged)
            return replace(run, path=folder, group=None)
    return _whole(folder, folder.name) if keep_damaged else read_run(folder)


def _whole(folder: Path, model: str) -> RunRecord:
    """The run in `folder` with every line of its metrics read, or what is wrong with it."""
    try:
        run = read_run(folder)
        _ = run.lines
    except RunError as error:
        return RunRecord(folder, folder.name, model, model, status="damaged", problem=str(error))
    return run


def read_series(path: Path, *, keep_damaged: bool = False) -> Series:
    """The series in the folder `path`; a plain folder of runs is a series without a plan.

    Args:
        path: the folder.
        keep_damaged: see `read_runs`.

    Raises:
        RunError: it holds neither, or a file is damaged.
    """
    if not (path / SERIES).is_file():
        return Series(path, {}, tuple(read_runs(path, keep_damaged=keep_damaged)))
    meta = _object(path / SERIES, _PLAN_CURE)
    try:
        jobs = [(str(job["name"]), job) for job in meta["jobs"]]
        external = tuple(ExternalRow.model_validate(row) for row in meta.get("external") or ())
    except (KeyError, TypeError, ValidationError) as error:
        raise RunError(
            f"{path / SERIES}: not the plan of a series ({type(error).__name__}: {error}): {_PLAN_CURE}"
        ) from error
    noise = _object(path / "noise.json", _ASIDE_CURE) if (path / "noise.json").exists() else meta.get("noise")
    return Series(path, meta, tuple(_job(path, name, job, keep_damaged) for name, job in jobs), external, noise)


def _job(series: Path, name: str, planned: Mapping[str, Any], keep_damaged: bool) -> RunRecord:
    """A planned job as a run, whether or not it came to be one."""
    job_file, folder = series / "jobs" / f"{name}.json", series / RUNS / name
    job = _object(job_file, _ASIDE_CURE) if job_file.exists() else {}
    state = str(job.get("state", "pending"))
    if any((folder / mark).is_file() for mark in MARKS):
        run = _whole(folder, str(planned.get("model"))) if keep_damaged else read_run(folder)
        status = state if run.status == "killed" and state in ("failed", "timeout", "oom", "diverged") else run.status
    else:
        gone = f"gone though its job is done: no folder {folder}" if state == "done" else None
        run = RunRecord(folder, name, name, str(planned.get("model")), planned.get("seed"), problem=gone)
        status = "damaged" if gone else state
    label, group = planned.get("label"), planned.get("group")
    return replace(run, name=name, label=str(label or run.label), group=group, job=job, status=status)


def _config(run: RunDir, external: bool) -> dict[str, Any]:
    """Tables of config.toml, checked as `resume` checks them; only an external run may lack it."""
    if external and not run.config.exists():
        return {}
    try:
        run.read_config()
        return read_toml(run.config)
    except RnnLabError as error:
        raise RunError(f"{run.config}: {error}: {_CURE}") from error


def _result(path: Path) -> dict[str, Any]:
    """result.json, or an empty table where the run never wrote one."""
    if not path.exists():
        return {}
    table = _object(path)
    if (wrong := wrong_in(table)) is not None:
        raise RunError(f"{path}: {wrong}: {_CURE}")
    return table


def wrong_in(result: Mapping[str, Any]) -> str | None:
    """The first figure that keeps a result.json from being read, and why; None for one that can be judged."""
    try:
        _Result.model_validate(result)
    except ValidationError as error:
        first = error.errors()[0]
        return f"{'.'.join(str(part) for part in first['loc'])} = {first.get('input')!r}: {first['msg']}"
    return None


def _object(path: Path, cure: str = _CURE) -> dict[str, Any]:
    """A JSON file that holds one object."""
    try:
        table = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise RunError(f"{path}: cannot be read as JSON ({error}): {cure}") from error
    if not isinstance(table, dict):
        raise RunError(f"{path}: holds no JSON object: {cure}")
    return table
