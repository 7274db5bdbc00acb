"""`rnn-lab protocol show`."""

from typing import TYPE_CHECKING, Any

import click
from rnn_lab.registry import registry

from rnn_lab_cli.names import complete_protocol
from rnn_lab_cli.output import emit_json, heading, json_option, note, pairs, table

if TYPE_CHECKING:
    from rnn_lab.protocol import Entry


@click.command()
@click.argument("name", shell_complete=complete_protocol)
@json_option
def show(name: str, as_json: bool) -> None:
    """Show a protocol: what it holds equal, its runs, and the published figures beside them.

    NAME is a registered protocol or the path of a file that ends in .toml. Published figures are external: somebody
    else's, not reproduced here.
    """
    from rnn_lab.comparison.external import external_rows
    from rnn_lab.protocol import find_protocol
    from rnn_lab.train.budget import budget_text

    found = registry()
    protocol = find_protocol(name, found)
    entries = protocol.entries()
    external, notes = external_rows(protocol, entries, found)
    page = {
        "name": name,
        "description": protocol.description,
        "sections": protocol.sections(),
        "series": protocol.series.model_dump(mode="json"),
        "budget": budget_text(protocol.train.model_dump()),
        "runs": [_row(entry) for entry in entries],
        "external": external,
    }
    if as_json:
        emit_json(page)
    else:
        _print(page)
    for text in notes:
        note(f"warning: {text}")


def _row(entry: "Entry") -> dict[str, Any]:
    return {
        "label": entry.named,
        "part": entry.part,
        "model": entry.model.get("name"),
        "preset": entry.preset,
        "sections": entry.sections,
    }


def _print(page: dict[str, Any]) -> None:
    click.secho(page["name"], bold=True)
    click.echo(page["description"])
    heading("holds equal")
    pairs((f"{name}.{key}", value) for name, values in page["sections"].items() for key, value in values.items())
    heading("series")
    series = page["series"]
    pairs([("budget", page["budget"]), *((key, series[key]) for key in ("seeds", "metric", "stall_minutes"))])
    if page["runs"]:
        heading("runs")
        table(("label", "part", "model or preset", "settings"), [_cells(row) for row in page["runs"]])
    if page["external"]:
        heading("published figures (external, not reproduced here)")
        columns = ("run", "label", "loss", "bpb", "tokens_per_s", "params", "document")
        table(columns, [[row[column] for column in columns] for row in page["external"]])
    if series["notes"]:
        heading("notes")
        for text in series["notes"]:
            click.echo(f"- {text}")


def _cells(row: dict[str, Any]) -> list[object]:
    settings = [f"{s}.{k} = {v}" for s, keys in row["sections"].items() for k, v in keys.items() if k != "name"]
    return [row["label"], row["part"], row["preset"] or row["model"], ", ".join(settings)]
