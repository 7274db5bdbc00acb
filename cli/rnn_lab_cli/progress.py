"""What a person sees while a run trains: one live line on a terminal, a plain line now and then in a pipe."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Protocol

import click

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

PLAIN_SECONDS = 10.0
LIVE_SECONDS = 0.1


class Watcher(Protocol):
    """The training loop's Observer."""

    def step(self, line: dict[str, Any], fraction: float) -> None:
        """After every optimizer step: its line of metrics.jsonl and the spent share of the budget."""

    def note(self, text: str) -> None:
        """Something a person should know."""


class Notes:
    """Only notes, on stderr: `--quiet`."""

    def step(self, line: dict[str, Any], fraction: float) -> None:
        """Nothing."""

    def note(self, text: str) -> None:
        """The text; a reader that went away does not end the run."""
        _echo(text, err=True)


class PlainProgress:
    """A line after the first step and then about every ten seconds.

    Args:
        err: write to stderr instead of stdout.

    """

    def __init__(self, *, err: bool) -> None:
        self.err = err
        self.eta = Eta()
        self._due = 0.0

    def step(self, line: dict[str, Any], fraction: float) -> None:
        """One line, if it is time for one."""
        left = self.eta.left(fraction)
        now = time.monotonic()
        if now >= self._due or fraction >= 1:
            self._due = now + PLAIN_SECONDS
            _echo(progress_text(line, fraction, left), err=self.err)

    def note(self, text: str) -> None:
        """The text on its own line."""
        _echo(text, err=True)


class LiveProgress:
    """One line that changes in place."""

    def __init__(self, bar: "Progress", task: "TaskID") -> None:
        self.bar, self.task = bar, task
        self.eta = Eta()
        self._due = 0.0

    def step(self, line: dict[str, Any], fraction: float) -> None:
        """Change the line, at most ten times a second."""
        left = self.eta.left(fraction)
        now = time.monotonic()
        if now >= self._due or fraction >= 1:
            self._due = now + LIVE_SECONDS
            text = progress_text(line, fraction, left)
            self.bar.update(self.task, completed=fraction, description=text)

    def note(self, text: str) -> None:
        """The text above the line."""
        self.bar.console.print(text, markup=False, highlight=False)


class Eta:
    """Seconds left, judged from the pace since the first step, which is slower than the rest."""

    def __init__(self) -> None:
        self._first: tuple[float, float] | None = None

    def left(self, fraction: float) -> float | None:
        """Seconds until `fraction` is 1, None until there is a pace."""
        now = time.monotonic()
        if self._first is None:
            self._first = (now, fraction)
        began, start = self._first
        if fraction <= start:
            return None
        return (now - began) * (1 - fraction) / (fraction - start)


def progress_text(line: dict[str, Any], fraction: float, left: float | None) -> str:
    """`step 120  loss 2.3456  last100 2.4000  12,345 tok/s  34 %  1:23 left`."""
    loss = "skipped" if line["loss"] is None else f"{line['loss']:.4f}"
    parts = [f"step {line['step']:,}", f"loss {loss}"]
    if line.get("last100") is not None:
        parts.append(f"last100 {line['last100']:.4f}")
    if line.get("val_loss") is not None:
        parts.append(f"val {line['val_loss']:.4f}")
    parts.append(f"{line['tokens_per_s']:,.0f} tok/s")
    parts.append(f"{fraction:.0%}")
    if left is not None:
        minutes, seconds = divmod(round(left), 60)
        hours, minutes = divmod(minutes, 60)
        parts.append((f"{hours}:{minutes:02}" if hours else f"{minutes}") + f":{seconds:02} left")
    return "  ".join(parts)


@contextmanager
def watching(*, quiet: bool, err: bool) -> Iterator[Watcher]:
    """The watcher that fits where its lines go: stderr with `err`, else stdout."""
    stream = sys.stderr if err else sys.stdout
    if quiet:
        yield Notes()
    elif not stream.isatty():
        yield PlainProgress(err=err)
    else:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn

        columns = (BarColumn(bar_width=20), TextColumn("{task.description}", markup=False))
        with Progress(*columns, console=Console(file=stream), transient=True) as bar:
            yield LiveProgress(bar, bar.add_task("starting", total=1.0))


def _echo(text: str, *, err: bool) -> None:
    """A line; a closed pipe must not end a run that trains."""
    try:
        click.echo(text, err=err)
    except OSError:
        return
