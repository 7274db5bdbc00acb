"""What commands print: JSON, tables and pairs, for people on a terminal and for programs in a pipe.

Results go to stdout, notes to stderr. A table is drawn on a terminal; in a pipe it is one tab-separated
line per row, the header first.
"""

import sys
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from rnn_lab.config import RunConfig
    from rnn_lab.modelspec import ModelSpec
    from rnn_lab.registry import Registry

C = TypeVar("C", bound=Callable[..., Any])


def json_option(command: C) -> C:
    """Add `--json`, passed as `as_json`."""
    return click.option("--json", "as_json", is_flag=True, help="JSON to stdout, notes to stderr.")(command)


def emit_json(value: Any) -> None:
    """The only thing that a command with --json writes to stdout."""
    import json

    click.echo(json.dumps(value, indent=1, allow_nan=False, default=str))


def note(text: str) -> None:
    """A line for a person, on stderr."""
    click.echo(text, err=True)


def note_preset(name: str | None, found: "Registry") -> None:
    """What a reader of a preset's figures has to know, on stderr; nothing without a preset."""
    if name is not None:
        from rnn_lab.presets import find_preset

        for text in find_preset(name, found).notes:
            note(f"{name}: {text}")


def note_advice(cfg: "RunConfig", spec: "ModelSpec") -> None:
    """What is unwise about a configuration once the model has a size, on stderr."""
    from rnn_lab.e3.advice import advice

    for text in advice(cfg, spec):
        note(f"warning: {text}")


def on_terminal() -> bool:
    """Whether stdout is a terminal."""
    return sys.stdout.isatty()


def cell(value: object, *, pretty: bool) -> str:
    """A value as text: `-` for None, digits grouped where a person reads them."""
    if value is None or value == "":
        return "-" if pretty else ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}" if pretty else str(value)
    if isinstance(value, float):
        digits = ".0f" if abs(value) >= 1000 else ".4f"
        return format(value, f",{digits}" if pretty else digits)
    text = str(value)
    return text if pretty else text.replace("\t", " ").replace("\n", " ")


def table(headers: Sequence[str], rows: Iterable[Sequence[object]], *, title: str = "") -> None:
    """A table; columns that hold only numbers are aligned to the right."""
    body: list[list[object]] = [list(row) for row in rows]
    if not on_terminal():
        if title:
            click.echo(title)
        for row in (list[object](headers), *body):
            click.echo("\t".join(cell(value, pretty=False) for value in row))
        return
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    drawn = Table(box=SIMPLE_HEAD, title=Text(title) if title else None, title_justify="left", pad_edge=False)
    for i, header in enumerate(headers):
        column = [row[i] for row in body]
        numeric = any(isinstance(v, int | float) for v in column) and all(
            v is None or isinstance(v, int | float) for v in column
        )
        drawn.add_column(Text(header), justify="right" if numeric else "left", overflow="fold")
    for row in body:
        drawn.add_row(*(Text(cell(value, pretty=True)) for value in row))
    Console().print(drawn)


def pairs(items: Iterable[tuple[str, object]]) -> None:
    """`name  value` lines; aligned on a terminal, tab-separated in a pipe."""
    listed = [(name, value) for name, value in items if value is not None and value != ""]
    pretty = on_terminal()
    width = max((len(name) for name, _ in listed), default=0)
    for name, value in listed:
        text = cell(value, pretty=pretty)
        click.echo(f"{name:<{width}}  {text}" if pretty else f"{name}\t{text}")


def heading(text: str) -> None:
    """A line between two parts of a page."""
    click.echo()
    click.secho(text, bold=True)
