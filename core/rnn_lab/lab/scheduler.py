"""Runs the jobs of a series: starts them where there is room, watches them, keeps what became of each.

A job that crashes, hangs, diverges or runs out of memory is a state with a reason and stops no other. The scheduler
itself may be killed at any moment: everything it knows is in the folder, and its tasks end with it.
"""

import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from rnn_lab.errors import RnnLabError
from rnn_lab.lab.executor import Executor, Status, Task
from rnn_lab.lab.outcome import halved, judge, tail
from rnn_lab.lab.plan import PROGRAM, Job
from rnn_lab.lab.series import JobRecord, SeriesDir, now
from rnn_lab.system.signals import asked_to_stop
from rnn_lab.train.metrics import last_line
from rnn_lab.train.rundir import RunDir, list_checkpoints

POLL_SECONDS = 0.5
MIN_FREE_BYTES = 64 * 2**20
"""Free space without which no job is started: a checkpoint would fail, one job after the other."""


@dataclass(frozen=True)
class Row:
    """A job as a table shows it."""

    job: Job
    state: str
    place: str = ""
    attempt: int = 0
    seconds: float | None = None
    line: dict[str, Any] = field(default_factory=dict)
    reason: str | None = None


class Observer(Protocol):
    """Who watches a series."""

    def update(self, rows: Sequence[Row]) -> None:
        """Every job as it stands, in plan order; called again and again."""

    def note(self, text: str) -> None:
        """Something a person should know."""


@dataclass
class _Live:
    """A task that was submitted."""

    began: float
    status: Status = field(default_factory=lambda: Status("queued"))
    hung: bool = False
    before: dict[str, Any] = field(default_factory=dict)
    """result.json as the attempt found it; one that is still the same says nothing of the attempt."""


class Scheduler:
    """One series from its current state to the end of its last job.

    Args:
        series: its folder, locked by the caller.
        executor: where tasks run.
        observer: who watches.
        stall: seconds without a sign of life after which a task has hung.
        poll: seconds between two looks at the tasks.
    """

    def __init__(
        self, series: SeriesDir, executor: Executor, observer: Observer, *, stall: float, poll: float = POLL_SECONDS
    ) -> None:
        self.series, self.executor, self.observer = series, executor, observer
        self.stall, self.poll = stall, poll
        self.jobs = {job.name: job for job in series.jobs()}
        self.records: dict[str, JobRecord] = {}
        self.interrupted = False
        self._live: dict[str, _Live] = {}
        self._reached: dict[str, Status] = {}
        self._queue: list[str] = []

    def run(self) -> dict[str, JobRecord]:
        """Run every job that is not finished; `interrupted` says whether a signal ended that early.

        Raises:
            RnnLabError: no place or disk space is left, or a file of the series is damaged; nothing is lost.
        """
        self.records = {name: self.series.record(name) for name in self.jobs}
        self.executor.recover(list(self.jobs))
        for record in self.records.values():
            self._settle(record)
        self._queue = [name for name, record in self.records.items() if record.state == "pending"]
        with asked_to_stop(self._interrupt):
            try:
                while (self._queue or self._live) and not self.interrupted:
                    self._launch()
                    self._watch()
                    self.observer.update(self.rows())
                    time.sleep(self.poll)
            finally:
                self._end()
        self.observer.update(self.rows())
        return self.records

    def rows(self) -> list[Row]:
        """Every job as it stands."""
        rows = []
        for name, record in self.records.items():
            live = self._live.get(name)
            seconds = time.monotonic() - live.began if live else _spent(record)
            status = live.status if live else self._last_status(record)
            reason = None if record.state in ("done", "running") else record.reason
            rows.append(
                Row(
                    self.jobs[name],
                    record.state,
                    status.place,
                    len(record.attempts),
                    seconds,
                    dict(status.line),
                    reason,
                )
            )
        return rows

    def _last_status(self, record: JobRecord) -> Status:
        """Of a job that does not run: where it last ran, and how far it came."""
        if record.name not in self._reached:
            place = record.attempts[-1]["place"] if record.attempts else ""
            try:
                line = last_line(self.series.run(record.name) / "metrics.jsonl")
            except RnnLabError:
                line = {}
            self._reached[record.name] = Status("ended", place, line=line)
        return self._reached[record.name]

    def _settle(self, record: JobRecord) -> None:
        """Decide what is still to be done for a job that an earlier scheduler may have begun."""
        folder = self.series.run(record.name)
        result = _result(folder)
        ended = {"ok": "done", "diverged": "diverged"}.get(str(result.get("status")))
        if record.sums:
            now_there = self.series.sums(record.name)
            changed = sorted(key for key, told in record.sums.items() if now_there.get(key) != told)
            if changed:
                self._note_end(
                    record, "failed", f"{folder / changed[0]} was changed after the run ended: restore it, or remove "
                    f"{folder} and {self.series.job_file(record.name)} to run the job again",
                )  # fmt: skip
            elif record.state == "failed" and ended:  # restored since
                self._note_end(record, ended, result.get("error"))
        elif ended and (stranger := self._stranger(record.name)):
            self._note_end(record, "failed", stranger)
        elif ended:  # while no scheduler looked
            self._close(record, ended, result.get("error"))
        elif record.state != "pending":
            record.state = "pending"
            self.series.write(record)

    def _stranger(self, name: str) -> str | None:
        """What is wrong where the run in a job's folder is not that job's."""
        folder, job = self.series.run(name), self.jobs[name]
        try:
            cfg = RunDir.open(folder).read_config().config
        except RnnLabError as error:
            return str(error)
        if (cfg.model.name, cfg.train.seed) == (job.model, job.seed):
            return None
        return (
            f"{folder} holds a run of {cfg.model.name} with seed {cfg.train.seed}, and the plan says {job.model} with "
            f"seed {job.seed}: move it away"
        )

    def _launch(self) -> None:
        while self._queue and self.executor.room() > 0:
            free = shutil.disk_usage(self.series.path).free
            if free < MIN_FREE_BYTES:
                raise RnnLabError(
                    f"{self.series.path}: only {free / 2**20:.0f} MiB are free on its disk, and a run needs "
                    f"{MIN_FREE_BYTES / 2**20:.0f}: free some space and go on with --resume"
                )
            self._start(self.records[self._queue.pop(0)])

    def _start(self, record: JobRecord) -> None:
        """Submit the next attempt at a job: its run goes on where there is a checkpoint, else it begins anew."""
        job, folder = self.jobs[record.name], self.series.run(record.name)
        number = len(record.attempts) + 1
        if RunDir(folder).locked():
            self._note_end(record, "failed", f"another process trains {folder}: end it and go on with --resume")
            return
        resumes = (folder / "config.toml").is_file() and bool(list_checkpoints(folder / "checkpoints"))
        if not resumes and folder.is_dir() and any(folder.iterdir()):
            self.series.set_aside(record.name, number - 1)
        lead = job.args[: job.args.index("fit")]
        changes = [arg for key, (_, value) in record.changes.items() for arg in ("-o", f"{key}={value}")]
        args = lead if resumes else (*job.args, *changes)
        task = Task(job.name, args, folder, self.series.log(job.name, number), resumes)
        record.state = "running"
        record.attempts.append(
            {
                "command": [PROGRAM, *task.arguments(str(folder))], "place": "", "started": now(), "seconds": None,
                "exit_code": None, "reason": None, "changes": dict(record.changes), "lost": None,
            }
        )  # fmt: skip
        self.series.write(record)
        before = _result(folder)
        self.executor.submit(task)
        self._live[job.name] = _Live(time.monotonic(), before=before)

    def _watch(self) -> None:
        for name, live in list(self._live.items()):
            live.status = self.executor.poll(name)
            if live.status.state == "ended":
                self._finish(self.records[name], live)
            elif live.status.idle > self.stall and not live.hung:
                live.hung = True
                self.observer.note(f"{name}: no sign of life for {self.stall / 60:g} minutes: ending it")
                self.executor.cancel(name)

    def _finish(self, record: JobRecord, live: _Live) -> None:
        """Keep how an attempt ended, and try again where its place or want of memory is to blame."""
        status, folder = live.status, self.series.run(record.name)
        del self._live[record.name]
        self._reached.pop(record.name, None)
        result = _result(folder)
        if result == live.before:
            result = {}
        state, reason = judge(status.exit_code or 0, result, tail(self.series.log(record.name, len(record.attempts))))
        attempt = record.attempts[-1]
        attempt |= {"place": status.place, "seconds": time.monotonic() - live.began, "exit_code": status.exit_code}
        attempt |= {"reason": reason, "lost": status.lost}
        lost = sum(old["lost"] is not None for old in record.attempts)
        if state == "done":
            self._close(record, "done", None)
        elif live.hung:
            attempt["reason"] = f"no sign of life for {self.stall / 60:g} minutes"
            self._note_end(record, "timeout", attempt["reason"])
        elif self.interrupted:
            self._note_end(record, "pending", "interrupted")
        elif status.lost and lost <= self.executor.retries:
            self._again(record, status.lost)
        elif state == "oom" and not record.changes and (changes := halved(folder)):
            self.series.set_aside(record.name, len(record.attempts))
            record.changes = changes
            self._again(record, f"{reason}; tried again with half the micro-batch")
        elif state == "diverged":
            self._close(record, state, reason)
        else:
            self._note_end(record, state, reason)

    def _again(self, record: JobRecord, reason: str) -> None:
        self._note_end(record, "pending", reason)
        self._queue.insert(0, record.name)

    def _close(self, record: JobRecord, state: str, reason: str | None) -> None:
        """The end of a job for good: from now on its files do not change."""
        record.sums = self.series.sums(record.name)
        self._note_end(record, state, reason)

    def _note_end(self, record: JobRecord, state: str, reason: str | None) -> None:
        record.state, record.reason = state, reason
        self.series.write(record)
        if reason:
            self.observer.note(f"{record.name}: {state}: {reason}")

    def _end(self) -> None:
        """End what still runs; its jobs are pending again."""
        if not self._live:
            self.executor.close()
            return
        self.interrupted = True
        self.observer.note(f"ending {len(self._live)} runs; each writes a checkpoint")
        self.executor.close()
        self._watch()

    def _interrupt(self, number: int) -> None:
        """At the first signal the series ends in order; where it does already, at once, and tasks end by themselves."""
        if self.interrupted:
            raise KeyboardInterrupt
        self.interrupted = True


def _result(folder: Path) -> dict[str, Any]:
    """result.json; empty where there is none or it is no result."""
    result: Any = RunDir(folder).read_result()
    return result if isinstance(result, dict) else {}


def _spent(record: JobRecord) -> float | None:
    seconds = [attempt["seconds"] for attempt in record.attempts if attempt["seconds"] is not None]
    return sum(seconds) if seconds else None
