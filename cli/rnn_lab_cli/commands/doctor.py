"""`rnn-lab doctor`."""

import click

from rnn_lab_cli.output import emit_json, json_option, table


@click.command()
@json_option
@click.pass_context
def doctor(ctx: click.Context, as_json: bool) -> None:
    """Check this machine: versions, GPU, cache, plugins, default corpus, optional packages."""
    from rnn_lab_cli.diagnosis import all_checks

    rows = [{"check": r.check, "status": r.status, "detail": r.detail, "advice": r.advice} for r in all_checks()]
    if as_json:
        emit_json(rows)
    else:
        columns = ("status", "check", "detail", "advice")
        table(columns, [[row[column] for column in columns] for row in rows])
    if any(row["status"] == "fail" for row in rows):
        ctx.exit(1)
