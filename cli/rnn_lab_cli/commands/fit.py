"""`rnn-lab fit`."""

import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rnn_lab.registry import Registry, registry

from rnn_lab_cli.fit_options import fit_options
from rnn_lab_cli.layers import config_layers
from rnn_lab_cli.model_options import ModelCommand, field_values
from rnn_lab_cli.output import emit_json, note_advice, note_preset, pairs, table
from rnn_lab_cli.ranks import joined, start, to_launch
from rnn_lab_cli.running import run_and_report

if TYPE_CHECKING:
    from rnn_lab.parallel.world import World
    from rnn_lab.train.run import Plan

    from rnn_lab_cli.progress import Watcher


@click.command(cls=ModelCommand)
@fit_options
@click.pass_context
def fit(ctx: click.Context, /, **options: Any) -> None:
    """Train a model.

    Values come from, weakest first: defaults, --protocol, --preset, --config, options, -o. Without --data the run
    reads text that is on this machine; without --target the model gets 1M parameters; without a budget it takes
    1,000 steps. --preset brings a model and, unless --protocol names another, a recipe to train it by.
    """
    found = registry()
    layers = config_layers(
        options,
        field_values(ctx),
        options["override"],
        found,
        config=options["config"],
        protocol=options["protocol"],
        preset=options["preset"],
    )
    note_preset(options["preset"], found)
    from rnn_lab.train.run import plan_run

    plan = plan_run(layers, found)
    if options["config"]:
        note_advice(plan.resolved.config, plan.spec)
    if options["dry_run"]:
        _show_plan(plan, options["as_json"])
        return
    cfg = plan.resolved.config
    if to_launch(options):
        out = Path(options["out"]) if options["out"] else _default_out(plan.spec.name)
        start(ctx, options, out, cfg, () if options["out"] else ("--out", str(out)))
        return
    with joined(cfg.train.device, cfg.parallel.timeout) as world:
        out = Path(options["out"] or world.together(lambda: str(_default_out(plan.spec.name))))
        run_and_report(
            ctx,
            out,
            lambda watcher: _start(plan, out, found, watcher, world),
            as_json=options["as_json"],
            quiet=options["quiet"],
            main=world.main,
        )


def _start(plan: "Plan", out: Path, found: Registry, watcher: "Watcher", world: "World") -> dict[str, Any]:
    from rnn_lab.errors import KernelUnavailable
    from rnn_lab.train.device import pick_device, pick_dtype
    from rnn_lab.train.run import start_run

    from rnn_lab_cli.backends import backends_line, probe_backends

    train = plan.resolved.config.train
    spec = plan.spec
    device = pick_device(train.device)
    dtype, batch = pick_dtype(train.dtype, device), train.batch_size // train.grad_accum // world.size or 1
    watcher.note(
        f"{spec.name}: {spec.certificate.params:,} parameters, dim {spec.layer_cfg.dim}, "
        f"depth {spec.lm_cfg.depth}, on {_where(device, world, plan)}, to {out}"
    )
    try:
        choices = probe_backends(spec.layer_cls, spec.layer_cfg, device, dtype, batch=batch, seq_len=train.seq_len)
        watcher.note(backends_line(choices, spec.lm_cfg.depth))
    except KernelUnavailable:
        raise
    except RuntimeError as error:
        # Whatever is wrong will stop the run itself, which then records it and says what to do.
        watcher.note(f"backends: not known before the first step ({str(error).partition(chr(10))[0]})")
    return start_run(plan, out, found, watcher, world)


def _where(device: Any, world: "World", plan: "Plan") -> str:
    return str(device) if world.size == 1 else f"{world.size} x {device} ({plan.resolved.config.parallel.mode})"


def _default_out(model: str) -> Path:
    stem = Path("runs") / f"{model}-{time.strftime('%Y%m%d-%H%M%S')}"
    out, n = stem, 1
    while out.exists():
        n += 1
        out = stem.with_name(f"{stem.name}-{n}")
    return out


def _show_plan(plan: "Plan", as_json: bool) -> None:
    """The resolved run and the layer that set each value."""
    resolved = plan.as_dict()
    if as_json:
        emit_json(resolved)
        return
    config: Mapping[str, Mapping[str, Any]] = resolved["config"]
    table(
        ("key", "value", "from"),
        [
            (f"{section}.{key}", _toml(entry["value"]), entry["origin"])
            for section, entries in config.items()
            for key, entry in entries.items()
        ],
    )
    certificate = resolved["certificate"]
    pairs(
        [
            ("parameters", certificate["params"]),
            ("target", certificate["target"]),
            ("training FLOPs per token", resolved["flops_per_token"]),
        ]
    )


def _toml(value: Any) -> str:
    """A value as it would stand in a file."""
    if isinstance(value, bool):
        return "true" if value else "false"
    return "-" if value is None else str(value)
