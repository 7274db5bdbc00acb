"""Protocols: what a comparison holds equal, which models it compares, and which published figures stand beside them.

A protocol is one TOML file. Its sections are a layer of configuration, which `fit --protocol NAME` uses alone;
`[series]`, `[[run]]` and `[[external]]` describe the whole comparison, which `protocol run NAME` runs.

    description = "50M parameters, 32 x 512 bytes a step, 1,000 steps"
    base = "standard-50m"               # sections and [series] of another protocol, weaker than this one's

    [train]
    batch_size = 32

    [series]
    seeds = 1                           # train.seed, train.seed + 1, ...

    [[run]]
    model = { name = "e4", expansion = 2.0 }
    external = ["seed003/e4_2x"]        # presets whose printed figures stand beside this run

    [[run]]
    preset = "seed000/e5_d1536_r270"    # its model and shape; its own printed figures stand beside it
    grid = { "optimizer.lr" = [1e-4, 3e-4] }

    [[run]]
    config = "e3/full"                  # what `fit --config` takes, over the protocol's sections

A run is a layer too, over the protocol's: `model`, `train`, `optimizer`, `objective` and `schedule` are tables of
configuration.
"""

import hashlib
import itertools
import json
import re
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, model_validator

from rnn_lab.config import (
    SECTIONS,
    CheckpointSection,
    DataSection,
    EvalSection,
    Layer,
    LogSection,
    OptimizerSection,
    StrictModel,
    TrainSection,
    read_toml,
    validate,
)
from rnn_lab.errors import ConfigError, did_you_mean
from rnn_lab.registry import Registry
from rnn_lab.sections import DiagnosticsSection, LoaderSection, ObjectiveSection, ScheduleSection

_SECTIONS = tuple(SECTIONS)
_OF_A_RUN = ("model", "train", "optimizer", "objective", "schedule")
_NOT_IN_NAMES = re.compile(r"[^A-Za-z0-9._-]+")


class SeriesSection(StrictModel):
    """`[series]`: how the runs of a protocol make a series."""

    seeds: int = Field(1, ge=1, le=1000, description="runs per model; seeds count up from train.seed")
    metric: Literal["last100", "val_loss"] = Field("last100", description="figure of result.json that is compared")
    stall_minutes: float = Field(
        10.0, gt=0, le=10**4, description="a run without a step, log line or checkpoint for so long has hung"
    )
    rotate: bool = Field(False, description="each seed begins with another run, so that none is always first")
    tables: tuple[str, ...] = Field((), description="tables of the documents whose figures are shown; empty: all")
    notes: tuple[str, ...] = Field((), description="what a reader of the results has to know")


class Entry(StrictModel):
    """`[[run]]`: one model of the comparison, or several through `grid`."""

    model: dict[str, Any] = Field(default_factory=dict, description="[model] table: name, and what is held")
    preset: str | None = Field(None, description="preset that brings the model; its shape stands in for the target")
    config: str | None = Field(None, description="file of configuration, as `fit --config` takes it")
    label: str | None = Field(None, description="name in tables; default: the model's, preset's or file's")
    part: str = Field("main", pattern=r"^[a-z0-9-]+$", description="part of the series that --part selects")
    train: dict[str, Any] = Field(default_factory=dict, description="what differs from the protocol's [train]")
    optimizer: dict[str, Any] = Field(default_factory=dict, description="what differs from its [optimizer]")
    objective: dict[str, Any] = Field(default_factory=dict, description="what differs from its [objective]")
    schedule: dict[str, Any] = Field(default_factory=dict, description="what differs from its [schedule]")
    grid: dict[str, tuple[Any, ...]] = Field(default_factory=dict, description="`section.key`: values, all combined")
    external: tuple[str, ...] = Field((), description="presets whose printed figures stand beside this run")

    @model_validator(mode="after")
    def _names_a_model(self) -> "Entry":
        if (self.preset is None) == (self.model.get("name") is None and self.config is None):
            raise ValueError("a run has either a preset or a model with a name, or the file of a config")
        for key, values in self.grid.items():
            if key.partition(".")[0] not in _OF_A_RUN or not key.partition(".")[2] or not values:
                *known, last = (f"`{section}.key`" for section in _OF_A_RUN)
                raise ValueError(f"grid: {key!r} is no {', '.join(known)} or {last} with values")
        return self

    @property
    def named(self) -> str:
        """The label, given or from the model, preset or file."""
        file = Path(self.config or "").name.removesuffix(".toml")
        return self.label or str(self.model.get("name") or (self.preset or "").rpartition("/")[2] or file)

    @property
    def sections(self) -> dict[str, dict[str, Any]]:
        """Its layer of configuration; a preset's model is a layer of its own."""
        return {key: table for key in _OF_A_RUN if (table := getattr(self, key))}

    def expanded(self) -> "list[Entry]":
        """The entry for every combination of its grid; the labels say the values."""
        if not self.grid:
            return [self]
        entries = []
        for values in itertools.product(*self.grid.values()):
            changed = dict(zip(self.grid, values, strict=True))
            tables: dict[str, dict[str, Any]] = {k: dict(getattr(self, k)) for k in _OF_A_RUN}
            for key, value in changed.items():
                section, _, name = key.partition(".")
                tables[section][name] = value
            says = " ".join(f"{key.rpartition('.')[2]}={value}" for key, value in changed.items())
            entries.append(self.model_copy(update={**tables, "grid": {}, "label": f"{self.named} {says}"}))
        return entries


class External(StrictModel):
    """`[[external]]`: figures of others that belong to no `[[run]]`, or that no preset holds. Losses in nats."""

    preset: str | None = Field(None, description="preset whose printed figures are meant")
    run: str | None = Field(None, description="label of the run of ours that they stand beside")
    label: str | None = Field(None, description="name in tables; default: as printed")
    document: str | None = Field(None, description="where the figure stands; a preset brings its own")
    loss: float | None = Field(None, description="nats per byte")
    bpb: float | None = Field(None, description="bits per byte, where that was published")
    tokens_per_s: float | None = Field(None, ge=0, description="bytes per second")
    params: int | None = Field(None, ge=1, description="parameters")
    caveat: str | None = Field(None, description="what keeps it from being compared")

    @model_validator(mode="after")
    def _says_whose(self) -> "External":
        if self.preset is None and (self.label is None or self.document is None):
            raise ValueError("figures without a preset need a label and a document")
        return self


class Protocol(StrictModel):
    """A protocol file; see the module docstring."""

    description: str
    base: str | None = Field(None, description="protocol whose sections and [series] hold where this one is silent")
    model: dict[str, Any] = Field(default_factory=dict)
    data: DataSection = DataSection()
    train: TrainSection = TrainSection()
    optimizer: OptimizerSection = OptimizerSection()
    objective: ObjectiveSection = ObjectiveSection()
    schedule: ScheduleSection = ScheduleSection()
    loader: LoaderSection = LoaderSection()
    eval: EvalSection = EvalSection()
    checkpoint: CheckpointSection = CheckpointSection()
    log: LogSection = LogSection()
    diagnostics: DiagnosticsSection = DiagnosticsSection()
    series: SeriesSection = SeriesSection()
    run: tuple[Entry, ...] = ()
    external: tuple[External, ...] = ()

    @model_validator(mode="after")
    def _labels_differ(self) -> "Protocol":
        seen: dict[str, str] = {}
        for entry in self.entries():
            key = slug(entry.named)
            if key in seen:
                raise ValueError(f"two runs are called {entry.named!r} and {seen[key]!r}: give one another label")
            seen[key] = entry.named
        unknown = sorted({row.run for row in self.external if row.run is not None} - set(seen.values()))
        if unknown:
            hint = did_you_mean(unknown[0], list(seen.values()))
            raise ValueError(f"external: no run is called {unknown[0]!r}.{hint}")
        return self

    def entries(self) -> list[Entry]:
        """Every run, grids expanded, in the order of the file."""
        return [one for entry in self.run for one in entry.expanded()]

    def sections(self) -> dict[str, dict[str, Any]]:
        """What the file sets, section by section."""
        given = self.model_dump(mode="json", include=set(_SECTIONS), exclude_unset=True)
        return {name: table for name, table in given.items() if table}

    def layer(self, name: str) -> Layer:
        """Its layer of configuration, for the protocol called `name`."""
        return Layer(f"protocol {name}", self.sections())

    def table(self) -> dict[str, Any]:
        """JSON form with everything that the file says, and no defaults."""
        return self.model_dump(mode="json", exclude_unset=True)

    def fingerprint(self) -> str:
        """Hash of what decides a run's figures: the sections, not the list of models."""
        return hashlib.sha256(json.dumps(self.sections(), sort_keys=True).encode()).hexdigest()[:16]


def slug(text: str) -> str:
    """`text` as part of a file name: `e88 n_state=16` becomes `e88-n_state-16`."""
    return _NOT_IN_NAMES.sub("-", text).strip("-.").lower() or "run"


def find_protocol(name: str, found: Registry) -> Protocol:
    """The protocol registered as `name`, or in the file `name` where it ends in `.toml`.

    Raises:
        ConfigError: no such protocol; the file, or that of its base, cannot be read or says something unknown.

    """
    return validate(Protocol, _with_base(name, found, ()), prefix=f"protocol {name}: ")


def _with_base(name: str, found: Registry, above: tuple[str, ...]) -> dict[str, Any]:
    """Tables of a protocol over those of its base; runs and published figures are not inherited."""
    values = read_toml(_path_of(name, found))
    base = values.get("base")
    if base is None:
        return values
    if not isinstance(base, str) or base in (name, *above):
        raise ConfigError(f"protocol {name}: base = {base!r}: expected the name of another protocol, in no circle")
    below = _with_base(base, found, (*above, name))
    for section in (*_SECTIONS, "series"):
        under, own = below.get(section, {}), values.get(section, {})
        if isinstance(under, dict) and isinstance(own, dict) and (under or own):
            values[section] = {**under, **own}
    return values


def _path_of(name: str, found: Registry) -> Path:
    if name in found.protocols:
        return Path(found.protocols[name])
    if name.endswith(".toml"):
        return Path(name)
    known = f" Known: {', '.join(found.protocols)}." if found.protocols else " None is registered."
    raise ConfigError(f"unknown protocol {name!r}.{did_you_mean(name, list(found.protocols))}{known}")
