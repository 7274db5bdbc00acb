"""`rnn-lab data fetch`."""

import click

from rnn_lab_cli.output import emit_json, json_option


@click.command()
@json_option
def fetch(as_json: bool) -> None:
    """Print the path of the default corpus; build it where it is not there yet."""
    from rnn_lab.data.default import default_corpus

    path = default_corpus()
    if as_json:
        emit_json({"path": str(path), "bytes": path.stat().st_size})
    else:
        click.echo(str(path))
