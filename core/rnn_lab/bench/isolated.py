"""Rows that are measured in a process of their own, so that none can end the table: a fault, a crash, a hang is a row.

An announcement is a row without `status`: what is measured next, or, with `prepares`, what is made ready for several
rows. After a fault the process is started again: it leaves out what was announced to be measured before, and what could
not be made ready.
"""

import multiprocessing
import os
import threading
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection, wait
from typing import Any

from rnn_lab.errors import RnnLabError

Row = dict[str, Any]
Rows = Callable[..., Iterator[Row]]
FAULT = "fault"
"""Key of what ended a process."""


def rows_of(rows: Rows, args: tuple[Any, ...], limit: float | None) -> Iterator[Row]:
    """What `rows(*args, done)` measures.

    Args:
        rows: a generator function of a module, which announces before it measures and leaves out what is in `done`.
        args: what can be pickled.
        limit: seconds from one row to the next; None: in this process, without a limit.

    """
    if limit is None:
        yield from (row for row in rows(*args, []) if "status" in row)
        return
    from rnn_lab.bench.rows import free  # imports torch, which the new process may not need

    done: list[Row] = []
    shown: list[Row] = []
    while True:
        begun: list[Row] = []
        free()  # what this process cached on the GPU
        for row in _one_process(rows, args, done, limit):
            if "status" not in row:
                begun.append(row)
            elif row not in shown:  # a new process repeats what it need not measure
                shown.append(row)
                yield row
        if not begun or FAULT not in begun[-1]:
            return
        fault = begun.pop()[FAULT]
        if not begun:
            raise RnnLabError(f"nothing can be measured in a process of its own: {fault['reason']}")
        done += [row for row in begun if row is begun[-1] or "prepares" not in row]
        yield {key: value for key, value in begun[-1].items() if key != "prepares"} | fault


def _one_process(rows: Rows, args: tuple[Any, ...], done: list[Row], limit: float) -> Iterator[Row]:
    """What a new process sends; last, where something ended it early, the fault."""
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_measure, args=(rows, args, done, sender))
    process.start()
    sender.close()
    try:
        while receiver.poll(limit):
            row = receiver.recv()
            if row is None:
                return
            yield row
            if FAULT in row:
                return
        yield {FAULT: {"status": "timeout", "reason": f"no figures after {limit:g} s"}}
    except EOFError:
        process.join()
        yield {FAULT: {"status": "error", "reason": f"its process ended with code {process.exitcode}"}}
    finally:
        process.kill()
        process.join()


def _end_with_parent() -> None:
    """A parent that was killed cannot kill: what it had measured would hold the GPU for nobody."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    wait([parent.sentinel])
    os._exit(1)


def _measure(rows: Rows, args: tuple[Any, ...], done: list[Row], sender: Connection) -> None:
    """In the child: what libraries print must not mix with the parent's table."""
    os.dup2(2, 1)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        for row in rows(*args, done):
            sender.send(row)
        sender.send(None)
    except Exception as error:
        text = str(error) if isinstance(error, RnnLabError) else f"{type(error).__name__}: {error}"
        sender.send({FAULT: {"status": "error", "reason": text[:400]}})
