"""`rnn-lab size`."""

from typing import TYPE_CHECKING, Any

import click
from rnn_lab.errors import ConfigError
from rnn_lab.registry import registry

from rnn_lab_cli.fit_options import apply, model_options, override_option, preset_option
from rnn_lab_cli.layers import config_layers, preset_layer
from rnn_lab_cli.model_options import ModelCommand, field_values
from rnn_lab_cli.names import complete_model
from rnn_lab_cli.output import emit_json, heading, json_option, note_preset, pairs, table

if TYPE_CHECKING:
    from rnn_lab.modelspec import ModelSpec


@click.command(cls=ModelCommand)
@click.argument("model", required=False, shell_complete=complete_model)
@lambda command: apply(command, (*model_options, override_option, preset_option, json_option))
@click.pass_context
def size(
    ctx: click.Context, /, model: str | None, override: tuple[str, ...], preset: str | None, as_json: bool,
    **options: Any,
) -> None:  # fmt: skip
    """Find the shape of MODEL at a parameter target, and prove its size by counting.

    Fields given as options or as -o model.KEY=VALUE are held; the solver chooses the others. With --preset the
    model and what it holds come from there.
    """
    from rnn_lab.config import resolve
    from rnn_lab.modelspec import model_spec

    found = registry()
    layers = config_layers({"model": model, **options}, field_values(ctx), override, found)
    others = {section for layer in layers for section in layer.values} - {"model"}
    if preset is not None:
        layers.insert(0, preset_layer(preset, found, with_recipe=False))
        note_preset(preset, found)
    elif model is None:
        raise ConfigError("no model is named: give MODEL or --preset NAME (see `rnn-lab list-models`)")
    if others:
        raise ConfigError(f"-o {min(others)}: only model.KEY=VALUE decides a size")
    resolved = resolve(layers)
    spec = model_spec(resolved.config.model, found, resolved.origins, must_reach=False)
    reason = None if spec.certificate.on_target else why_unreachable(spec, resolved.config.model)
    if as_json:
        emit_json(certificate(spec, reason))
    elif reason is None:
        _show(spec)
    if reason is not None:
        raise ConfigError(reason)


def why_unreachable(spec: "ModelSpec", section: Any) -> str:
    """The solver's account of why the target of `section` is out of reach."""
    from rnn_lab.modelspec import unreachable

    _, preset = registry().find_model(section.name)
    held = {**preset, **section.fields, **spec.layer_cls.lm_defaults}
    if section.depth is not None:
        held["depth"] = section.depth
    return unreachable(spec.name, spec.certificate, spec.layer_cfg, spec.lm_cfg, held)


def certificate(spec: "ModelSpec", reason: str | None) -> dict[str, Any]:
    """What `size --json` prints."""
    return {
        "model": spec.name,
        "target": spec.certificate.target,
        "params": spec.certificate.params,
        "deviation": spec.certificate.deviation,
        "config": spec.table(),
        "breakdown": spec.certificate.breakdown,
        "reachable": reason is None,
        "reason": reason,
    }


def _show(spec: "ModelSpec") -> None:
    proof = spec.certificate
    total = proof.params
    rows = [(name, count, f"{count / total:.2%}") for name, count in proof.breakdown.items()]
    table(("component", "parameters", "share"), [*rows, ("total", total, "100.00%")])
    deviation = None if proof.deviation is None else f"{proof.deviation:+.4%}"
    pairs([("target", proof.target), ("deviation", deviation), ("counted", "equal to the closed form")])
    heading("[model]")
    pairs((key, str(value)) for key, value in spec.table().items())
    if derived := spec.layer_cfg.derived():
        heading("what follows")
        pairs(derived.items())
