"""`rnn-lab protocol run`."""

from pathlib import Path
from typing import Any

import click
from rnn_lab.registry import registry

from rnn_lab_cli.names import complete_protocol
from rnn_lab_cli.series_options import overrides_of, series_options


@click.command()
@click.argument("name", shell_complete=complete_protocol)
@click.option("--models", metavar="NAMES", help="Labels, models or presets, instead of all that the protocol lists.")
@click.option("--also", metavar="NAMES", help="Models or presets beside those that the protocol lists.")
@click.option("--part", "parts", metavar="NAMES", help="Parts of the protocol; default: all.")
@click.option("--seeds", type=click.IntRange(1, 1000), help="Runs per model; default: the protocol's.")
@series_options
@click.pass_context
def run(
    ctx: click.Context, /, name: str, models: str | None, also: str | None, parts: str | None, seeds: int | None,
    **options: Any,
) -> None:  # fmt: skip
    """Run every model of a protocol with every seed, one run per GPU or CPU slot, into one folder.

    NAME is a registered protocol or the path of a file that ends in .toml. A run that crashes, hangs, diverges or runs
    out of memory stops no other. Exit code: 0 if all ended well, 3 if some diverged, 1 if some failed, 130 interrupted.
    """
    from rnn_lab.lab.plan import plan_series
    from rnn_lab.train.rundir import default_command

    from rnn_lab_cli.series_running import command_again, exit_code, run_series, show_plan, show_series

    def plan() -> Any:
        return plan_series(
            name, registry(), models=_names(models), also=_names(also), parts=_names(parts), seeds=seeds,
            overrides=overrides_of(options),
        )  # fmt: skip

    out = Path(options["out"] or Path("runs") / Path(name).stem)
    if options["dry_run"]:
        show_plan(plan(), out, options)
        return
    scheduler, _ = run_series(out, options, plan)
    show_series(scheduler, out, as_json=options["as_json"], rerun=command_again(["rnn-lab", *default_command()[1:]]))
    ctx.exit(exit_code(scheduler))


def _names(text: str | None) -> list[str]:
    return [name.strip() for name in (text or "").split(",") if name.strip()]
