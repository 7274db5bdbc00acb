"""The options of `fit`. Their values stay text: the configuration checks them and names the option."""

from collections.abc import Callable
from typing import Any, TypeVar

import click

from rnn_lab_cli.names import complete_model, complete_preset, complete_protocol
from rnn_lab_cli.output import json_option

C = TypeVar("C", bound=Callable[..., Any])


def not_empty(ctx: click.Context, param: click.Parameter, value: str | None) -> str | None:
    """The value of an option; an empty one is no name, nor does it mean the default.

    Raises:
        click.BadParameter: it is empty.

    """
    if value == "":
        raise click.BadParameter("it is empty: name a folder, or leave the option out.", ctx, param)
    return value


model_options = (
    click.option("--target", metavar="N", help="Parameters to size the model to, such as 100M."),
    click.option("--depth", metavar="N", help="Number of layers."),
    click.option("--norm", type=click.Choice(["rms", "layer"]), help="Norm around the layers."),
)
override_option = click.option(
    "-o",
    "override",
    multiple=True,
    metavar="KEY=VALUE",
    help="Any key of the configuration: -o train.clip=0.5.",
)
preset_option = click.option(
    "--preset", shell_complete=complete_preset, metavar="NAME", help="Named configuration to start from: see presets."
)
budget_options = (
    click.option("--steps", metavar="N", help="Budget in optimizer steps."),
    click.option("--tokens", metavar="N", help="Budget in bytes read."),
    click.option("--minutes", metavar="M", help="Budget in minutes of training steps."),
)
corpus_options = (
    click.option("--data", metavar="FILE", help="Raw byte file; default: text of this machine."),
    click.option("--val-data", metavar="FILE", help="Validation bytes; default: the corpus's own, or its last 1 %."),
)
batch_options = (
    click.option("--batch-size", metavar="N", help="Sequences per optimizer step."),
    click.option("--seq-len", metavar="N", help="Bytes predicted per sequence."),
    click.option("--grad-accum", metavar="N", help="Micro-batches per optimizer step."),
)
rank_options = (
    click.option("--gpus", type=click.IntRange(1, 1024), metavar="N", help="GPUs of each machine; default: one."),
    click.option("--nodes", type=click.IntRange(1, 65536), metavar="N", help="Machines: run the command on each."),
    click.option("--node-rank", metavar="N", help="torchrun's: number of this machine, where they don't agree on it."),
    click.option("--rdzv-endpoint", metavar="HOST:PORT", help="torchrun's: where machines meet."),
    click.option("--rdzv-id", metavar="ID", help="torchrun's: name of the job; default: rnn-lab."),
    click.option("--rdzv-backend", metavar="NAME", help="torchrun's: how they meet; default: c10d."),
)
_options = (
    click.option("--model", shell_complete=complete_model, metavar="NAME", help="Model or alias: see list-models."),
    *model_options,
    *budget_options,
    *corpus_options,
    click.option("--seed", metavar="N", help="Seed of the initial weights and of the batches."),
    click.option("--device", metavar="NAME", help="auto, cpu, cuda or cuda:N."),
    click.option("--dtype", type=click.Choice(["auto", "fp32", "bf16"]), help="bf16: autocast, fp32 weights."),
    *batch_options,
    click.option("--carry-state/--no-carry-state", default=None, help="Carry states over contiguous streams."),
    click.option("--lr", metavar="X", help="Learning rate."),
    click.option("--optimizer", metavar="NAME", help="Registered optimizer."),
    click.option("--checkpoint-every", metavar="N", help="Steps between checkpoints; default: every two minutes."),
    click.option("--keep-checkpoints", metavar="N", help="Newest checkpoints that survive."),
    click.option("--eval-every", metavar="N", help="Steps between validations; default: only at the end."),
    click.option("--strict/--no-strict", default=None, help="End the run at a diagnostic of severity error."),
    *rank_options,
    click.option("--out", metavar="DIR", callback=not_empty, help="Folder of the run; default: runs/MODEL-TIME."),
    click.option("--config", metavar="FILE", help="TOML file with [model], [data], [train], ... tables."),
    override_option,
    click.option(
        "--protocol", shell_complete=complete_protocol, metavar="NAME", help="Registered protocol to start from."
    ),
    preset_option,
    click.option("--dry-run", is_flag=True, help="Show every value and what set it, and train nothing."),
    click.option("--quiet", is_flag=True, help="No progress."),
    json_option,
)


def apply(command: C, options: tuple[Callable[..., Any], ...]) -> C:
    """`command` with `options`, shown in their order."""
    for option in reversed(options):
        command = option(command)
    return command


def fit_options(command: C) -> C:
    """Everything that `fit` takes, the fields of the model aside."""
    return apply(command, _options)
