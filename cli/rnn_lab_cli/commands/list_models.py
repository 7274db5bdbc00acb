"""`rnn-lab list-models`."""

import re
from typing import Any

import click
from rnn_lab.errors import ConfigError, did_you_mean
from rnn_lab.registry import registry

from rnn_lab_cli.output import emit_json, json_option, table


@click.command()
@click.option("--family", metavar="F", help="Only models of this family.")
@json_option
def list_models(family: str | None, as_json: bool) -> None:
    """List every model: name, family, plugin, equation, parent and aliases."""
    rows = model_rows(family)
    if as_json:
        emit_json(rows)
        return
    columns = ("name", "family", "equation", "parent", "aliases")
    table(columns, [[_text(row[c], c) for c in columns] for row in rows])


def model_rows(family: str | None = None) -> list[dict[str, Any]]:
    """What `list-models --json` prints.

    Raises:
        ConfigError: no model is of `family`.

    """
    found = registry()
    rows = [
        {
            "name": ref.name,
            "family": ref.family,
            "plugin": ref.plugin,
            "equation": ref.doc.equation,
            "parent": ref.doc.parent,
            "aliases": list(ref.doc.aliases),
        }
        for ref in sorted(found.models.values(), key=lambda ref: (ref.family, _natural(ref.name)))
        if family in (None, ref.family)
    ]
    families = sorted({ref.family for ref in found.models.values()})
    if family is not None and not rows:
        hint = did_you_mean(family, families)
        raise ConfigError(f"no model is of family {family!r}.{hint} Known: {', '.join(families)}.")
    return rows


def _natural(name: str) -> list[tuple[bool, int, str]]:
    """Sort key that puts e61 before e100."""
    parts = re.findall(r"\d+|\D+", name)
    return [(part.isdigit(), int(part) if part.isdigit() else 0, part) for part in parts]


def _text(value: Any, column: str) -> str:
    if column == "parent":
        return str(value).partition(":")[0]
    return ", ".join(value) if isinstance(value, list) else str(value)
