"""What became of a task: from its exit code, its result.json and its log to a state with a reason."""

import signal
from pathlib import Path
from typing import Any

from rnn_lab.config import Resolved
from rnn_lab.errors import RnnLabError
from rnn_lab.train.rundir import RunDir

_TAIL = 4096


def judge(exit_code: int, result: dict[str, Any] | None, log: str) -> tuple[str, str | None]:
    """State and reason of a task that ended by itself.

    Args:
        exit_code: as a shell has it.
        result: result.json, None where there is none or it is damaged.
        log: end of what was printed.

    Returns:
        A state of `rnn_lab.lab.series.STATES`; the reason is None for `done`.
    """
    status, error = (result or {}).get("status"), (result or {}).get("error")
    said = error or _last_words(log)
    if exit_code == 0:
        return ("done", None) if status == "ok" else ("failed", "ended without a result.json that says ok")
    if status in ("diverged", "oom"):
        return str(status), said
    if exit_code > 128 and exit_code != 130:
        who = ": by somebody, or by the system, whose log then says so (out of memory)"
        hint = who if exit_code == 128 + signal.SIGKILL else ""
        return "failed", f"killed by signal {exit_code - 128}{hint}"
    if exit_code == 130:
        return "failed", "interrupted from outside"
    return "failed", f"exit code {exit_code}: {said or 'no message'}"


def tail(path: Path) -> str:
    """The end of a log, empty where there is none."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - _TAIL))
            return file.read().decode("utf-8", "replace")
    except OSError:
        return ""


def halved(run: Path) -> dict[str, list[int]]:
    """What a retry changes after memory ran out: half the micro-batch, twice the accumulation, the same batch.

    Returns:
        `{"train.grad_accum": [n, 2 n]}`; empty where the micro-batch cannot be halved, or the run never began.
    """
    try:
        resolved: Resolved = RunDir.open(run).read_config()
    except RnnLabError:
        return {}
    train = resolved.config.train
    if train.batch_size % (2 * train.grad_accum):
        return {}
    return {"train.grad_accum": [train.grad_accum, 2 * train.grad_accum]}


def _last_words(log: str) -> str:
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    told = [line for line in lines if line.startswith(("error:", "internal error:"))]
    return (told or lines or [""])[-1].removeprefix("error: ")
