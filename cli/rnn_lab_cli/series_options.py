"""Options that `protocol run` and `noise` share: what runs, and where."""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

import click

from rnn_lab_cli.bench_options import Finite
from rnn_lab_cli.fit_options import apply, budget_options, not_empty, override_option
from rnn_lab_cli.names import complete_executor
from rnn_lab_cli.output import json_option

if TYPE_CHECKING:
    from pathlib import Path

    from rnn_lab.lab.executor import Setting

C = TypeVar("C", bound=Callable[..., Any])

_common = (
    click.option("--data", metavar="FILE", help="Raw byte file for every run; default: text of this machine."),
    click.option("--val-data", metavar="FILE", help="Validation bytes for every run."),
    override_option,
    click.option("--executor", default="local", show_default=True, metavar="NAME", shell_complete=complete_executor,
                 help="Where runs go: local, ray, slurm, or what a plugin brings."),
    click.option("-x", "executor_options", multiple=True, metavar="KEY=VALUE",
                 help="Option of the executor, see docs/scale.md; repeatable."),
    click.option("--gpus", metavar="IDS", help="GPUs to use, `0,1`, or `none` for the CPU; default: all."),
)  # fmt: skip
_rest = (
    click.option("--stall", type=Finite(min=0, min_open=True), metavar="MINUTES",
                 help="A run without a sign of life for so long has hung; default: the protocol's."),
    click.option("--out", metavar="DIR", callback=not_empty, help="Folder of the series."),
    click.option("--resume", is_flag=True, help="Go on with the series in DIR; finished runs are left alone."),
    click.option("--dry-run", is_flag=True, help="Show every run and its command, and start nothing."),
    click.option("--quiet", is_flag=True, help="No progress."),
    json_option,
)  # fmt: skip


def series_options(command: C) -> C:
    """Everything that a command which runs a series takes, what selects its runs aside."""
    return apply(command, (*budget_options, *_common, _slots("one per core"), *_rest))


def suite_options(command: C) -> C:
    """The same for a command that has budgets of its own, and runs whose speeds are compared."""
    return apply(command, (*_common, _slots("one"), *_rest))


def _slots(on_cpu: str) -> Callable[[C], C]:
    told = f"Runs at once; default: on the CPU {on_cpu}, elsewhere as many as there is room for."
    return click.option("--slots", type=click.IntRange(1, 4096), help=told)


def setting_of(out: "Path", options: Mapping[str, Any]) -> "Setting":
    """What the options say about where the runs of the series in `out` go.

    Raises:
        ConfigError: an `-x` is no `KEY=VALUE`.
    """
    from rnn_lab.config import parse_override
    from rnn_lab.lab.executor import Setting

    from rnn_lab_cli.output import note

    given: dict[str, Any] = {}
    for text in options["executor_options"]:
        for key, value in parse_override(text, option="-x").items():
            given[key] = {**given.get(key, {}), **value} if isinstance(value, dict) else value
    return Setting(out, ("-m", "rnn_lab_cli"), options["gpus"], options["slots"], given, note)


def overrides_of(options: Mapping[str, Any]) -> list[str]:
    """`section.key=value` for every option that changes all runs, `-o` last."""
    from pathlib import Path

    from rnn_lab.lab.plan import toml_value

    given = [f"train.{key}={options[key]}" for key in ("steps", "tokens", "minutes") if options.get(key) is not None]
    for key, option in (("path", "data"), ("val_path", "val_data")):
        if options[option] is not None:
            given.append(f"data.{key}={toml_value(str(Path(options[option]).resolve()))}")
    return [*given, *options["override"]]
