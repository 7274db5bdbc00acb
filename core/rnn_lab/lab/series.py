"""The folder of a series: its names, its lock, and what became of every job.

series.json            the plan: protocol, resolved, seeds, jobs in order, published figures, noise floor
runs/JOB/              a run's folder, as `fit` writes it
jobs/JOB.json          state and attempts of a job
logs/JOB.N.log         what attempt N printed
suite/                 of `rnn-lab bench e3`: its configuration files and protocol
attempts/JOB.N/        the run's folder of an attempt that was begun anew
noise.json             of `rnn-lab noise`
slurm/                 scripts and messages of SLURM jobs
.mark                  while runs train on other machines: how these know that they see this folder
"""

import fcntl
import json
import os
import shutil
import socket
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any

from pydantic import BaseModel, ConfigDict, ValidationError

from rnn_lab.comparison.integrity import sha256
from rnn_lab.errors import ConfigError, RnnLabError, RunError
from rnn_lab.lab.plan import Job, SeriesPlan
from rnn_lab.system.atomic import write_text_atomic

SUITE = "suite"
"""Folder of the files that a series was made from, written before it begins."""
STATES = ("pending", "running", "done", "failed", "diverged", "timeout", "oom")
SUMMED = ("config.toml", "metrics.jsonl", "result.json", "env.json")
"""Files of a run that do not change once it has ended; their sha256 is kept with the job."""


@dataclass
class JobRecord:
    """What jobs/JOB.json holds.

    Attributes:
        name: the job's.
        state: one of STATES.
        reason: why it is in that state, where that needs a word.
        attempts: each with command, place, started, seconds, exit_code, reason, changes, and lost: why its place
            went away, or None.
        changes: `section.key`: [before, after] of what attempts change from now on, for want of memory; each keeps
            those that it ran with.
        sums: sha256 of the run's files, once it has ended for good.
    """

    name: str
    state: str = "pending"
    reason: str | None = None
    attempts: list[dict[str, Any]] = field(default_factory=list)
    changes: dict[str, list[Any]] = field(default_factory=dict)
    sums: dict[str, str] = field(default_factory=dict)


class _Attempt(BaseModel):
    model_config = ConfigDict(extra="allow", strict=True)
    place: str
    seconds: float | None
    changes: dict[str, list[Any]]


class _JobFile(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)
    name: str
    state: str
    reason: str | None
    attempts: list[_Attempt]
    changes: dict[str, list[Any]]
    sums: dict[str, str]


class SeriesDir:
    """Paths of one series. `create` starts a new folder, `open` takes an existing one; both hold it until `unlock`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.plan = path / "series.json"
        self._lock: IO[str] | None = None

    @classmethod
    def create(cls, path: Path, plan: SeriesPlan, **facts: Any) -> "SeriesDir":
        """Write the plan into a new folder, and hold it; `facts` are further keys of series.json.

        Raises:
            ConfigError: it exists and is not empty, or cannot be written.
            RnnLabError: another scheduler is about to write there, or the disk is full.
        """
        cls.check_vacant(path)
        series = cls(path)
        try:
            path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(f"--out {path}: cannot write there: {error.strerror}") from error
        series.lock()
        try:
            series.write_json(series.plan, {**plan.table(), **facts, "created": now()})
        except BaseException:
            series.unlock()
            raise
        return series

    @staticmethod
    def check_vacant(path: Path) -> None:
        """Refuse a folder that cannot take a new series, before the plan is made.

        Raises:
            ConfigError: it holds something, or cannot be looked into.
        """
        try:
            begun = (path / "series.json").exists()
            occupied = path.is_dir() and any(entry.name not in (".lock", SUITE) for entry in path.iterdir())
        except OSError as error:
            raise ConfigError(f"--out {path}: cannot write there: {error.strerror}") from error
        if begun:
            raise ConfigError(f"{path} is already a series: add --resume to go on with it, or choose another --out")
        if occupied:
            raise ConfigError(f"{path} is not empty: choose another --out")

    @classmethod
    def open(cls, path: Path) -> "SeriesDir":
        """The folder of an existing series, held.

        Raises:
            ConfigError: it holds no series.json.
            RnnLabError: another scheduler works on it.
        """
        series = cls(path)
        if not series.plan.is_file():
            raise ConfigError(f"{path} is no series: it has no series.json (leave out --resume to begin one there)")
        series.lock()
        return series

    def lock(self) -> None:
        """Hold the series until this process ends.

        Raises:
            RnnLabError: another scheduler holds it; says which.
        """
        path = self.path / ".lock"
        try:
            self._lock = path.open("a+")
        except OSError as error:
            raise ConfigError(f"{self.path}: cannot write there: {error.strerror}") from error
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            self._lock.seek(0)
            holder = self._lock.read().strip() or "unknown"
            self.unlock()
            raise RnnLabError(
                f"{self.path}: another scheduler works on this series ({holder}): wait for it, or end it"
            ) from error
        self._lock.truncate(0)
        self._lock.write(f"pid {os.getpid()} on {socket.gethostname()} since {now()}\n")
        self._lock.flush()

    def unlock(self) -> None:
        """Let go of the series."""
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def read_plan(self) -> dict[str, Any]:
        """series.json.

        Raises:
            RunError: it is damaged.
        """
        try:
            table = json.loads(self.plan.read_text(encoding="utf-8"))
            _jobs(table)
        except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
            raise RunError(
                f"{self.plan}: damaged or edited ({type(error).__name__}: {error}): restore it from a copy; "
                "the runs beside it are whole"
            ) from error
        return dict(table)

    def jobs(self) -> list[Job]:
        """Every job in plan order.

        Raises:
            RunError: see `read_plan`.
        """
        return _jobs(self.read_plan())

    def run(self, name: str) -> Path:
        """Folder of a job's run."""
        return self.path / "runs" / name

    def log(self, name: str, attempt: int) -> Path:
        """What attempt 1, 2, ... printed."""
        return self.path / "logs" / f"{name}.{attempt}.log"

    def job_file(self, name: str) -> Path:
        """What became of a job."""
        return self.path / "jobs" / f"{name}.json"

    def locks(self) -> Path:
        """Folder of the locks that running jobs hold."""
        return self.path / "jobs"

    def record(self, name: str) -> JobRecord:
        """What is known of a job; a fresh record where nothing is.

        Raises:
            RunError: its file is damaged.
        """
        path = self.job_file(name)
        if not path.exists():
            return JobRecord(name)
        try:
            checked = _JobFile.model_validate_json(path.read_text(encoding="utf-8"))
            if checked.state not in STATES or checked.name != name:
                raise ValueError(f"state {checked.state!r} of job {checked.name!r}")
        except (OSError, ValueError, ValidationError) as error:
            raise RunError(
                f"{path}: damaged or edited: {str(error).splitlines()[0]}: restore it, or remove it: the run's own "
                "folder then says how far it came"
            ) from error
        return JobRecord(**checked.model_dump())

    def write(self, record: JobRecord) -> None:
        """Keep a job's record.

        Raises:
            RnnLabError: the disk is full, or the folder went away.
        """
        path = self.job_file(record.name)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise _unwritable(path, error) from error
        self.write_json(path, asdict(record))

    def write_json(self, path: Path, table: dict[str, Any]) -> None:
        """A JSON file, complete or not at all.

        Raises:
            RnnLabError: the disk is full, or the folder went away.
        """
        try:
            write_text_atomic(path, json.dumps(table, indent=1, allow_nan=False) + "\n")
        except OSError as error:
            raise _unwritable(path, error) from error

    def set_aside(self, name: str, attempt: int) -> None:
        """Move a run's folder to attempts/, so that it can begin anew and nothing is lost."""
        kept = self.path / "attempts" / f"{name}.{attempt}"
        try:
            kept.parent.mkdir(exist_ok=True)
            shutil.move(self.run(name), kept)
        except OSError as error:
            raise _unwritable(kept, error) from error

    def sums(self, name: str) -> dict[str, str]:
        """sha256 of the files of a run that ended."""
        paths = [(key, self.run(name) / key) for key in SUMMED]
        return {key: found for key, path in paths if (found := sha256(path)) is not None}


def now() -> str:
    """The time, in UTC to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def _jobs(table: dict[str, Any]) -> list[Job]:
    return [Job(**{**job, "args": tuple(job["args"])}) for job in table["jobs"]]


def _unwritable(path: Path, error: OSError) -> RnnLabError:
    return RnnLabError(
        f"{path}: cannot be written: {error.strerror or error}. Runs keep what they had; free some space and go on "
        "with --resume"
    )
