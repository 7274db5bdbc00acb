"""`rnn-lab memory`."""

from typing import Any

import click
from rnn_lab.registry import registry

from rnn_lab_cli.fit_options import apply, model_options, override_option, preset_option
from rnn_lab_cli.layers import config_layers
from rnn_lab_cli.model_options import ModelCommand, field_values
from rnn_lab_cli.names import complete_model
from rnn_lab_cli.output import emit_json, heading, json_option, note_advice, note_preset, pairs, table

_options = (
    click.option("--config", metavar="FILE", help="TOML file with [model], [optimizer], ... tables."),
    *model_options,
    click.option("--optimizer", metavar="NAME", help="Registered optimizer."),
    override_option,
    preset_option,
    click.option("--gpus", type=click.IntRange(1, 65536), metavar="N", help="Also per GPU of N, and what they send."),
    json_option,
)


@click.command(cls=ModelCommand)
@click.argument("model", required=False, shell_complete=complete_model)
@lambda command: apply(command, _options)
@click.pass_context
def memory(
    ctx: click.Context, /, model: str | None, config: str | None, override: tuple[str, ...], preset: str | None,
    gpus: int | None, as_json: bool, **options: Any,
) -> None:  # fmt: skip
    """Predict what training MODEL takes besides activations: weights, gradients, state of each optimizer.

    Counted on the meta device from shapes alone, to the byte, with the heads of multi-token prediction. Reductions are
    against Muon and against AdamW, both with fp32 state. Weights and gradients are fp32, as training keeps them. With
    --gpus also what each of N GPUs holds and sends in a step, by parallel.mode.
    """
    import torch
    from rnn_lab.config import resolve
    from rnn_lab.modelspec import model_spec
    from rnn_lab.optim.memory_model import memory_table
    from rnn_lab.parallel.costs import costs
    from rnn_lab.train.heads import attach_heads
    from rnn_lab.train.run import optimizer_defaults
    from rnn_lab.train.setup import matched

    found = registry()
    layers = config_layers(
        {"model": model, **options}, field_values(ctx), override, found, config=config, preset=preset
    )
    note_preset(preset, found)
    asked = resolve(layers).config.optimizer
    resolved = resolve([*optimizer_defaults(asked, found), *layers])
    resolved, spec = matched(resolved, model_spec(resolved.config.model, found, resolved.origins))
    if config:
        note_advice(resolved.config, spec)
    with torch.device("meta"):
        built = attach_heads(spec.build(), resolved.config.objective)
    page = {"model": spec.name, "config": spec.table(), **memory_table(built, resolved.config.optimizer)}
    if gpus is not None:
        run = resolved.config
        page["gpus"] = [
            costs(built, run.optimizer, mode, gpus, run.train.grad_accum).as_dict() for mode in ("ddp", "fsdp")
        ]
    if as_json:
        emit_json(page)
        return
    _show(page)
    for row in page.get("gpus", ()):
        heading(f"each of {row['ranks']} GPUs, parallel.mode = {row['mode']}")
        pairs([*((f"holds {name}", n) for name, n in row["held"].items()), ("holds in all", row["held_bytes"])])
        pairs([*((f"sends, {name}", n) for name, n in row["sent"].items()), ("sends a step", row["sent_bytes"])])


def _show(page: dict[str, Any]) -> None:
    pairs(
        [
            ("model", page["model"]),
            ("parameters", page["params"]),
            ("in matrices", page["matrix_params"]),
            ("in the rest", page["aux_params"]),
            ("weights, bytes", page["weight_bytes"]),
            ("gradients, bytes", page["gradient_bytes"]),
        ]
    )
    heading("state by optimizer")
    table(
        ("optimizer", "bytes", "less than Muon", "less than AdamW", "not projected"),
        [
            (
                row["label"], row["bytes"], f"{row['vs_muon']:.1%}", f"{row['vs_adamw']:.1%}",
                None if row.get("whole_share") is None else f"{row['whole_share']:.1%}",
            )
            for row in page["variants"]
        ],
    )  # fmt: skip
    own = page["configured"]
    heading(f"optimizer {own['optimizer']}")
    if own["state"] is None:
        pairs([("state", "not known before its first step")])
    else:
        pairs([*own["state"]["by_category"].items(), ("total", own["state"]["bytes"])])
    if page["routing"]:
        heading("routing")
        table(tuple(page["routing"][0]), [tuple(row.values()) for row in page["routing"]])
