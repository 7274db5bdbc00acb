"""What the scheduler asks of the machines: start a task, say how it goes, end it.

An executor knows where a task runs; plan and scheduler do not. It brings `Task.folder` as it is to the place where
the program runs, runs the task's arguments there, keeps what is printed in `Task.log`, and has brought folder and
log back when it reports `ended`. No file system needs to be shared. Files that arguments name, such as `--data`, must
exist under the same path where the task runs.

A plugin brings an executor by the hook `register_executors`: a name and the place of an `ExecutorKind`.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol, TypeVar

from rnn_lab.config import validate
from rnn_lab.strict import StrictModel

S = TypeVar("S", bound=StrictModel)
GRACE_SECONDS = 60.0
"""What a task that is asked to end has for its last step and checkpoint."""
MARGIN_SECONDS = 10.0
"""And what is granted beyond that before it counts as one that does not end by itself."""


@dataclass(frozen=True)
class Task:
    """One attempt at a job.

    Attributes:
        name: the job's, unique in its series.
        args: arguments of `rnn-lab`, those of the place and of the folder left out.
        folder: the run's folder; what is there is the run's past, and the result belongs there.
        log: file for what the program prints.
        resumes: whether the run in `folder` goes on; `args` then are those before the command.
    """

    name: str
    args: tuple[str, ...]
    folder: Path
    log: Path
    resumes: bool = False

    def arguments(self, folder: str, place: Sequence[str] = ()) -> list[str]:
        """Complete arguments for a run in `folder`, as named where it runs; `place` is what `fit` has to know of it."""
        if self.resumes:
            return [*self.args, "resume", folder]
        return [*self.args, *place, "--out", folder]


@dataclass(frozen=True)
class Status:
    """How a task goes.

    Attributes:
        state: queued (a cluster has it and has not begun), running or ended.
        place: where, in words: `gpu 1`.
        idle: seconds since its last sign of life (a step, a line of its log, a checkpoint), by the clock of its place.
        line: newest line of metrics.jsonl that is known here.
        exit_code: once it ended, as a shell has it: 128 + the number of the signal that ended it.
        lost: why its place is gone; then the task is not to blame and is tried elsewhere.
    """

    state: Literal["queued", "running", "ended"]
    place: str = ""
    idle: float = 0.0
    line: Mapping[str, Any] = field(default_factory=dict)
    exit_code: int | None = None
    lost: str | None = None


@dataclass(frozen=True)
class Setting:
    """What the user said about where tasks run.

    Attributes:
        series: folder of the series; nothing is there yet while its plan is made.
        program: arguments of Python that start rnn-lab: `-m rnn_lab_cli`.
        gpus: `--gpus`: ids, `none` for the CPU, or None.
        slots: `--slots`: tasks at once, or None.
        options: what `-x KEY=VALUE` set, for the executor to read with `options`.
        note: tells a person something.
    """

    series: Path
    program: tuple[str, ...]
    gpus: str | None = None
    slots: int | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    note: Callable[[str], None] = lambda text: None

    def read_options(self, schema: type[S]) -> S:
        """The options of `-x` as an executor declares them.

        Raises:
            ConfigError: an unknown key or a wrong value; names the nearest key.
        """
        return validate(schema, self.options, prefix="-x ")


class Executor(Protocol):
    """Machines that run tasks. Every method returns at once but `recover` and `close`.

    Attributes:
        retries: places that may vanish below one job before that job is blamed.
    """

    retries: int

    def devices(self) -> list[str]:
        """Devices that runs here may land on, as result.json has them; empty where that is not known beforehand."""

    def recover(self, names: Sequence[str]) -> None:
        """End what an earlier scheduler left running of the jobs `names`, and bring its folders back.

        Raises:
            RnnLabError: something of it cannot be ended.
        """

    def room(self) -> int:
        """How many tasks can be submitted now; 0 while every place is taken.

        Raises:
            RnnLabError: no place is left, nor will there be one.
        """

    def submit(self, task: Task) -> None:
        """Start a task, or hand it to a queue; only while there is room."""

    def poll(self, name: str) -> Status:
        """How the submitted task of the job `name` goes; `ended` is reported once, and frees its place."""

    def cancel(self, name: str) -> None:
        """Ask a task to end: it writes a checkpoint; one that does not end by itself is killed a little later."""

    def close(self) -> None:
        """End every task and wait until all have ended; they can be polled afterwards."""


class ExecutorKind(Protocol):
    """What a plugin registers: how to come by an executor."""

    def preview(self, setting: Setting, task: Task) -> str | None:
        """What would be handed over for a task besides its command, for `--dry-run`; None where there is no more.

        Raises:
            RnnLabError: an option is wrong, or a library is missing.
        """

    def open(self, setting: Setting) -> Executor:
        """Reach the machines; nothing of the series has been written yet.

        Raises:
            RnnLabError: an option is wrong, a library is missing, or the machines do not answer or do not fit.
        """
