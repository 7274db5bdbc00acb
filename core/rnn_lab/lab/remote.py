"""An executor over workers that can be reached by calls, whatever carries the calls; Ray's are `on_ray`.

One thread leads each task from its order to its result, so that no call of the scheduler waits for a machine.
"""

import os
import shutil
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from concurrent.futures import TimeoutError as NotYet
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol
from uuid import uuid4

from rnn_lab.errors import RnnLabError
from rnn_lab.identity import Identity
from rnn_lab.lab.archive import pieces, unpack
from rnn_lab.lab.executor import GRACE_SECONDS, MARGIN_SECONDS, Setting, Status, Task
from rnn_lab.lab.life import say
from rnn_lab.lab.runner import LOG, RUN, Begun, Look, Order, members
from rnn_lab.train.rundir import RunDir

LOOK_SECONDS = 0.5
IDLE_SECONDS = 20.0
"""How long a worker without a task is kept for the next one; a new one costs a start of Python."""
_TICK = 0.2
_OWN = ("RNN_LAB_KERNELS", "RNN_LAB_LOAD_PLUGINS", "RNN_LAB_PLUGIN_TIMEOUT", "RNN_LAB_STRICT_PLUGINS")
"""Variables that mean the same everywhere, and travel; those that name folders are each place's own."""


class WorkerGone(Exception):
    """A worker vanished: its machine died, or somebody ended it; the text says how that was noticed."""


class Worker(Protocol):
    """A `Runner` somewhere."""

    def ask(self, method: str, *args: Any) -> "Future[Any]":
        """Call a method of the runner; the future fails with WorkerGone where the worker vanished."""

    def dismiss(self) -> None:
        """End the worker and everything that it runs."""


class Workers(Protocol):
    """Where workers come from."""

    def slots(self) -> int:
        """Workers that fit on all machines together, now."""

    def lack(self) -> str:
        """Why there is not a single slot, and what to do."""

    def hire(self) -> Worker:
        """A worker; it answers once it has a place."""

    def close(self) -> None:
        """Let go of the machines."""


@dataclass(frozen=True)
class Terms:
    """What all tasks of a series have in common; see `runner.Order`."""

    series: Path
    program: tuple[str, ...]
    place: tuple[str, ...]
    identity: Identity
    env: Mapping[str, str] = field(default_factory=dict)
    shared: bool = True
    everything: bool = False
    retries: int = 1
    most: int | None = None
    grace: float = GRACE_SECONDS


class _Ended(Exception):
    """A task ended without a word from its place."""

    def __init__(self, code: int) -> None:
        self.code = code


@dataclass
class _Live:
    """A task that was submitted."""

    task: Task
    status: Status = field(default_factory=lambda: Status("queued"))
    heard: float = field(default_factory=time.monotonic)
    asked_to_end: threading.Event = field(default_factory=threading.Event)
    thread: threading.Thread | None = None
    leave: float | None = None
    """When a task that was asked to end is given up, by time.monotonic."""


class RemoteExecutor:
    """Tasks on workers; see `rnn_lab.lab.executor.Executor` for the methods.

    A task whose worker vanishes ends as `lost`, once its run can no longer write into the series' folder.
    """

    def __init__(self, workers: Workers, terms: Terms, devices: Sequence[str] = ()) -> None:
        self.workers, self.terms, self._devices = workers, terms, list(devices)
        self.retries = terms.retries
        self._name = f"{terms.series.name}-{uuid4().hex[:8]}"
        self._live: dict[str, _Live] = {}
        self._idle: list[tuple[Worker, float]] = []
        self._guard = threading.Lock()

    def devices(self) -> list[str]:
        """What was told beforehand."""
        return self._devices

    def recover(self, names: Sequence[str]) -> None:
        """Runs that an earlier scheduler left end with its workers; wait for those that train in the folder here."""
        if self.terms.shared:
            (self.terms.series / ".mark").write_text(self._name)
        until = time.monotonic() + self.terms.grace + MARGIN_SECONDS
        for name in names:
            run = RunDir(self.terms.series / "runs" / name)
            if _before(run.path).exists() and not run.path.exists():
                _before(run.path).rename(run.path)  # it was killed while it replaced one by the other
            while run.locked():
                if time.monotonic() > until:
                    raise RnnLabError(f"job {name} still runs: end its process (it holds {run.path / '.lock'})")
                time.sleep(_TICK)

    def room(self) -> int:
        """Slots that are free; as many as `most` says wait for machines that are still to come."""
        self._rest()
        slots = self.workers.slots() if self.terms.most is None else self.terms.most
        if slots == 0 and not self._live:
            raise RnnLabError(self.workers.lack())
        return max(0, slots - len(self._live))

    def submit(self, task: Task) -> None:
        """Hand the task to a worker of its own."""
        live = _Live(task)
        live.thread = threading.Thread(target=self._lead, args=(live,), name=f"rnn-lab {task.name}", daemon=True)
        self._live[task.name] = live
        live.thread.start()

    def poll(self, name: str) -> Status:
        """See Executor.poll."""
        live = self._live[name]
        status, silent = live.status, time.monotonic() - live.heard
        if status.state == "ended":
            del self._live[name]
        elif status.state == "running":
            return Status("running", status.place, status.idle + silent, status.line)
        return status

    def cancel(self, name: str) -> None:
        """Ask the task to end; it is given up once grace and margin have passed."""
        if name in self._live and not self._live[name].asked_to_end.is_set():
            self._live[name].leave = time.monotonic() + self.terms.grace + MARGIN_SECONDS
            self._live[name].asked_to_end.set()

    def close(self) -> None:
        """Cancel everything, wait until results are here, let go of the machines."""
        for name in self._live:
            self.cancel(name)
        for live in self._live.values():
            assert live.thread is not None
            live.thread.join()
        self.workers.close()
        (self.terms.series / ".mark").unlink(missing_ok=True)

    def _lead(self, live: _Live) -> None:
        """One task from its order to its result; nothing escapes."""
        code: int | None = None
        lost: str | None = None
        worker: Worker | None = None
        try:
            worker, begun = self._begin(live)
            code = self._through(live, worker, begun)
        except WorkerGone as gone:
            lost = f"{live.status.place or 'a worker'} vanished: {gone}"
            self._wait_for_silence(live)
        except _Ended as ended:
            code = ended.code
        except Exception as error:  # of the place: its disk is full, an archive is cut short
            code = 1
            say(live.task.log, f"error: {live.status.place}: {type(error).__name__}: {error}")
            if worker is not None:
                worker.dismiss()
        else:
            with self._guard:
                self._idle.append((worker, time.monotonic()))
        live.status = Status("ended", live.status.place, 0.0, live.status.line, code, lost)

    def _begin(self, live: _Live) -> tuple[Worker, Begun]:
        """A worker that took the order; one that was kept and vanished meanwhile is no loss of this task's.

        Raises:
            WorkerGone: a new worker vanished.
            _Ended: the task was given up.
        """
        order = self._order(live.task)
        while True:
            with self._guard:
                kept = self._idle.pop()[0] if self._idle else None
            worker = kept or self.workers.hire()
            try:
                begun: Begun = self._ask(live, worker, "begin", order, queued=True)
            except WorkerGone:
                if kept is None:
                    raise
            else:
                live.status = Status("running", begun.place)
                return worker, begun

    def _through(self, live: _Live, worker: Worker, begun: Begun) -> int:
        """Exit code of the task.

        Raises:
            WorkerGone: its worker vanished.
            _Ended: it was given up.
        """
        if begun.refused:
            say(live.task.log, f"error: {begun.refused}")
            return 2
        if not begun.shared and live.task.folder.is_dir():
            for piece in pieces(members(live.task.folder)):
                self._ask(live, worker, "take", piece)
            self._ask(live, worker, "take", b"")
        self._ask(live, worker, "start")
        asked = False
        while True:
            look: Look = self._ask(live, worker, "look")
            live.status = Status("running", begun.place, look.idle, look.line)
            if look.code is not None:
                break
            if live.asked_to_end.is_set() and not asked:
                asked = True
                self._ask(live, worker, "cancel")
            time.sleep(LOOK_SECONDS / 5 if asked else LOOK_SECONDS)
        live.leave = None  # it did end by itself, and what it left may take its time
        if not begun.shared:
            self._bring(live, worker)
        self._ask(live, worker, "finish")
        return look.code

    def _bring(self, live: _Live, worker: Worker) -> None:
        """The run's folder and log from its place; the folder here is replaced only by a complete one."""
        task = live.task
        arriving = task.folder.with_name(f".{task.name}.arriving")
        shutil.rmtree(arriving, ignore_errors=True)

        unpack(lambda: bytes(self._ask(live, worker, "give")), arriving)
        if (arriving / LOG).exists():
            task.log.parent.mkdir(parents=True, exist_ok=True)
            with task.log.open("ab") as log, (arriving / LOG).open("rb") as said:
                shutil.copyfileobj(said, log)
        if (arriving / RUN).is_dir():
            before = _before(task.folder)
            if task.folder.exists():
                task.folder.rename(before)
            (arriving / RUN).rename(task.folder)
            shutil.rmtree(before, ignore_errors=True)
        shutil.rmtree(arriving, ignore_errors=True)

    def _ask(self, live: _Live, worker: Worker, method: str, *args: Any, queued: bool = False) -> Any:
        """Answer of a worker, for as long as the task is not given up.

        Raises:
            WorkerGone: the worker vanished.
            _Ended: the task was given up; the worker is dismissed.
        """
        answer = worker.ask(method, *args)
        while True:
            try:
                given = answer.result(timeout=_TICK)
                live.heard = time.monotonic()
                return given
            except NotYet:
                if answer.done():
                    raise  # a timeout of the worker's own
                if queued and live.asked_to_end.is_set():
                    worker.dismiss()
                    raise _Ended(130) from None
                if live.leave is not None and time.monotonic() > live.leave:
                    worker.dismiss()
                    raise _Ended(137) from None

    def _wait_for_silence(self, live: _Live) -> None:
        """A run whose worker vanished may live on for its grace, and write where the next attempt would."""
        until = time.monotonic() + self.terms.grace + MARGIN_SECONDS
        run = RunDir(live.task.folder)
        while run.locked() and time.monotonic() < until:
            time.sleep(_TICK)

    def _order(self, task: Task) -> Order:
        terms = self.terms
        task.folder.parent.mkdir(parents=True, exist_ok=True)
        return Order(
            task, self._name, terms.program, terms.place, terms.identity, terms.env,
            (str(terms.series / ".mark"), self._name) if terms.shared else None,
            os.environ.get("RNN_LAB_PLUGINS_DIR"), terms.everything, terms.grace,
        )  # fmt: skip

    def _rest(self) -> None:
        """Dismiss workers that nobody needed for a while."""
        with self._guard:
            old = [pair for pair in self._idle if time.monotonic() - pair[1] > IDLE_SECONDS]
            self._idle = [pair for pair in self._idle if pair not in old]
        for worker, _ in old:
            worker.dismiss()


def common_env(setting: Setting, *, cpus: int, gpu: bool) -> tuple[tuple[str, ...], dict[str, str]]:
    """Arguments of `fit` and environment that hold a run to one GPU, or to `cpus` threads and no GPU."""
    env = {name: os.environ[name] for name in _OWN if name in os.environ}
    if gpu:
        return ("--device", "cuda"), env
    threads = os.environ.get("OMP_NUM_THREADS", str(cpus))
    return ("--device", "cpu"), {**env, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": threads}


def _before(folder: Path) -> Path:
    """Where a run's folder is while another takes its place."""
    return folder.with_name(f".{folder.name}.before")
