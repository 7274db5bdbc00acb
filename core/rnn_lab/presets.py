"""Presets: named configurations with what is known of them; above all, the seeds' published figures as data.

A preset file is TOML. `[seed.NAME]` describes a document: its recipe (how we run its rows), its history (how it was
really run) and notes. `[[preset]]` is one row, called `NAME/row`; its document may stand in another file, or in
another plugin's. A row without a configuration says why.

    [[preset]]
    name = "seed000/e5_d1536_r270"
    config = { name = "e5", dim = 1536, depth = 20, rank = 270, norm = "layer" }
    params = 50_254_848
    history = "scripts"
    printed = [{ table = "Reference Results", row = "e5_d1536_r270", params = "50.3M", loss = "1.4463" }]

Printed figures are external: somebody else's, not reproduced here.
"""

import json
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import Field, field_validator, model_validator

from rnn_lab.config import Layer, M, ModelSection, StrictModel, read_toml, resolve, validate
from rnn_lab.errors import ConfigError, PluginError, did_you_mean
from rnn_lab.registry import PluginInfo, Registry, isolated

_COUNT = re.compile(r"(~?)([0-9]+(?:,[0-9]{3})*)(?:\.([0-9]+))?([KMB]?)")
_SCALE = {"": 1, "K": 10**3, "M": 10**6, "B": 10**9}


class Printed(StrictModel):
    """One row of a table as it stands in the document."""

    table: str = Field(description="heading that the table stands under")
    row: str = Field(description="label of the row")
    params: str | None = Field(None, description="parameter count, `98M` or `48,742,912`")
    loss: str | None = Field(None, description="loss, with what it is where the document says so")
    tok_s: str | None = Field(None, description="bytes per second")
    other: str | None = Field(None, description="further columns")

    @field_validator("params")
    @classmethod
    def _counts(cls, text: str | None) -> str | None:
        if text is not None:
            printed_count(text)
        return text


class Recipe(StrictModel):
    """How we run a preset: a registered protocol, and what differs from it."""

    protocol: str | None = None
    train: dict[str, Any] = Field(default_factory=dict)
    optimizer: dict[str, Any] = Field(default_factory=dict)


class Document(StrictModel):
    """`[seed.NAME]`: what the rows of a document have in common."""

    document: str = Field(description="file name or place of the document")
    title: str
    recipe: Recipe = Recipe()
    history: dict[str, str] = Field(default_factory=dict, description="ways in which rows were really run, by name")
    notes: tuple[str, ...] = ()


class Row(StrictModel):
    """`[[preset]]`: one row; see the module docstring."""

    name: str = Field(pattern=r"^[a-z0-9_]+/[A-Za-z0-9_.-]+$", description="SEED/row")
    config: dict[str, Any] | None = Field(None, description="[model] table that builds the row's model")
    reason: str | None = Field(None, description="why there is no config")
    model: str | None = Field(None, description="model of a row without config, where it is one of ours")
    params: int | None = Field(None, ge=1, description="exact count, where it is known")
    recipe: Recipe | None = Field(None, description="instead of the document's")
    history: str | None = Field(None, description="name of the document's history that holds for this row")
    printed: tuple[Printed, ...] = ()
    notes: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _fits(self) -> "Row":
        if (self.config is None) == (self.reason is None):
            raise ValueError("a preset has either a config or a reason why there is none")
        if self.config is not None and not isinstance(self.config.get("name"), str):
            raise ValueError("config names no model: give name")
        if self.config is not None and self.model is not None:
            raise ValueError("config names the model: leave model out")
        try:
            json.dumps(self.config, allow_nan=False, default=str)
        except ValueError as error:
            raise ValueError("config holds a number that is not finite") from error
        return self


class PresetFile(StrictModel):
    """A whole file; its rows are read one by one, so that a wrong one costs no other."""

    seed: dict[str, Document] = Field(default_factory=dict)
    preset: tuple[dict[str, Any], ...] = ()


@dataclass(frozen=True)
class Preset:
    """A row together with its document and the plugin that brought it."""

    row: Row
    document: Document
    plugin: str

    @property
    def name(self) -> str:
        """`SEED/row`."""
        return self.row.name

    @property
    def seed(self) -> str:
        """Name of the document."""
        return self.row.name.partition("/")[0]

    @property
    def model(self) -> str | None:
        """Model or alias that the row is about; None where it is about none of ours."""
        return self.row.model if self.row.config is None else str(self.row.config["name"])

    @property
    def recipe(self) -> Recipe:
        """How we run it."""
        return self.row.recipe or self.document.recipe

    @property
    def history(self) -> str | None:
        """How it was really run."""
        return None if self.row.history is None else self.document.history[self.row.history]

    @property
    def notes(self) -> tuple[str, ...]:
        """What a reader of its figures has to know, the row's own first."""
        return (*self.row.notes, *self.document.notes)

    @property
    def printed_params(self) -> str | None:
        """The parameter count as printed, the most exact one where there are several."""
        counts = [printed.params for printed in self.row.printed if printed.params is not None]
        return min(counts, key=lambda text: printed_count(text)[1], default=None)

    def section(self) -> ModelSection:
        """Its `[model]` table, checked but for the model's own fields.

        Raises:
            ConfigError: it has none; the message says why.

        """
        if self.row.config is None:
            raise ConfigError(f"preset {self.name} has no configuration: {self.row.reason}")
        return resolve([Layer(f"preset {self.name}", {"model": self.row.config})]).config.model

    def layer(self) -> Layer:
        """Its configuration layer: the model, whose shape stands in for any target, and no recipe.

        Raises:
            ConfigError: it has no configuration.

        """
        self.section()
        config = self.row.config or {}
        return Layer(f"preset {self.name}", {"model": ({"target": None} if "dim" in config else {}) | config})

    def count(self, found: Registry) -> int | None:
        """Parameters by closed form; None where no shape is known. Imports torch.

        Raises:
            ConfigError: the model is not installed, or a field does not fit it.

        """
        if self.row.config is None or "dim" not in self.row.config:
            return None
        from rnn_lab.modelspec import closed_form

        return closed_form(self.section(), found)

    def matches(self, params: int | None) -> bool | None:
        """Whether `params` is what was printed and what is known; None where there is nothing to hold it against."""
        printed = [p.params for p in self.row.printed if p.params is not None]
        if params is None or not (printed or self.row.params):
            return None
        return self.row.params in (None, params) and all(agrees(params, text) for text in printed)


def printed_count(text: str) -> tuple[int, int]:
    """Value of a printed count and the unit of its last digit; `~500M` has two digits, its last zero is none.

    Raises:
        ValueError: the text is no count, or one finer than a parameter.

    """
    match = _COUNT.fullmatch(text)
    if match is None:
        raise ValueError("expected a parameter count such as 98M, ~1.5B or 48,742,912")
    about, whole, decimals, suffix = match[1], match[2].replace(",", ""), match[3] or "", match[4]
    unit = _SCALE[suffix] // 10 ** len(decimals)
    if unit == 0:
        raise ValueError("its last digit is less than one parameter")
    value = int(whole + decimals) * unit
    while about and not decimals and value >= 100 * unit and value % (10 * unit) == 0:
        unit *= 10
    return value, unit


def agrees(params: int, text: str) -> bool:
    """Whether `params` could have been printed so, rounded or cut off: less than one unit of the last digit away."""
    value, unit = printed_count(text)
    return abs(params - value) < unit


def all_presets(found: Registry) -> dict[str, Preset]:
    """Every preset by name, read on the first call; a file or row that cannot be used is a problem of its plugin."""
    if found.presets is None:
        found.presets = {}
        documents: dict[str, Document] = {}
        rows: list[tuple[PluginInfo, Path, int, dict[str, Any]]] = []
        for info, path in found.preset_files:
            with isolated(info):
                file = _checked(PresetFile, path, read_toml(path))
                documents = {**file.seed, **documents}
                rows += [(info, path, i, table) for i, table in enumerate(file.preset)]
        for info, path, i, table in rows:
            with isolated(info):
                _add(found.presets, _checked(Row, path, table, f"preset.{i}."), documents, info)
    return found.presets


def find_preset(name: str, found: Registry) -> Preset:
    """The preset called `name`.

    Raises:
        ConfigError: there is none; names the nearest ones, and what keeps presets away.

    """
    known = all_presets(found)
    if name in known:
        return known[name]
    row = name.rpartition("/")[2]
    same = [preset for preset in known if preset.endswith(f"/{row}")]
    hint = did_you_mean(name, same, cutoff=0) or did_you_mean(name, list(known)) or did_you_mean(row, list(known))
    if os.environ.get("RNN_LAB_LOAD_PLUGINS") is not None:
        hint += " RNN_LAB_LOAD_PLUGINS is set: presets of other plugins are not loaded."
    if any(info.problems for info in found.plugins):
        hint += " Some plugins have problems: see `rnn-lab plugins`."
    raise ConfigError(f"unknown preset {name!r}.{hint} See `rnn-lab presets`.")


def _checked(schema: type[M], path: Path, values: dict[str, Any], prefix: str = "") -> M:
    try:
        return validate(schema, values, prefix=prefix)
    except ConfigError as error:
        raise PluginError(f"{path}: {error}") from error


def _add(presets: dict[str, Preset], row: Row, documents: dict[str, Document], info: PluginInfo) -> None:
    seed = row.name.partition("/")[0]
    if row.name in presets:
        raise PluginError(f"preset {row.name!r} is already registered by {presets[row.name].plugin}")
    if seed not in documents:
        raise PluginError(f"preset {row.name!r}: no file describes [seed.{seed}].{did_you_mean(seed, list(documents))}")
    if row.history is not None and row.history not in documents[seed].history:
        raise PluginError(f"preset {row.name!r}: [seed.{seed}.history] has no {row.history!r}")
    presets[row.name] = Preset(row, documents[seed], info.name)
