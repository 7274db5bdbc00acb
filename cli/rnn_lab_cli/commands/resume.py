"""`rnn-lab resume`."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rnn_lab.registry import registry

from rnn_lab_cli.fit_options import apply, budget_options, rank_options
from rnn_lab_cli.output import json_option
from rnn_lab_cli.ranks import joined, start, to_launch
from rnn_lab_cli.running import run_and_report

if TYPE_CHECKING:
    from rnn_lab_cli.progress import Watcher


@click.command()
@click.argument("run", type=click.Path(path_type=Path))
@lambda command: apply(command, (*budget_options, *rank_options))
@click.option("--quiet", is_flag=True, help="No progress.")
@json_option
@click.pass_context
def resume(ctx: click.Context, /, run: Path, as_json: bool, quiet: bool, **options: Any) -> None:
    """Go on with the run in folder RUN from its newest checkpoint.

    A new --steps, --tokens or --minutes replaces the old budget; what was spent before counts. It may go on with any
    number of --gpus, whatever it had before.
    """
    from rnn_lab.config import TrainSection, validate
    from rnn_lab.train.rundir import RunDir
    from rnn_lab.typed import Typed

    given = {key: Typed(options[key]) for key in ("steps", "tokens", "minutes") if options[key] is not None}
    origins = {f"train.{key}": f"option --{key}" for key in given}
    checked = validate(TrainSection, given, prefix="train.", origins=origins)
    extend = {key: getattr(checked, key) for key in given}

    cfg = RunDir.open(run).read_config().config
    if to_launch(options):
        start(ctx, options, run, cfg)
        return

    def go_on(watcher: "Watcher") -> dict[str, Any]:
        from rnn_lab.train.resume import resume_run

        return resume_run(run, extend, registry(), watcher, world)

    with joined(cfg.train.device, cfg.parallel.timeout) as world:
        run_and_report(ctx, run, go_on, as_json=as_json, quiet=quiet, main=world.main)
