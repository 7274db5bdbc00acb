"""The executor of a SLURM cluster: one batch job per task, written and submitted by submitit.

SLURM's machines share a file system, so runs train in the series' own folder. A job that is to end is asked by a file
beside it, because `scancel` would signal every process of it at once. The extra `rnn-lab-core[slurm]` brings submitit.
"""

import logging
import os
import shlex
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import Field

from rnn_lab.comparison.integrity import sha256
from rnn_lab.data.streams import require
from rnn_lab.errors import ConfigError, RnnLabError
from rnn_lab.identity import identity
from rnn_lab.lab.executor import GRACE_SECONDS, MARGIN_SECONDS, Setting, Status, Task
from rnn_lab.lab.life import Signs, newest, say
from rnn_lab.lab.remote import common_env
from rnn_lab.lab.runner import Order, Runner
from rnn_lab.strict import StrictModel
from rnn_lab.system.atomic import write_text_atomic

AT_ONCE = 64
"""Jobs that are queued or run at once where --slots says nothing."""
CHECK_SECONDS = 20.0
"""Between two questions to SLURM's accounting; results and signs of life are read from the file system."""
SETTLE_SECONDS = 60.0
"""What a file system may take to show here what a job wrote there."""
_POLL = 0.5
_QUEUED = ("PENDING", "CONFIGURING", "REQUEUED", "REQUEUE_HOLD", "REQUEUE_FED", "SUSPENDED")
_ALIVE = (*_QUEUED, "RUNNING", "COMPLETING", "STAGE_OUT", "SIGNALING", "UNKNOWN", "READY")
_LOST = ("NODE_FAIL", "BOOT_FAIL", "PREEMPTED", "TIMEOUT", "DEADLINE", "REVOKED", "LAUNCH_FAILED", "RECONFIG_FAIL")
"""States in which a job ended through no fault of the run's."""


class SlurmOptions(StrictModel):
    """What `-x` sets for `--executor slurm`."""

    minutes: int = Field(ge=1, description="Time limit of a job; a run that needs longer goes on in the next job.")
    partition: str | None = Field(None, description="Partition.")
    account: str | None = Field(None, description="Account.")
    qos: str | None = Field(None, description="Quality of service.")
    constraint: str | None = Field(None, description="Features that a machine must have: compare equal GPUs.")
    exclude: str | None = Field(None, description="Machines to avoid.")
    cpus: int = Field(4, ge=1, description="CPUs of a job, and its threads where it trains on the CPU.")
    mem_gb: int | None = Field(None, ge=1, description="Memory of a job; default: the partition's.")
    setup: list[str] = Field(default_factory=list, description="Shell lines before the run: modules, environments.")
    extra: dict[str, Any] = Field(default_factory=dict, description="Other options of sbatch: `extra.reservation=x`.")
    retries: int = Field(1, ge=0, description="Machines or time limits that a run may lose before it counts as failed.")
    end_early: int = Field(180, ge=30, description="Seconds before the time limit at which a run is asked to end.")


@dataclass(frozen=True)
class Ended:
    """What a job says at its end: where it ran, its exit code, and the sums of files that must show up here."""

    place: str
    code: int
    sums: Mapping[str, str]
    lost: str | None = None


@dataclass
class _Live:
    task: Task
    job: Any
    signs: Signs
    leave: float | None = None
    cancelled: bool = False
    seen: float | None = None
    """When the job was first seen to have ended."""


class SlurmKind:
    """`--executor slurm`."""

    def preview(self, setting: Setting, task: Task) -> str:
        """The batch script of a task.

        Raises:
            ConfigError: an option is wrong, or submitit is not installed.
        """
        options, submitit = _library(setting)
        script: str = submitit.slurm.slurm._make_sbatch_string(
            command=f"{shlex.quote(sys.executable)} -u -m submitit.core._submit {shlex.quote(str(_folder(setting)))}",
            folder=_folder(setting),
            **parameters(options, setting, task.name),
        )  # fmt: skip
        return script

    def open(self, setting: Setting) -> "SlurmExecutor":
        """See that jobs can be submitted from here.

        Raises:
            ConfigError: an option is wrong, submitit is not installed, or this machine has no SLURM.
        """
        options, submitit = _library(setting)
        try:
            writer = submitit.SlurmExecutor(folder=_folder(setting))
            writer.update_parameters(**parameters(options, setting, "job"))
        except RuntimeError as error:
            raise ConfigError(f"--executor slurm: {error} Start it where sbatch and srun are on the PATH") from error
        except ValueError as error:
            raise ConfigError(f"--executor slurm: {error}") from error
        return SlurmExecutor(submitit, writer, options, setting)


SLURM = SlurmKind()


def parameters(options: SlurmOptions, setting: Setting, name: str) -> dict[str, Any]:
    """What submitit is told about the job of a task. A job is never requeued: what runs is the scheduler's decision."""
    given = {
        key: getattr(options, key) for key in ("partition", "account", "qos", "constraint", "exclude")
    } | {
        "job_name": f"rnn-lab-{name}", "time": options.minutes, "nodes": 1, "ntasks_per_node": 1,
        "cpus_per_task": options.cpus, "gpus_per_node": None if setting.gpus == "none" else 1,
        "mem": None if options.mem_gb is None else f"{options.mem_gb}GB", "setup": options.setup or None,
        "signal_delay_s": options.end_early, "additional_parameters": {"no-requeue": True, **options.extra},
    }  # fmt: skip
    return {key: value for key, value in given.items() if value is not None}


class SlurmExecutor:
    """Batch jobs; see `rnn_lab.lab.executor.Executor` for the methods.

    Args:
        submitit: the library.
        writer: its executor, which writes and submits scripts.
        options: see there.
        setting: see there.
        grace: seconds between asking a run to end and killing it.
    """

    def __init__(
        self, submitit: Any, writer: Any, options: SlurmOptions, setting: Setting, *, grace: float = GRACE_SECONDS
    ) -> None:
        self.submitit, self.writer, self.options, self.setting, self.grace = submitit, writer, options, setting, grace
        self.retries = options.retries
        self._series = setting.series.resolve()
        self._place, self._env = common_env(setting, cpus=options.cpus, gpu=setting.gpus != "none")
        self._identity = identity(os.environ.get("RNN_LAB_PLUGINS_DIR"))
        self._live: dict[str, _Live] = {}
        self._asked = float("-inf")

    def devices(self) -> list[str]:
        """`cpu`, or nothing: which GPU a job will get is not known."""
        return ["cpu"] if self.setting.gpus == "none" else []

    def recover(self, names: Sequence[str]) -> None:
        """End the jobs that an earlier scheduler left in the queue or running."""
        left = {name: self._job(kept.read_text().strip()) for name in names if (kept := self._id(name)).is_file()}
        left = {name: job for name, job in left.items() if not self._over(job, ask=True)}
        for name, job in left.items():
            self._cancel_file(name).touch()
            if self._state(job) in _QUEUED:
                job.cancel(check=False)
        until = time.monotonic() + self.grace + MARGIN_SECONDS
        for name, job in left.items():
            while not self._over(job, ask=True):
                if time.monotonic() > until:
                    job.cancel(check=False)
                if time.monotonic() > until + SETTLE_SECONDS:
                    raise RnnLabError(f"job {name} still runs as SLURM job {job.job_id}: end it with scancel")
                time.sleep(_POLL)
        for name in names:
            self._id(name).unlink(missing_ok=True)

    def room(self) -> int:
        """Jobs that may be queued or run beside those that do."""
        return max(0, (self.setting.slots or AT_ONCE) - len(self._live))

    def submit(self, task: Task) -> None:
        """Hand the job to the queue."""
        folder = _folder(self.setting)
        folder.mkdir(parents=True, exist_ok=True)
        self._cancel_file(task.name).unlink(missing_ok=True)
        order = Order(
            task, f"{self._series.name}-slurm", self.setting.program, self._place, self._identity, self._env,
            (str(self._series / "series.json"), (self._series / "series.json").read_text()),
            os.environ.get("RNN_LAB_PLUGINS_DIR"), grace=self.grace,
            together=True,
        )  # fmt: skip
        try:
            self.writer.update_parameters(**parameters(self.options, self.setting, task.name))
            job = self.writer.submit(run_order, order, str(self._cancel_file(task.name)))
        except Exception as error:  # sbatch refuses: submitit passes on what it says
            raise RnnLabError(f"job {task.name}: SLURM did not take it: {error}") from error
        write_text_atomic(self._id(task.name), f"{job.job_id}\n")
        self._live[task.name] = _Live(task, job, Signs(task.folder, task.log))

    def poll(self, name: str) -> Status:
        """See Executor.poll."""
        live = self._live[name]
        line = newest(live.task.folder)
        if self._over(live.job):
            live.seen = live.seen or time.monotonic()
            if (status := self._ended(live, line)) is not None:
                del self._live[name]
                self._id(name).unlink(missing_ok=True)
                return status
        if live.leave is not None and time.monotonic() > live.leave:
            live.leave = None
            live.job.cancel(check=False)
        state, idle = self._state(live.job), live.signs.idle()
        if not live.task.log.exists() and (state in _QUEUED or state in ("UNKNOWN", "READY")):
            return Status("queued", f"SLURM job {live.job.job_id}")
        return Status("running", self._where(live.job), idle, line)

    def cancel(self, name: str) -> None:
        """Ask the job to end, by its file; one that still waits, or does not end by itself, by scancel."""
        if name not in self._live or self._live[name].cancelled:
            return
        live = self._live[name]
        live.cancelled = True
        live.leave = time.monotonic() + self.grace + MARGIN_SECONDS
        self._cancel_file(name).touch()
        self.submitit.SlurmJob.watcher.update()
        if self._state(live.job) in _QUEUED:
            live.job.cancel(check=False)

    def close(self) -> None:
        """Cancel everything and wait."""
        for name in self._live:
            self.cancel(name)
        until = time.monotonic() + self.grace + MARGIN_SECONDS + SETTLE_SECONDS
        waiting = list(self._live.values())
        while waiting and time.monotonic() < until:
            waiting = [live for live in waiting if not self._over(live.job, ask=True)]
            for live in waiting:
                if live.leave is not None and time.monotonic() > live.leave:
                    live.leave = None
                    live.job.cancel(check=False)
            time.sleep(_POLL)

    def _ended(self, live: _Live, line: Mapping[str, Any]) -> Status | None:
        """How a job ended; None while what it wrote is not to be seen here yet."""
        job, state = live.job, self._state(live.job)
        if job.paths.result_pickle.exists():
            outcome, said = self._outcome(job)
            if outcome == "error":
                say(live.task.log, f"error: SLURM job {job.job_id}: {str(said).strip().splitlines()[-1]}")
                return Status("ended", self._where(job), 0.0, line, 1)
            late = any(sha256(live.task.folder / name) != told for name, told in said.sums.items())
            if late and time.monotonic() - (live.seen or 0.0) < SETTLE_SECONDS:
                return None
            return Status("ended", said.place, 0.0, newest(live.task.folder), said.code, said.lost)
        where = self._where(job)
        if live.cancelled:
            return Status("ended", where, 0.0, line, 130)
        if state.startswith(_LOST):
            return Status("ended", where, 0.0, line, None, f"SLURM job {job.job_id} ended as {state} on {where}")
        say(live.task.log, f"error: SLURM job {job.job_id} ended as {state} without a word; see {job.paths.stderr}")
        return Status("ended", where, 0.0, line, 1)

    def _outcome(self, job: Any) -> tuple[str, Any]:
        import pickle

        outcome: tuple[str, Any] = pickle.loads(job.paths.result_pickle.read_bytes())
        return outcome

    def _over(self, job: Any, *, ask: bool = False) -> bool:
        """Whether a job has ended: by its result, or by SLURM's word, asked for at intervals or now."""
        if job.paths.result_pickle.exists():
            return True
        now = time.monotonic()
        if ask or now - self._asked > CHECK_SECONDS:
            self._asked = now
            self.submitit.SlurmJob.watcher.update()
        return self._state(job) not in _ALIVE

    def _state(self, job: Any) -> str:
        state = str(job.watcher.get_state(job.job_id, mode="cache")).split(" ")[0]  # CANCELLED by 1000
        return state.rstrip("+")

    def _where(self, job: Any) -> str:
        nodes = job.watcher.get_info(job.job_id, mode="cache").get("NodeList")
        return f"{nodes} (SLURM job {job.job_id})" if nodes else f"SLURM job {job.job_id}"

    def _job(self, number: str) -> Any:
        job = self.submitit.SlurmJob(folder=_folder(self.setting), job_id=number)
        job.watcher.register_job(number)
        return job

    def _id(self, name: str) -> Path:
        return _folder(self.setting) / f"{name}.id"

    def _cancel_file(self, name: str) -> Path:
        return _folder(self.setting) / f"{name}.cancel"


def run_order(order: Order, cancel: str) -> Ended:
    """What a batch job does: runs the order, and ends it where a file, or SLURM before the time limit, asks so."""
    why: list[str] = []
    signal.signal(signal.SIGUSR2, lambda *_: why.append("the job's time was up"))
    runner = Runner()
    begun = runner.begin(order)
    if begun.refused is None and not begun.shared:
        begun = type(begun)(begun.place, refused=f"{begun.place} does not see {order.task.folder.parent} as it is here")
    if begun.refused is not None:
        say(order.task.log, f"error: {begun.refused}")
        return Ended(begun.place, 2, {})
    runner.start()
    while (code := runner.look().code) is None:
        if why or Path(cancel).exists():
            runner.cancel()
        time.sleep(_POLL)
    runner.finish()
    sums = {name: told for name in ("result.json", "metrics.jsonl") if (told := sha256(order.task.folder / name))}
    return Ended(begun.place, code, sums, f"{begun.place}: {why[0]}" if why and code == 130 else None)


def _library(setting: Setting) -> tuple[SlurmOptions, Any]:
    """Options, and submitit.

    Raises:
        ConfigError: an option is wrong, or it is not installed.
    """
    if "minutes" not in setting.options:
        raise ConfigError("--executor slurm needs the time limit of a job: -x minutes=240")
    options = setting.read_options(SlurmOptions)
    if setting.gpus not in (None, "none"):
        raise ConfigError(f"--gpus {setting.gpus}: SLURM chooses the GPUs; only `--gpus none` has a meaning with it")
    submitit = require("submitit", "--executor slurm (the extra rnn-lab-core[slurm])")
    require("submitit.slurm.slurm", "--executor slurm")
    logging.getLogger("submitit").setLevel(logging.ERROR)
    return options, submitit


def _folder(setting: Setting) -> Path:
    return setting.series.resolve() / "slurm"
