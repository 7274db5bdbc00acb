"""What a person sees while a series runs: a live table on a terminal, a line per change of state in a pipe."""

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from rnn_lab_cli.output import cell, note

if TYPE_CHECKING:
    from rich.live import Live
    from rnn_lab.lab.scheduler import Row

COLUMNS = ("run", "state", "where", "attempt", "step", "loss", "last100", "tok/s", "minutes", "reason")
_REASON = 60
_FRAME = 6
_FIRST = ("running", "failed", "timeout", "oom", "diverged", "done", "pending")
"""What a person looks for first: a table that does not fit the screen is cut at its end."""


def cells(row: "Row") -> list[object]:
    """A job's row under COLUMNS."""
    line = row.line
    figures = [line.get(key) for key in ("step", "loss", "last100", "tokens_per_s")]
    minutes = None if row.seconds is None else round(row.seconds / 60, 2)
    reason = " ".join((row.reason or "").split())
    short = reason if len(reason) <= _REASON else reason[: _REASON - 3] + "..."
    return [row.job.name, row.state, row.place, row.attempt or None, *figures, minutes, short]


class Quiet:
    """Notes on stderr and nothing else."""

    def update(self, rows: "Sequence[Row]") -> None:
        """Nothing."""

    def note(self, text: str) -> None:
        """The text."""
        note(text)


class Lines(Quiet):
    """One line on stderr whenever a job begins, and when it ends with what it reached."""

    def __init__(self) -> None:
        self._shown: dict[str, tuple[str, int]] = {}

    def update(self, rows: "Sequence[Row]") -> None:
        """Lines for what changed since the last call."""
        ended = sum(row.state not in ("pending", "running") for row in rows)
        for row in rows:
            key = (row.state, row.attempt)
            if row.state != "pending" and self._shown.get(row.job.name) != key:
                last100 = row.line.get("last100")
                reached = "" if row.state == "running" or last100 is None else f"  last100 {last100:.4f}"
                where = f"  {row.place}" if row.place else ""
                note(f"[{ended}/{len(rows)}] {row.job.name}  {row.state}{where}{reached}")
            self._shown[row.job.name] = key


class LiveTable(Quiet):
    """A table that is drawn again and again; notes scroll by above it."""

    def __init__(self, live: "Live") -> None:
        self.live = live

    def update(self, rows: "Sequence[Row]") -> None:
        """Draw the table."""
        self.live.update(_drawn(rows, self.live.console.height - _FRAME))

    def note(self, text: str) -> None:
        """The text, above the table."""
        self.live.console.print(text, markup=False, highlight=False)


def counts(rows: "Sequence[Row]") -> str:
    """`2 running, 5 done, 1 failed`."""
    states = [row.state for row in rows]
    return ", ".join(f"{states.count(state)} {state}" for state in _FIRST if state in states)


def _drawn(rows: "Sequence[Row]", height: int) -> Any:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    styles = {"running": "cyan", "done": "green", "pending": "dim"}
    table = Table(box=SIMPLE_HEAD, pad_edge=False, caption=counts(rows), caption_justify="left")
    for column in COLUMNS:
        table.add_column(column, justify="right" if column in COLUMNS[3:9] else "left")
    for row in sorted(rows, key=lambda row: _FIRST.index(row.state))[: max(1, height)]:
        table.add_row(*(Text(cell(value, pretty=True)) for value in cells(row)), style=styles.get(row.state, "red"))
    return table


@contextmanager
def watching_series(*, quiet: bool) -> Iterator[Quiet]:
    """The watcher that fits stderr, which a series reports to."""
    if quiet:
        yield Quiet()
    elif not sys.stderr.isatty():
        yield Lines()
    else:
        from rich.console import Console
        from rich.live import Live

        with Live(console=Console(stderr=True), refresh_per_second=2) as live:
            yield LiveTable(live)
