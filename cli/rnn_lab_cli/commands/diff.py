"""`rnn-lab diff`."""

from pathlib import Path

import click

from rnn_lab_cli.output import emit_json, heading, json_option, note, table

_TITLES = {
    "equality": "breaks equality: compare refuses this unless told",
    "training": "changes what is learned",
    "model": "what is compared: the model",
    "environment": "may change the speed and the last digits",
    "record": "for the record",
}


@click.command()
@click.argument("a", type=click.Path(path_type=Path))
@click.argument("b", type=click.Path(path_type=Path))
@json_option
def diff(a: Path, b: Path, as_json: bool) -> None:
    """List everything that the runs A and B differ in, the gravest first.

    Configuration, size, data, clock, machine, versions, kernels, commit and command; `compare` refuses what breaks
    equality.
    """
    from rnn_lab.comparison.differences import SEVERITIES, differences
    from rnn_lab.comparison.records import read_run

    found = differences(read_run(a), read_run(b))
    if as_json:
        emit_json([one.as_dict() for one in found])
        return
    for severity in SEVERITIES:
        rows = [(one.key, one.a, one.b, _flag(one.topic)) for one in found if one.severity == severity]
        columns = 4 if severity == "equality" else 3
        if rows:
            heading(_TITLES[severity])
            table(("key", str(a), str(b), "told by")[:columns], [row[:columns] for row in rows])
    if not found:
        note("no difference in anything on record")


def _flag(topic: str | None) -> str:
    """The option of `compare` that takes this difference in its stride."""
    return "--unpaired" if topic == "pairing" else f"--allow {topic}"
