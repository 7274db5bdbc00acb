"""The executor of this machine: one process per task, one task per GPU or CPU slot."""

import fcntl
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from rnn_lab.discovery.isolation import PATIENT
from rnn_lab.errors import ConfigError, RnnLabError
from rnn_lab.lab.executor import GRACE_SECONDS, MARGIN_SECONDS, Setting, Status, Task
from rnn_lab.lab.life import Signs, newest
from rnn_lab.lab.series import SeriesDir
from rnn_lab.strict import StrictModel

PROBE_SECONDS = 180.0
UUID_PREFIXES = ("GPU-", "MIG-")
"""Of what `nvidia-smi -L` names GPUs and their instances by; whether one is there is found out by running on it."""
_INNOCENT = (0, 3, 130)
"""Exit codes of runs whose GPU answered: finished, diverged, interrupted."""


@dataclass(frozen=True)
class Place:
    """Where one task runs at a time."""

    name: str
    env: Mapping[str, str]
    args: tuple[str, ...]
    gpu: str | None = None


def gpu_places(ids: Sequence[str]) -> list[Place]:
    """One place per GPU, by index or UUID; the task sees that one only, and never falls back to the CPU."""
    return [Place(f"gpu {gpu}", {"CUDA_VISIBLE_DEVICES": gpu}, ("--device", "cuda"), gpu) for gpu in ids]


def cpu_places(count: int) -> list[Place]:
    """`count` slots on the CPU, one thread each unless OMP_NUM_THREADS says otherwise."""
    env = {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1")}
    return [Place(f"cpu {i}", env, ("--device", "cpu")) for i in range(count)]


def places(gpus: str | None, slots: int | None) -> list[Place]:
    """Places of this machine: the GPUs that are named (`0,1`), else all there are, else CPU slots.

    Args:
        gpus: `--gpus`; `none` for the CPU.
        slots: CPU slots, one per core of this process if None.

    Raises:
        ConfigError: a GPU is named twice or is not there, or GPUs and slots are both asked for.
    """
    import torch

    named = [gpu.strip() for gpu in (gpus or "").split(",") if gpu.strip()]
    if named == ["none"] or (not named and (slots is not None or not torch.cuda.is_available())):
        return cpu_places(slots or cores())
    if slots is not None:
        raise ConfigError("--slots is for CPUs: leave it out, or give --gpus none")
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    numbers = [str(i) for i in range(torch.cuda.device_count())]
    known = visible.split(",") if visible and numbers else numbers
    wrong = [
        gpu for gpu in named
        if named.count(gpu) > 1 or not (gpu in known or (known and gpu.startswith(UUID_PREFIXES)))
    ]  # fmt: skip
    if wrong:
        there = ", ".join(known) or "none"
        raise ConfigError(f"--gpus {gpus}: {wrong[0]} is named twice or is not there; there are: {there}")
    return gpu_places(named or known)


def devices(where: Sequence[Place]) -> list[str]:
    """What runs in these places may run on: `cpu`, and the names of this machine's GPUs."""
    import torch

    names = {"cpu"} if any(place.gpu is None for place in where) else set()
    if any(place.gpu is not None for place in where):
        names |= {torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())}
    return sorted(names)


def cores() -> int:
    """CPUs that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def gpu_answers(gpu: str) -> bool:
    """Whether a fresh process can use the GPU; one that is merely full answers."""
    code = (
        "import torch\n"
        "try: torch.zeros(1, device='cuda').item()\n"
        "except RuntimeError as error:\n"
        "    if 'out of memory' not in str(error): raise\n"
    )
    try:
        done = subprocess.run(
            [sys.executable, "-c", code], env={**os.environ, "CUDA_VISIBLE_DEVICES": gpu}, capture_output=True,
            timeout=PROBE_SECONDS, check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return False
    return done.returncode == 0


@dataclass
class _Running:
    task: Task
    place: Place
    process: "subprocess.Popen[bytes]"
    signs: Signs


class LocalExecutor:
    """Processes of this machine; see `rnn_lab.lab.executor.Executor` for the methods.

    Args:
        program: command before the arguments of `rnn-lab`.
        places: where tasks run.
        locks: folder for one lock file per job.
        grace: seconds between asking a task to end and killing it.
        answers: whether a GPU can still be used, asked when a task on it failed.
    """

    retries = 3

    def __init__(
        self, program: Sequence[str], places: Sequence[Place], locks: Path, *, grace: float = GRACE_SECONDS,
        answers: Callable[[str], bool] = gpu_answers,
    ) -> None:  # fmt: skip
        self.program, self.locks, self.grace, self.answers = tuple(program), locks, grace, answers
        self._places = list(places)
        self._free = list(places)
        self._running: dict[str, _Running] = {}
        self._gone: list[str] = []

    def devices(self) -> list[str]:
        """`cpu`, and the names of this machine's GPUs."""
        return devices(self._places)

    def recover(self, names: Sequence[str]) -> None:
        """Wait until the guards of an earlier scheduler, which end with it, are gone."""
        until = time.monotonic() + self.grace + MARGIN_SECONDS
        for name in names:
            while held(self._lock(name)):
                if time.monotonic() > until:
                    raise RnnLabError(f"job {name} still runs: end its process (it holds {self._lock(name)})")
                time.sleep(0.2)

    def room(self) -> int:
        """Places that are free."""
        if not self._free and not self._running:
            raise RnnLabError(f"no place is left to run on: {'; '.join(self._gone)}. `--resume` goes on elsewhere")
        return len(self._free)

    def submit(self, task: Task) -> None:
        """Start the task in the first free place."""
        place = self._free.pop(0)
        guard = [sys.executable, "-m", "rnn_lab.lab.guard", str(self._lock(task.name)), str(self.grace)]
        try:
            self.locks.mkdir(parents=True, exist_ok=True)
            task.log.parent.mkdir(parents=True, exist_ok=True)
            with task.log.open("ab") as log:
                process = subprocess.Popen(
                    [*guard, *self.program, *task.arguments(str(task.folder), place.args)],
                    stdin=subprocess.PIPE, stdout=log, stderr=subprocess.STDOUT, start_new_session=True,
                    env={**PATIENT, **os.environ, **place.env},
                )  # fmt: skip
        except OSError as error:
            self._free.insert(0, place)
            raise RnnLabError(f"job {task.name} cannot be started: {error.strerror} ({task.log})") from error
        self._running[task.name] = _Running(task, place, process, Signs(task.folder, task.log))

    def poll(self, name: str) -> Status:
        """See Executor.poll; after a failure on a GPU that may ask whether the GPU is still there."""
        run = self._running[name]
        code = run.process.poll()
        line = newest(run.task.folder)
        if code is None:
            return Status("running", run.place.name, run.signs.idle(), line)
        del self._running[name]
        _close(run.process)
        code = 128 - code if code < 0 else code
        if run.place.gpu is not None and code not in _INNOCENT and not self.answers(run.place.gpu):
            self._gone.append(f"{run.place.name} does not answer any more")
            return Status("ended", run.place.name, 0.0, line, code, self._gone[-1])
        self._free.append(run.place)
        return Status("ended", run.place.name, 0.0, line, code)

    def cancel(self, name: str) -> None:
        """Close the guard's standard input: it ends the command, and kills it after the grace."""
        if name in self._running:
            _close(self._running[name].process)

    def close(self) -> None:
        """Cancel everything and wait; a guard ends by itself within the grace."""
        for name in self._running:
            self.cancel(name)
        for run in self._running.values():
            run.process.wait()

    def _lock(self, name: str) -> Path:
        return self.locks / f"{name}.lock"


class _NoOptions(StrictModel):
    """Where this machine's runs go is said by `--gpus` and `--slots`."""


class LocalKind:
    """`--executor local`, the default."""

    def preview(self, setting: Setting, task: Task) -> None:
        """A task is its command."""
        setting.read_options(_NoOptions)

    def open(self, setting: Setting) -> LocalExecutor:
        """The places of this machine.

        Raises:
            ConfigError: see `places`.
        """
        setting.read_options(_NoOptions)
        program = [sys.executable, *setting.program]
        return LocalExecutor(program, places(setting.gpus, setting.slots), SeriesDir(setting.series).locks())


LOCAL = LocalKind()


def _close(process: "subprocess.Popen[bytes]") -> None:
    if process.stdin is not None:
        with suppress(OSError):
            process.stdin.close()


def held(lock: Path) -> bool:
    """Whether a guard, or a command that it runs, holds the lock."""
    try:
        with lock.open("r") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except OSError:
        return True
    return False
