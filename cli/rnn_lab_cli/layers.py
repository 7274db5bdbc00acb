"""From options to configuration layers, each value with the option that set it as its origin."""

from collections.abc import Iterable, Mapping
from typing import Any

from rnn_lab.config import Layer, parse_override
from rnn_lab.e3.files import read_layers, tables_of
from rnn_lab.registry import Registry
from rnn_lab.typed import Typed

from rnn_lab_cli.output import note

OPTION_KEYS = {
    "model": "model.name",
    "target": "model.target",
    "depth": "model.depth",
    "norm": "model.norm",
    "steps": "train.steps",
    "tokens": "train.tokens",
    "minutes": "train.minutes",
    "data": "data.path",
    "val_data": "data.val_path",
    "seed": "train.seed",
    "device": "train.device",
    "dtype": "train.dtype",
    "batch_size": "train.batch_size",
    "seq_len": "train.seq_len",
    "grad_accum": "train.grad_accum",
    "carry_state": "train.carry_state",
    "lr": "optimizer.lr",
    "optimizer": "optimizer.name",
    "checkpoint_every": "checkpoint.every",
    "keep_checkpoints": "checkpoint.keep",
    "eval_every": "eval.every",
    "strict": "diagnostics.strict",
}
"""The configuration key that each option of `fit` sets."""


def config_layers(
    options: Mapping[str, Any],
    fields: Mapping[str, Any],
    overrides: Iterable[str],
    found: Registry,
    *,
    config: str | None = None,
    protocol: str | None = None,
    preset: str | None = None,
) -> list[Layer]:
    """Layers of a run, weakest first: protocol, preset, file, options, `-o`.

    Args:
        options: values by option name; None where an option was not given.
        fields: fields of the model's Config that options set.
        overrides: texts of `-o`.
        found: registry to find the protocol in.
        config: path of `--config`, or a file of the E3 suite by name; what it warns of goes to stderr.
        protocol: name of `--protocol`.
        preset: name of `--preset`; its own recipe holds where no protocol is named.

    Raises:
        ConfigError: no such protocol or preset, or a file or override that cannot be read.

    """
    layers = []
    if protocol is not None:
        layers.append(protocol_layer(protocol, found))
    if preset is not None:
        layers.append(preset_layer(preset, found, with_recipe=protocol is None))
    stronger = []
    for option, value in options.items():
        if option in OPTION_KEYS and value is not None:
            section, _, key = OPTION_KEYS[option].partition(".")
            stronger.append(_of_option(option, section, key, value))
    for name, value in fields.items():
        stronger.append(_of_option(name, "model", name, value))
    stronger += [Layer("-o", parse_override(text)) for text in overrides]
    if config is not None:
        read = read_layers(config, tables_of(stronger))
        for text in read.warnings:
            note(f"warning: {text}")
        layers += read.layers
    return layers + stronger


def _of_option(option: str, section: str, key: str, value: Any) -> Layer:
    """The layer of one option; the configuration reads a number out of its text."""
    return Layer(
        f"option --{option.replace('_', '-')}", {section: {key: Typed(value) if isinstance(value, str) else value}}
    )


def protocol_layer(name: str, found: Registry) -> Layer:
    """The layer of a registered protocol, or of a protocol file; its runs are no part of it.

    Raises:
        ConfigError: no such protocol, or its file cannot be used.

    """
    from rnn_lab.protocol import find_protocol

    return find_protocol(name, found).layer(name)


def preset_layer(name: str, found: Registry, *, with_recipe: bool) -> Layer:
    """The layer of a preset: its model and, `with_recipe`, what its recipe sets, the target of a protocol aside.

    Raises:
        ConfigError: no such preset, it has no configuration, or its protocol is unknown.

    """
    from rnn_lab.presets import find_preset

    preset = find_preset(name, found)
    layer = preset.layer()
    if not with_recipe:
        return layer
    recipe = preset.recipe
    tables = dict(protocol_layer(recipe.protocol, found).values) if recipe.protocol else {}
    for section, values in (("train", recipe.train), ("optimizer", recipe.optimizer)):
        tables[section] = {**tables.get(section, {}), **values}
    return Layer(layer.origin, {**tables, **layer.values})
