"""`rnn-lab verify-report`."""

from pathlib import Path

import click

from rnn_lab_cli.output import emit_json, json_option

SHOWN = 20


@click.command()
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path))
@click.option("--out", metavar="DIR", type=click.Path(path_type=Path), help="Where the report is; default: in DIR.")
@click.option(
    "--other-versions",
    is_flag=True,
    help="Accept a report made with other versions of the libraries; its drawings are not compared then.",
)
@json_option
@click.pass_context
def verify_report(ctx: click.Context, folder: Path, out: Path | None, other_versions: bool, as_json: bool) -> None:
    """Compute the report on DIR again from its runs and compare every character.

    Exit code 1 where REPORT.md, report.html, report.json or a run's files were changed, with every place.
    """
    from rnn_lab.report import require_libraries

    require_libraries()
    from rnn_lab.report.verify import verify

    differences = verify(folder, out, other_versions=other_versions)
    if as_json:
        emit_json({"report": str(out or folder), "ok": not differences, "differences": differences})
    else:
        for text in differences[:SHOWN]:
            click.echo(text)
        if len(differences) > SHOWN:
            click.echo(f"and {len(differences) - SHOWN} more (--json lists them)")
        click.echo(f"{out or folder}: {'differs from its runs' if differences else 'says what its runs say'}")
    if differences:
        ctx.exit(1)
