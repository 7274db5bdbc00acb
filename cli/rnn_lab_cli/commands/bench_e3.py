"""`rnn-lab bench e3`."""

import math
import shlex
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rnn_lab.errors import ConfigError, RnnLabError
from rnn_lab.registry import registry

from rnn_lab_cli.names import complete_model
from rnn_lab_cli.output import note
from rnn_lab_cli.series_options import overrides_of, suite_options

if TYPE_CHECKING:
    from rnn_lab.e3.suite import Asked
    from rnn_lab.lab.plan import SeriesPlan


@click.command()
@click.option("--configs", metavar="NAMES", help="Configurations or files besides the baseline; default: all five.")
@click.option("--ablations", is_flag=True, help="Also those that change one thing each.")
@click.option("--model", shell_complete=complete_model, metavar="NAME", help="Model; default: the files', e61.")
@click.option("--target", metavar="N", help="Parameters to size it to; default: the files', 50M.")
@click.option("--dim", type=click.IntRange(1), metavar="N", help="Width to hold.")
@click.option("--depth", type=click.IntRange(1), metavar="N", help="Number of layers to hold.")
@click.option("--steps", type=click.IntRange(2), metavar="N", help="Budget in steps; default: the files', 1,000.")
@click.option("--minutes", type=click.FloatRange(0, min_open=True), metavar="M", help="Budget in minutes instead.")
@click.option("--batch-size", type=click.IntRange(1), metavar="N", help="Default: 256; 32 with --minutes.")
@click.option("--seq-len", type=click.IntRange(1), metavar="N", help="Default: 512.")
@click.option("--seeds", type=click.IntRange(1, 1000), help="Runs per configuration; default: 3, with --tiny 1.")
@click.option(
    "--schedule",
    type=click.Choice(["constant", "files"]),
    default="constant",
    show_default=True,
    help="constant: every loss counts, as data efficiency needs; files: theirs.",
)
@click.option("--tiny", is_flag=True, help="64 wide, 2 layers, 60 steps of 8 x 64 bytes: minutes on a CPU.")
@click.option("--instead", multiple=True, metavar="CONFIG=MODEL", help="Train MODEL in one configuration, for tests.")
@suite_options
@click.pass_context
def e3(ctx: click.Context, /, **options: Any) -> None:
    """Train the five configurations of the E3 suite, and judge what was claimed of them.

    Each run is a process of its own; a failure is recorded and stops no other. All read the same bytes in the same
    order, and each seed begins with another configuration. Then REPORT.md and report.html: results beside the baseline,
    memory predicted and measured, a verdict on every claim. Exit code 0 only if all ran.
    """
    from rnn_lab.e3.suite import SUITE, follow, plan_suite
    from rnn_lab.report import require_libraries
    from rnn_lab.train.rundir import default_command

    from rnn_lab_cli.series_running import command_again, exit_code, run_series, show_series

    require_libraries()
    asked, overrides = _asked(options), overrides_of(options)
    out = Path(options["out"] or f"benchmark_results_{time.strftime('%Y%m%d_%H%M%S')}")
    if options["executor"] == "local":
        options["slots"] = options["slots"] or _one_slot(options["gpus"])

    def plan(folder: Path = out / SUITE) -> "SeriesPlan":
        return plan_suite(folder, asked, registry(), overrides)

    if options["dry_run"]:
        _show(plan, out, options)
        return
    if options["resume"]:
        follow(out)
    scheduler, _ = run_series(out, options, plan)
    again = command_again(["rnn-lab", *default_command()[1:]])
    show_series(scheduler, out, as_json=options["as_json"], rerun=again, after="rnn-lab bench report")
    code = exit_code(scheduler)
    if not scheduler.interrupted:
        code = max(code, _backward(out), _report(out, quiet=options["as_json"]))
    ctx.exit(code)


def _asked(options: dict[str, Any]) -> "Asked":
    """The suite that the options describe.

    Raises:
        ConfigError: they contradict each other.

    """
    from rnn_lab.config import parse_count
    from rnn_lab.e3.suite import Asked, chosen

    if options["steps"] is not None and options["minutes"] is not None:
        raise ConfigError("--steps and --minutes: give one budget")
    if options["minutes"] is not None and not math.isfinite(options["minutes"]):
        raise ConfigError(f"--minutes {options['minutes']}: expected a finite number")
    if options["target"] is not None:
        try:
            parse_count(options["target"])
        except ValueError as error:
            raise ConfigError(f"--target: {error}") from None
    instead = {}
    for text in options["instead"]:
        stem, equals, model = text.partition("=")
        if not equals or not model:
            raise ConfigError(f"--instead {text}: expected CONFIG=MODEL, for example galore2=e74")
        instead[stem] = model
    shape = {"hidden_dim": options["dim"], "num_layers": options["depth"]}
    return Asked(
        configs=tuple(chosen(options["configs"], options["ablations"])), model=options["model"],
        target=options["target"], shape={key: value for key, value in shape.items() if value is not None},
        steps=options["steps"], minutes=options["minutes"], batch_size=options["batch_size"],
        seq_length=options["seq_len"], seeds=options["seeds"] or (1 if options["tiny"] else 3),
        schedule=None if options["schedule"] == "files" else "constant", tiny=options["tiny"], instead=instead,
    )  # fmt: skip


def _one_slot(gpus: str | None) -> int | None:
    """On a CPU one run at a time: runs beside each other have no speeds to compare."""
    import torch

    return 1 if gpus == "none" or (gpus is None and not torch.cuda.is_available()) else None


def _show(plan: Any, out: Path, options: dict[str, Any]) -> None:
    """The plan, made from files that are not kept."""
    from dataclasses import replace

    from rnn_lab.e3.suite import SUITE

    from rnn_lab_cli.series_running import show_plan

    folder = out / SUITE
    with tempfile.TemporaryDirectory() as scratch:
        made = plan(Path(scratch) / folder.name)
        here, there = str((Path(scratch) / folder.name).resolve()), str(folder.resolve())
        jobs = tuple(
            replace(job, args=tuple(argument.replace(here, there) for argument in job.args)) for job in made.jobs
        )
    show_plan(replace(made, jobs=jobs), out, options)


def _backward(out: Path) -> int:
    """Measure backward with and without Collider, in a process of its own; 1 if that failed."""
    import os
    import subprocess

    from rnn_lab.discovery.isolation import PATIENT
    from rnn_lab.e3.backward import BACKWARD, arguments

    target = out / BACKWARD
    if target.exists():
        return 0
    given = arguments(out)
    if given is None:
        return 0
    note("measuring backward with and without Collider")
    log = out / "logs" / "backward.1.log"
    command = [sys.executable, "-m", "rnn_lab_cli", "bench", "backward", *given, "--out", str(target)]
    with log.open("wb") as file:
        done = subprocess.run(
            command, stdout=file, stderr=subprocess.STDOUT, check=False, env={**PATIENT, **os.environ}, timeout=None
        )
    if done.returncode != 0:
        note(f"warning: that failed: {shlex.quote(str(log))}")
    return int(done.returncode != 0)


def _report(out: Path, *, quiet: bool) -> int:
    """Write the report and print its verdicts; 1 if that failed."""
    from rnn_lab_cli.commands.bench_report import show_claims

    try:
        show_claims(out, quiet=quiet)
    except RnnLabError as error:
        note(f"error: {error}")
        return 1
    return 0
