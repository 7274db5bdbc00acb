"""`rnn-lab verify-report`."""

from pathlib import Path

import click

from rnn_lab_cli.output import emit_json, json_option, note

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

    Exit code 1 where REPORT.md, report.html, report.json, TensorBoard's copy of the text or a file that a figure
    comes from was changed, with every place. What was not read, because no figure comes from it, is named. The report
    of `bench e3` in DIR is compared in the same way: REPORT.md, report.html and e3.json.
    """
    from rnn_lab.report import require_libraries

    require_libraries()
    from rnn_lab.e3 import verify as e3
    from rnn_lab.report.verify import uncovered, verify

    if out is None and e3.holds_suite(folder):
        differences, unread = e3.verify(folder, other_versions=other_versions), {}
    else:
        differences, unread = verify(folder, out, other_versions=other_versions), uncovered(folder, out)
    if as_json:
        emit_json(
            {"report": str(out or folder), "ok": not differences, "differences": differences, "uncovered": unread}
        )
    else:
        for text in differences[:SHOWN]:
            click.echo(text)
        if len(differences) > SHOWN:
            click.echo(f"and {len(differences) - SHOWN} more (--json lists them)")
        click.echo(f"{out or folder}: {'differs from its runs' if differences else 'says what its runs say'}")
        if unread:
            listed = ", ".join(name if count == 1 else f"{name} ({count} files)" for name, count in unread.items())
            note(f"not covered, because no figure comes from them: {listed}")
    if differences:
        ctx.exit(1)
