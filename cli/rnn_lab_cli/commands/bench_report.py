"""`rnn-lab bench report`."""

from pathlib import Path

import click

from rnn_lab_cli.output import json_option, note, table


@click.command()
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path))
@json_option
def report(folder: Path, as_json: bool) -> None:
    """Write REPORT.md, report.html and e3.json on the E3 suite in DIR again, and print the claims.

    The same runs give the same bytes.
    """
    from rnn_lab.report import require_libraries

    require_libraries()
    show_claims(folder, as_json=as_json)


def show_claims(folder: Path, *, as_json: bool = False, quiet: bool = False) -> None:
    """Write the report on the suite in `folder`; its claims to stdout unless `quiet`."""
    from rnn_lab.e3.render import HTML, JSON, MARKDOWN, write_report

    written = write_report(folder)
    if as_json:
        click.echo(written.to_json(), nl=False)
    elif not quiet:
        rows = [[c.id, c.claim, c.baseline, c.measured, c.verdict] for c in written.claims]
        table(("id", "claim", "against", "measured", "verdict"), rows)
    note(f"where: {folder / HTML}, {folder / MARKDOWN}, {folder / JSON}")
