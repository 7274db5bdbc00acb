"""`rnn-lab resume`."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rnn_lab.registry import registry

from rnn_lab_cli.fit_options import apply, budget_options
from rnn_lab_cli.output import json_option
from rnn_lab_cli.running import run_and_report

if TYPE_CHECKING:
    from rnn_lab_cli.progress import Watcher


@click.command()
@click.argument("run", type=click.Path(path_type=Path))
@lambda command: apply(command, budget_options)
@click.option("--quiet", is_flag=True, help="No progress.")
@json_option
@click.pass_context
def resume(ctx: click.Context, /, run: Path, as_json: bool, quiet: bool, **budget: str | None) -> None:
    """Go on with the run in folder RUN from its newest checkpoint.

    A new --steps, --tokens or --minutes replaces the old budget; what was spent before counts.
    """
    from rnn_lab.config import TrainSection, validate

    given = {key: value for key, value in budget.items() if value is not None}
    origins = {f"train.{key}": f"option --{key}" for key in given}
    checked = validate(TrainSection, given, prefix="train.", origins=origins)
    extend = {key: getattr(checked, key) for key in given}

    def start(watcher: "Watcher") -> dict[str, Any]:
        from rnn_lab.train.resume import resume_run

        return resume_run(run, extend, registry(), watcher)

    run_and_report(ctx, run, start, as_json=as_json, quiet=quiet)
