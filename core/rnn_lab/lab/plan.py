"""From a protocol to jobs: which models with which seeds, each with the arguments of `rnn-lab fit` that train it.

Nothing here knows where a run happens. Everything is checked before anything runs: models, fields, sizes, data.
"""

import os
import re
import shlex
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import tomli_w

from rnn_lab.comparison.external import external_rows
from rnn_lab.config import Layer, parse_override
from rnn_lab.e3.files import read_layers, tables_of
from rnn_lab.errors import ConfigError, RnnLabError, did_you_mean
from rnn_lab.presets import find_preset
from rnn_lab.protocol import Entry, Protocol, find_protocol, slug
from rnn_lab.registry import Registry

PROGRAM = "rnn-lab"


@dataclass(frozen=True)
class Job:
    """One run of a series.

    Attributes:
        name: unique, and a file name: `e61-s42`.
        label: name of the model in tables; runs that differ by seed alone share it.
        group: the same, for readers that group runs.
        part: part of the protocol.
        model: registered name.
        preset: preset that brings the model, or None.
        seed: of weights and batches.
        params: parameters, counted.
        args: arguments of `rnn-lab` that train it, without folder and place.
    """

    name: str
    label: str
    group: str
    part: str
    model: str
    preset: str | None
    seed: int
    params: int
    args: tuple[str, ...]

    def command(self) -> str:
        """The command line that trains it, for a person."""
        return shlex.join([PROGRAM, *self.args])


@dataclass(frozen=True)
class SeriesPlan:
    """A protocol's series, decided; `table` is what series.json holds."""

    name: str
    protocol: Protocol
    jobs: tuple[Job, ...]
    overrides: tuple[str, ...]
    external: tuple[dict[str, Any], ...]
    notes: tuple[str, ...]

    @property
    def seeds(self) -> list[int]:
        """Every seed, once."""
        return list(dict.fromkeys(job.seed for job in self.jobs))

    def table(self) -> dict[str, Any]:
        """JSON form."""
        return {
            "protocol": self.name,
            "description": self.protocol.description,
            "resolved": self.protocol.table(),
            "fingerprint": self.protocol.fingerprint(),
            "overrides": list(self.overrides),
            "metric": self.protocol.series.metric,
            "notes": list(self.protocol.series.notes),
            "seeds": self.seeds,
            "jobs": [{**asdict(job), "args": list(job.args)} for job in self.jobs],
            "external": list(self.external),
        }


def plan_series(
    name: str, found: Registry, *, models: Sequence[str] = (), also: Sequence[str] = (), parts: Sequence[str] = (),
    seeds: int | None = None, overrides: Sequence[str] = (),
) -> SeriesPlan:  # fmt: skip
    """Plan the series of the protocol `name`.

    Args:
        name: registered protocol, or the path of a file.
        found: registry.
        models: labels, models or presets instead of all of the protocol's; what it does not list runs under it too.
        also: more of them, beside the protocol's own.
        parts: parts of the protocol, all if empty.
        seeds: runs per model; the protocol's number if None.
        overrides: `section.key=value` over protocol and runs alike.

    Raises:
        ConfigError: an unknown protocol, model, preset, part or key, a size out of reach, data that cannot be read;
            of several runs that cannot be planned, each is named.
    """
    protocol = find_protocol(name, found)
    if name not in found.protocols:  # a file, which jobs must find from any folder
        name = str(Path(name).resolve())
    entries = _chosen(name, protocol, found, models, also, parts)
    planned = [(entry, *_checked(name, protocol, entry, overrides, found)) for entry in entries]
    problems = [problem for _, _, problem in planned if problem]
    if problems:
        raise ConfigError(f"protocol {name} cannot run:\n" + "\n".join(f"- {text}" for text in problems))
    jobs = [
        _job(name, entry, facts, facts["seed"] + i, overrides)
        for i in range(seeds or protocol.series.seeds)
        for entry, facts, _ in (_rotated(planned, i) if protocol.series.rotate else planned)
    ]
    external, notes = external_rows(protocol, entries, found)
    notes += [f"{entry.named}: {text}" for entry, facts, _ in planned for text in facts["advice"]]
    return SeriesPlan(name, protocol, tuple(jobs), tuple(overrides), tuple(external), tuple(notes))


def _chosen(
    name: str, protocol: Protocol, found: Registry, models: Sequence[str], also: Sequence[str], parts: Sequence[str]
) -> list[Entry]:
    """The entries that run, in the order of the file, then those that were asked for beyond it."""
    entries = protocol.entries()
    known = sorted({entry.part for entry in entries})
    for part in parts:
        if part not in known:
            raise ConfigError(
                f"protocol {name} has no part {part!r}.{did_you_mean(part, known)} Parts: {', '.join(known) or 'none'}."
            )
    entries = [entry for entry in entries if not parts or entry.part in parts]
    if models:
        entries = [entry for model in models for entry in _named(model, entries, found)]
    entries += [entry for model in also for entry in _named(model, [], found)]
    if not entries:
        raise ConfigError(f"protocol {name} lists no runs: name models with --models")
    labels = [slug(entry.named) for entry in entries]
    if twice := next((label for label in labels if labels.count(label) > 1), None):
        raise ConfigError(f"protocol {name}: {twice!r} would run twice: name it once")
    return entries


def _named(text: str, entries: list[Entry], found: Registry) -> list[Entry]:
    """Entries of the protocol that `text` means, else the model or preset of that name."""
    if own := [entry for entry in entries if text in (entry.named, entry.model.get("name"), entry.preset)]:
        return own
    if "/" in text:
        return [Entry(preset=find_preset(text, found).name)]
    found.find_model(text)
    return [Entry(model={"name": text})]


def _layers(name: str, protocol: Protocol, entry: Entry, overrides: Sequence[str], found: Registry) -> list[Layer]:
    layers = [protocol.layer(name)]
    if entry.preset is not None:
        layers.append(find_preset(entry.preset, found).layer())
    stronger = [Layer(f"run {entry.named}", entry.sections)]
    stronger += [Layer("-o", parse_override(text)) for text in overrides]
    if entry.config is not None:
        layers += read_layers(entry.config, tables_of(stronger)).layers
    return layers + stronger


def _checked(
    name: str, protocol: Protocol, entry: Entry, overrides: Sequence[str], found: Registry
) -> tuple[dict[str, Any], str | None]:
    """Model, seed and parameters of an entry, or why it cannot run."""
    from rnn_lab.data.corpus import open_split
    from rnn_lab.e3.advice import advice
    from rnn_lab.train.run import plan_run

    try:
        plan = plan_run(_layers(name, protocol, entry, overrides, found), found)
        cfg = plan.resolved.config
        open_split(str(cfg.data.path), cfg.data.val_path, seq_len=cfg.train.seq_len)
    except RnnLabError as error:
        return {}, f"{entry.named}: {error}"
    known = advice(cfg, plan.spec) if entry.config is not None else []
    facts = {"model": plan.spec.name, "seed": cfg.train.seed, "params": plan.spec.certificate.params, "advice": known}
    return facts, None


def _rotated(planned: list[Any], by: int) -> list[Any]:
    """The same, beginning `by` places further on."""
    first = by % len(planned)
    return planned[first:] + planned[:first]


def _job(name: str, entry: Entry, facts: dict[str, Any], seed: int, overrides: Sequence[str]) -> Job:
    plugins = os.environ.get("RNN_LAB_PLUGINS_DIR")
    args = [*(["--plugins-dir", str(Path(plugins).resolve())] if plugins else []), "fit", "--protocol", name]
    if entry.preset:
        args += ["--preset", entry.preset]
    if entry.config:
        args += ["--config", entry.config]
    if "name" in entry.model:
        args += ["--model", str(entry.model["name"])]
    for section, table in entry.sections.items():
        for key, value in table.items():
            if (section, key) != ("model", "name"):
                args += ["-o", f"{section}.{key}={toml_value(value)}"]
    for text in overrides:
        args += ["-o", text]
    return Job(
        name=f"{slug(entry.named)}-s{seed}", label=entry.named, group=entry.named, part=entry.part,
        model=facts["model"], preset=entry.preset, seed=seed, params=facts["params"],
        args=(*args, "-o", f"train.seed={seed}"),
    )  # fmt: skip


def toml_value(value: Any) -> str:
    """A value as `-o key=value` takes it, on one line."""
    return re.sub(r"\s*\n\s*", " ", tomli_w.dumps({"v": value})).strip().removeprefix("v = ")
