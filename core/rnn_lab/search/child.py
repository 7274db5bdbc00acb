"""One training run in a process of its own, watched through its metrics: a crash costs a trial, never the search."""

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rnn_lab.discovery.isolation import PATIENT
from rnn_lab.lab.outcome import judge, tail
from rnn_lab.train.rundir import RunDir

POLL = 0.1
_GRACE = 120
"""Seconds that a stopped run has to finish its step and write a checkpoint."""


@dataclass(frozen=True)
class Ended:
    """How a run ended.

    Attributes:
        outcome: ok, stopped (by us), diverged, oom, timeout, or failed.
        result: result.json; empty where there is none.
        reason: what the run said, for people.
    """

    outcome: str
    result: dict[str, Any]
    reason: str | None = None


def train(
    program: Sequence[str], config: Path, out: Path, log: Path, *, on_step: Callable[[dict[str, Any]], bool],
    timeout: float | None = None, keep_open: Sequence[int] = (),
) -> Ended:  # fmt: skip
    """Train `config` in the folder `out`, or go on with the run that is there; wait for its end.

    Args:
        program: command of rnn-lab, such as `(sys.executable, "-m", "rnn_lab_cli")`.
        config: TOML of the run.
        out: its folder; a finished run there is not trained again.
        log: file that the output is appended to.
        on_step: gets every line of metrics.jsonl, from the first; True stops the run.
        timeout: seconds for this call.
        keep_open: file descriptors that the process inherits.

    Raises:
        KeyboardInterrupt: as received, after the run was stopped with a checkpoint.
    """
    run = RunDir(out)
    lines = _Lines(run.metrics)
    done = run.read_result() or {}
    if done.get("status") in ("ok", "diverged"):
        for line in lines.new():
            on_step(line)
        return Ended(str(done["status"]), done, done.get("error"))
    resume = run.config.is_file()
    what = ["resume", str(out)] if resume else ["fit", "--config", str(config), "--out", str(out)]
    log.parent.mkdir(parents=True, exist_ok=True)
    deadline = None if timeout is None else time.monotonic() + timeout
    with log.open("ab") as output:
        # In a session of its own, so that Ctrl-C reaches it through us, in order.
        process = subprocess.Popen(
            [*program, *what, "--quiet"], stdin=subprocess.DEVNULL, stdout=output, stderr=output,
            start_new_session=True, pass_fds=tuple(keep_open), env={**PATIENT, **os.environ},
        )  # fmt: skip
        try:
            asked = _watch(process, lines, on_step, deadline)
        except BaseException:
            _stop(process)
            raise
    return _ended(process.returncode, asked, run, done, log)


def _watch(
    process: "subprocess.Popen[bytes]", lines: "_Lines", on_step: Callable[[dict[str, Any]], bool],
    deadline: float | None,
) -> str | None:  # fmt: skip
    """Follow the run to its end; `stopped` or `timeout` where we ended it."""
    asked = None
    while True:
        over = process.poll() is not None
        if asked is None and any(on_step(line) for line in lines.new()):
            asked = "stopped"
        if over:
            return asked
        if asked is None and deadline is not None and time.monotonic() > deadline:
            asked = "timeout"
        if asked is not None:
            _stop(process)
            return asked
        time.sleep(POLL)


def _stop(process: "subprocess.Popen[bytes]") -> None:
    """Ask the run to end with a checkpoint; kill it, with whatever it started, if it does not."""
    if process.poll() is None:
        process.terminate()
    try:
        process.wait(_GRACE)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _ended(code: int, asked: str | None, run: RunDir, before: dict[str, Any], log: Path) -> Ended:
    """How it ended; a result.json that it only found there says nothing of it."""
    result = run.read_result() or {}
    if asked is not None:
        return Ended(asked, result)
    result = {} if result == before else result
    state, reason = judge(128 - code if code < 0 else code, result, tail(log))
    return Ended("ok" if state == "done" else state, result, reason)


class _Lines:
    """Complete lines of a metrics file that grows."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = 0
        self._offset = 0
        self._step = 0

    def new(self) -> Iterator[dict[str, Any]]:
        """Lines since the last call, in order of steps; a resumed run's repeated steps are left out."""
        if not self._path.exists():
            return
        if (inode := self._path.stat().st_ino) != self._file:  # a resumed run replaces it, without repeated steps
            self._file, self._offset = inode, 0
        with self._path.open("rb") as file:
            file.seek(self._offset)
            for raw in file:
                if not raw.endswith(b"\n"):
                    return
                self._offset += len(raw)
                line: dict[str, Any] = json.loads(raw)
                if line["step"] > self._step:
                    self._step = line["step"]
                    yield line
