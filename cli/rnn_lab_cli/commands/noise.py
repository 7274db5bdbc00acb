"""`rnn-lab noise`."""

from pathlib import Path
from typing import Any

import click
from rnn_lab.errors import ConfigError
from rnn_lab.registry import registry

from rnn_lab_cli.names import complete_model, complete_protocol
from rnn_lab_cli.series_options import overrides_of, series_options


@click.command()
@click.option("--protocol", required=True, shell_complete=complete_protocol, metavar="NAME", help="Protocol.")
@click.option("--model", required=True, shell_complete=complete_model, metavar="NAME", help="Label, model or preset.")
@click.option("--n", "runs", type=click.IntRange(2, 1000), default=3, show_default=True, help="Runs, one per seed.")
@series_options
@click.pass_context
def noise(ctx: click.Context, /, protocol: str, model: str, runs: int, **options: Any) -> None:
    """Measure how far apart runs of one model lie that differ by seed alone, and keep that with the protocol.

    The floor is the gap between two single runs that equally good models exceed in 5 % of cases. Later series of the
    protocol with the same settings carry it, and their reports grey out smaller gaps.
    """
    from rnn_lab.lab.noise import measure, store
    from rnn_lab.lab.plan import plan_series
    from rnn_lab.protocol import slug
    from rnn_lab.train.rundir import default_command

    from rnn_lab_cli.output import emit_json, note, pairs
    from rnn_lab_cli.series_running import command_again, exit_code, run_series, show_plan, show_series

    def plan() -> Any:
        planned = plan_series(protocol, registry(), models=[model], seeds=runs, overrides=overrides_of(options))
        labels = sorted({job.label for job in planned.jobs})
        if len(labels) > 1:
            raise ConfigError(f"--model {model}: protocol {protocol} has several: name one of {', '.join(labels)}")
        return planned

    out = Path(options["out"] or Path("runs") / f"noise-{slug(Path(protocol).stem)}-{slug(model)}")
    if options["dry_run"]:
        show_plan(plan(), out, options)
        return
    scheduler, series = run_series(out, options, plan)
    if exit_code(scheduler) != 0:
        again = command_again(["rnn-lab", *default_command()[1:]])
        show_series(scheduler, out, as_json=options["as_json"], rerun=again)
        ctx.exit(exit_code(scheduler))
    found = measure(series)
    series.write_json(series.path / "noise.json", found)
    kept = store(found)
    if options["as_json"]:
        emit_json(found)
    else:
        shown = ("protocol", "model", "metric", "n", "mean", "sd", "floor")
        pairs([*((key, found[key]) for key in shown), ("where", str(out))])
    note(f"kept in {kept}")
