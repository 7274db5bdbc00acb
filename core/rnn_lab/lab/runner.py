"""The place's side of a remote executor: takes an order, runs it under a guard, says how it goes, gives it back.

Where the series' folder can be seen under its own path, the run trains in it. Elsewhere it trains in a scratch folder
of the place; its past arrives, and its result leaves, as an archive in pieces.
"""

import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rnn_lab.discovery.isolation import PATIENT
from rnn_lab.errors import RnnLabError
from rnn_lab.identity import Identity, difference, identity_of
from rnn_lab.lab.archive import pieces, unpack
from rnn_lab.lab.executor import GRACE_SECONDS, MARGIN_SECONDS, Task
from rnn_lab.lab.guard import TOGETHER
from rnn_lab.lab.life import Signs, newest
from rnn_lab.lab.local import held
from rnn_lab.train.rundir import RunDir

RUN, LOG = "run/", "log"
"""Names within an archive: the run's folder, and what was printed."""
_SETTLED = ("ok", "diverged")


@dataclass(frozen=True)
class Order:
    """A task with everything that its place has to know; it can be pickled.

    Attributes:
        task: paths as the scheduler names them.
        series: unique name of the series, for scratch folders and locks.
        program: arguments of Python that start rnn-lab.
        place: arguments of `fit` that hold the run to what it was given: `--device cuda`.
        env: environment beside the place's own.
        mark: a file of the series' folder and its content, by which a place knows that it sees that folder; None:
            it is not to look.
        identity: of the scheduler's installation; the place's must be equal.
        plugins_dir: folder of single-file models.
        everything: whether checkpoints of a run that ended for good are brought back too.
        grace: seconds between asking a run to end and killing it.
        together: whether a signal to the place reaches the run by itself.
    """

    task: Task
    series: str
    program: tuple[str, ...]
    place: tuple[str, ...]
    identity: Identity
    env: Mapping[str, str] = field(default_factory=dict)
    mark: tuple[str, str] | None = None
    plugins_dir: str | None = None
    everything: bool = False
    grace: float = GRACE_SECONDS
    together: bool = False


@dataclass(frozen=True)
class Begun:
    """Where an order arrived.

    Attributes:
        place: in words.
        shared: whether the run trains in the series' own folder, and nothing has to travel.
        refused: why it does not run here.
    """

    place: str
    shared: bool = False
    refused: str | None = None


@dataclass(frozen=True)
class Look:
    """How a run goes, by the place's own clock; `code` as a shell has it, once it ended."""

    idle: float
    line: Mapping[str, Any]
    code: int | None


class Runner:
    """Runs one order after the other; `begin`, `take` the past, `start`, `look`, `give` the result, `finish`."""

    def __init__(self) -> None:
        self._known: dict[str | None, Identity] = {}
        self._process: subprocess.Popen[bytes] | None = None

    def begin(self, order: Order) -> Begun:
        """Look whether the order can run here; wait for what an earlier scheduler left of it to end.

        Raises:
            RnnLabError: that does not end.
        """
        where = _place()
        env = self._env(order)
        try:
            known = self._known.get(order.plugins_dir) or identity_of(sys.executable, env, order.plugins_dir)
        except RnnLabError as error:
            return Begun(where, refused=str(error))
        self._known[order.plugins_dir] = known
        if refused := difference(order.identity, known):
            return Begun(where, refused=refused)
        self.order, self.shared = order, _sees(order)
        home = Path(tempfile.gettempdir()) / f"rnn-lab-{os.getuid()}" / order.series
        home.mkdir(parents=True, exist_ok=True)
        self._lock, self._scratch = home / f"{order.task.name}.lock", home / order.task.name
        until = time.monotonic() + order.grace + MARGIN_SECONDS
        while held(self._lock):
            if time.monotonic() > until:
                raise RnnLabError(f"job {order.task.name} still runs on {where}: end its process")
            time.sleep(0.2)
        shutil.rmtree(self._scratch, ignore_errors=True)
        self.folder = order.task.folder if self.shared else self._scratch / order.task.name
        self.log = order.task.log if self.shared else self._scratch / LOG
        self._pieces: Iterator[bytes] | None = None
        return Begun(where, self.shared)

    def take(self, piece: bytes) -> None:
        """The next piece of the run's past, nothing at its end."""
        self._scratch.mkdir(parents=True, exist_ok=True)
        arrived = self._scratch / "past.tar"
        if piece:
            with arrived.open("ab") as file:
                file.write(piece)
            return
        with arrived.open("rb") as file:
            unpack(lambda: file.read(2**20), self._scratch / "past")
        arrived.unlink()
        (self._scratch / "past" / RUN).rename(self.folder)

    def start(self) -> None:
        """Start the run.

        Raises:
            OSError: it cannot be started, or its log cannot be written.
        """
        order = self.order
        self.log.parent.mkdir(parents=True, exist_ok=True)
        guard = [sys.executable, "-m", "rnn_lab.lab.guard", str(self._lock), str(order.grace)]
        guard += [TOGETHER] if order.together else []
        command = [sys.executable, *order.program, *order.task.arguments(str(self.folder), order.place)]
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                [*guard, *command], stdin=subprocess.PIPE, stdout=log, stderr=subprocess.STDOUT,
                start_new_session=True, env=self._env(order),
            )  # fmt: skip
        self._signs = Signs(self.folder, self.log)

    def look(self) -> Look:
        """How the run goes."""
        assert self._process is not None, "start comes first"
        code = self._process.poll()
        if code is not None:
            self.cancel()
            code = 128 - code if code < 0 else code
        return Look(self._signs.idle(), newest(self.folder), code)

    def cancel(self) -> None:
        """Ask the run to end; its guard kills it after the grace."""
        if self._process is not None and self._process.stdin is not None:
            with suppress(OSError):
                self._process.stdin.close()

    def give(self) -> bytes:
        """The next piece of what the run left, nothing at its end.

        Raises:
            OSError: a file cannot be read.
        """
        if self._pieces is None:
            settled = (RunDir(self.folder).read_result() or {}).get("status") in _SETTLED
            whole = self.order.everything or not settled
            self._pieces = pieces([*members(self.folder, checkpoints=whole), (LOG, self.log)])
        return next(self._pieces, b"")

    def finish(self) -> None:
        """Remove what is left of the order here."""
        self._process = None
        shutil.rmtree(self._scratch, ignore_errors=True)
        self._lock.unlink(missing_ok=True)

    @staticmethod
    def _env(order: Order) -> dict[str, str]:
        return {**PATIENT, **os.environ, **order.env}


def members(folder: Path, *, checkpoints: bool = True) -> list[tuple[str, Path]]:
    """What of a run's folder travels, for `archive.pieces`: all but its lock, and checkpoints where they are wanted."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != ".lock")
    names = [(path.relative_to(folder), path) for path in files]
    return [(f"{RUN}{name.as_posix()}", path) for name, path in names if checkpoints or name.parts[0] != "checkpoints"]


def _sees(order: Order) -> bool:
    """Whether the series' folder is here under its own path, and can be written."""
    if order.mark is None:
        return False
    path = Path(order.mark[0])
    try:
        return path.read_text() == order.mark[1] and os.access(path.parent, os.W_OK)
    except OSError:
        return False


def _place() -> str:
    gpu = os.environ.get("CUDA_VISIBLE_DEVICES")
    return f"{socket.gethostname()} {f'gpu {gpu}' if gpu else 'cpu'} (worker {os.getpid()})"
