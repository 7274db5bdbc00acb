"""`rnn-lab protocol list`."""

from typing import Any

import click
from rnn_lab.errors import RnnLabError
from rnn_lab.registry import Registry, registry

from rnn_lab_cli.output import emit_json, json_option, note, table

COLUMNS = ("protocol", "target", "bytes per step", "budget", "runs", "seeds", "metric", "description")


@click.command("list")
@json_option
def list_(as_json: bool) -> None:
    """List the protocols; one whose file is wrong is a row with its problem."""
    found = registry()
    rows = [protocol_row(name, found) for name in found.protocols]
    if as_json:
        emit_json(rows)
        return
    table(COLUMNS, [[row[column] for column in COLUMNS] for row in rows])
    for row in rows:
        if row["problem"]:
            note(f"{row['protocol']}: {row['problem']}")


def protocol_row(name: str, found: Registry) -> dict[str, Any]:
    """One row of `protocol list --json`."""
    from rnn_lab.protocol import find_protocol
    from rnn_lab.train.budget import budget_text

    row: dict[str, Any] = {**dict.fromkeys(COLUMNS), "protocol": name, "problem": None}
    try:
        protocol = find_protocol(name, found)
    except RnnLabError as error:
        return {**row, "problem": str(error)}
    train = protocol.train
    return {
        **row,
        "target": protocol.model.get("target"),
        "bytes per step": f"{train.batch_size} x {train.seq_len}",
        "budget": budget_text(train.model_dump()),
        "runs": len(protocol.entries()),
        "seeds": protocol.series.seeds,
        "metric": protocol.series.metric,
        "description": protocol.description,
    }
