"""`rnn-lab report`."""

from pathlib import Path

import click

from rnn_lab_cli.commands.compare import TOPICS
from rnn_lab_cli.output import json_option, note


@click.command()
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path))
@click.option("--out", metavar="DIR", type=click.Path(path_type=Path), help="Where to write it; default: to DIR.")
@click.option("--allow", multiple=True, type=click.Choice(TOPICS), help="Judge pairs although this differs.")
@json_option
def report(folder: Path, out: Path | None, allow: tuple[str, ...], as_json: bool) -> None:
    """Write REPORT.md, report.html and report.json on the runs below DIR.

    DIR is what `protocol run` wrote, or any folder of runs. The page is one file without scripts: ranking with
    intervals, loss against speed, curves, pairs, sizes, kernels, failures, published figures beside ours, and how to
    run it again. The same runs give the same bytes; `verify-report` tells whether they still do.
    """
    from rnn_lab.report import require_libraries

    require_libraries()
    from rnn_lab.report.write import write_report

    written = write_report(folder, out, allow)
    target = out or folder
    if as_json:
        click.echo(written.to_json(), nl=False)
    else:
        for text in written.findings:
            click.echo(text)
    note(f"where: {target / 'report.html'}, {target / 'REPORT.md'}, {target / 'report.json'}")
    note(f"next: rnn-lab verify-report {folder}{f' --out {out}' if out else ''}; rnn-lab tensorboard {folder}")
