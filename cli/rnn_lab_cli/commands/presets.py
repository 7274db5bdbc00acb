"""`rnn-lab presets`."""

import re
from typing import TYPE_CHECKING, Any

import click
from rnn_lab.errors import ConfigError, RnnLabError, did_you_mean
from rnn_lab.registry import Registry, registry

from rnn_lab_cli.names import complete_preset
from rnn_lab_cli.output import emit_json, heading, json_option, note, pairs, table
from rnn_lab_cli.plugin_commands import warn_about_plugins

if TYPE_CHECKING:
    from rnn_lab.presets import Preset


@click.command()
@click.argument("name", required=False, shell_complete=complete_preset)
@click.option("--family", metavar="F", help="Only presets of models of this family.")
@click.option("--seed", metavar="S", help="Only presets of this document, such as seed004.")
@json_option
def presets(name: str | None, family: str | None, seed: str | None, as_json: bool) -> None:
    """List the presets: model, configuration, parameters as printed and as counted, and whether those agree.

    With NAME, everything that is known of that one: how it was really run, every printed figure, notes. Printed
    figures are external. `fit --preset NAME` trains one, `size --preset NAME` proves its size.
    """
    from rnn_lab.presets import all_presets, find_preset

    found = registry()
    if name is not None:
        page = describe(find_preset(name, found), found)
        if as_json:
            emit_json(page)
        else:
            _print(page)
        return
    chosen = select(list(all_presets(found).values()), found, family, seed)
    warn_about_plugins()
    rows = [preset_row(preset, found) for preset in chosen]
    if as_json:
        emit_json(rows)
        return
    columns = ("name", "model", "printed", "params", "match", "config")
    table(columns, [_cells(preset, row) for preset, row in zip(chosen, rows, strict=True)])


def preset_row(preset: "Preset", found: Registry) -> dict[str, Any]:
    """One row of `presets --json`."""
    params = _count(preset, found)
    return {
        "name": preset.name,
        "model": _model(preset, found),
        "config": preset.row.config,
        "seed_params_printed": preset.printed_params,
        "params": params,
        "match": preset.matches(params),
    }


def presets_of(model: str, found: Registry) -> list[dict[str, Any]]:
    """Rows of the presets of a registered model, with their first printed figures."""
    from rnn_lab.presets import all_presets

    rows = []
    for preset in all_presets(found).values():
        if _model(preset, found) == model:
            row = preset_row(preset, found)
            rows.append(
                {
                    **{key: row[key] for key in ("name", "config", "params", "match")},
                    "printed_params": row["seed_params_printed"],
                    "loss": "; ".join(p.loss for p in preset.row.printed if p.loss) or None,
                    "tok_s": "; ".join(p.tok_s for p in preset.row.printed if p.tok_s) or None,
                    "reason": preset.row.reason,
                }
            )
    return rows


def describe(preset: "Preset", found: Registry) -> dict[str, Any]:
    """What `presets NAME --json` prints."""
    return {
        **preset_row(preset, found),
        "plugin": preset.plugin,
        "document": preset.document.document,
        "reason": preset.row.reason,
        "exact": preset.row.params,
        "recipe": preset.recipe.model_dump(mode="json"),
        "history": preset.history,
        "printed": [{**printed.model_dump(mode="json"), "external": True} for printed in preset.row.printed],
        "notes": list(preset.notes),
    }


def select(known: "list[Preset]", found: Registry, family: str | None, seed: str | None) -> "list[Preset]":
    """Presets of a family and document, by name.

    Raises:
        ConfigError: there are none of that family or document.

    """
    families = {preset.name: _family(preset, found) for preset in known}
    for option, value, values in (
        ("--family", family, set(families.values())),
        ("--seed", seed, {p.seed for p in known}),
    ):
        if value is not None and value not in values:
            hint = did_you_mean(value, values)
            raise ConfigError(f"no preset is of {option} {value}.{hint} Known: {', '.join(sorted(values)) or 'none'}.")
    chosen = [p for p in known if family in (None, families[p.name]) and seed in (None, p.seed)]
    return sorted(chosen, key=lambda preset: _natural(preset.name))


def _natural(name: str) -> list[tuple[bool, int, str]]:
    parts = re.findall(r"\d+|\D+", name)
    return [(part.isdigit(), int(part) if part.isdigit() else 0, part) for part in parts]


def _count(preset: "Preset", found: Registry) -> int | None:
    """The count; a preset that cannot be built is a note, not the end of the list."""
    try:
        return preset.count(found)
    except Exception as error:
        kind = "" if isinstance(error, RnnLabError) else f"{type(error).__name__}: "
        note(f"warning: preset {preset.name}: {kind}{str(error).partition(chr(10))[0]}")
        return None


def _model(preset: "Preset", found: Registry) -> str | None:
    """Registered name of its model; the preset's own word where none is installed."""
    key = (preset.model or "").lower()
    return found.aliases[key][0] if key in found.aliases else preset.model


def _family(preset: "Preset", found: Registry) -> str:
    model = _model(preset, found)
    return found.models[model].family if model in found.models else preset.plugin


def _cells(preset: "Preset", row: dict[str, Any]) -> list[object]:
    config = {key: value for key, value in (row["config"] or {}).items() if key != "name"}
    shape = ", ".join(f"{key} = {value}" for key, value in config.items()) or f"none: {preset.row.reason}"
    return [row["name"], row["model"], row["seed_params_printed"], row["params"], row["match"], shape]


def _print(page: dict[str, Any]) -> None:
    click.secho(page["name"], bold=True)
    heading("about")
    pairs(
        [
            *((key, page[key]) for key in ("document", "model", "plugin", "params")),
            ("printed parameters", page["seed_params_printed"]),
            ("match", page["match"]),
            ("no configuration", page["reason"]),
            ("recipe", ", ".join(f"{key} {value}" for key, value in page["recipe"].items() if value)),
            ("really run", page["history"]),
        ]
    )
    if page["config"]:
        heading("[model]")
        pairs((key, str(value)) for key, value in page["config"].items())
    if page["printed"]:
        heading("printed (external, not reproduced here)")
        columns = ("table", "row", "params", "loss", "tok_s", "other")
        table(columns, [[row[column] for column in columns] for row in page["printed"]])
    if page["notes"]:
        heading("notes")
        for text in page["notes"]:
            click.echo(f"- {text}")
