"""A suite in a folder: its configuration files with what was asked for, and the protocol that runs them.

The folder is part of the results: each file trains the same again by `rnn-lab fit --config`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import tomli_w

from rnn_lab.atomic import write_text_atomic
from rnn_lab.config import read_toml
from rnn_lab.e3.files import path_of, read_file
from rnn_lab.errors import ConfigError, did_you_mean
from rnn_lab.lab.series import SUITE as SUITE

CONFIGS = {
    "baseline": "Baseline", "mtp_only": "MTP_Only", "muon_8bit": "8bit_Muon", "galore2": "GaLore2", "full": "E3_Full",
}  # fmt: skip
"""The suite's files and what tables call them."""
ABLATIONS = {
    "muon_8bit_only": "8bit_Muon_only", "galore2_only": "GaLore2_only", "collider_only": "Collider_only",
    "collider_random": "Collider_random", "async_only": "Async_only", "checkpoint_only": "Checkpoint_only",
    "adamw_schedulefree": "AdamW_ScheduleFree",
}  # fmt: skip
BASELINE = CONFIGS["baseline"]
PROTOCOL = "e3.toml"
WARMUP = 0.1
"""Share of a budget in steps that is warm-up where the budget is not the files' own."""
SHORT_BATCH = 32
"""Sequences per step under a budget in minutes, as in the ten-minute protocol."""
TINY: dict[str, dict[str, Any]] = {
    "model": {"hidden_dim": 64, "num_layers": 2},
    "training": {"total_steps": 60, "batch_size": 8, "seq_length": 64, "galore_min_dim": 16, "galore_update_freq": 20},
}


@dataclass(frozen=True)
class Asked:
    """What a suite is asked to be.

    Attributes:
        configs: stems of CONFIGS and ABLATIONS, or paths of files.
        model: registered model instead of the files'.
        target: parameters instead of the files'.
        shape: `hidden_dim` and `num_layers` that are held.
        steps, minutes: budget instead of the files'.
        batch_size, seq_length: instead of the files'.
        seeds: runs per configuration.
        schedule: instead of the files'; None leaves it to them.
        tiny: the preset for a CPU and minutes.
        instead: model per configuration, by stem.

    """

    configs: Sequence[str] = tuple(CONFIGS)
    model: str | None = None
    target: str | None = None
    shape: Mapping[str, int] = field(default_factory=dict)
    steps: int | None = None
    minutes: float | None = None
    batch_size: int | None = None
    seq_length: int | None = None
    seeds: int = 3
    schedule: str | None = "constant"
    tiny: bool = False
    instead: Mapping[str, str] = field(default_factory=dict)


def chosen(configs: str | None, ablations: bool) -> list[str]:
    """Stems or paths for `--configs` and `--ablations`; the baseline is always among them and comes first.

    Raises:
        ConfigError: one is neither, or is named twice.

    """
    known = {**CONFIGS, **ABLATIONS}
    labels = {label.lower(): stem for stem, label in known.items()}
    found = [] if configs else list(CONFIGS)
    for text in filter(None, (part.strip() for part in (configs or "").split(","))):
        stem = labels.get(text.lower(), text)
        if stem not in known and not text.endswith(".toml"):
            raise ConfigError(f"--configs: unknown configuration {text!r}.{did_you_mean(text, list(known))}")
        found.append(stem)
    found += [stem for stem in ABLATIONS if ablations and stem not in found]
    if twice := next((stem for stem in found if found.count(stem) > 1), None):
        raise ConfigError(f"--configs: {twice} would run twice: name it once")
    return ["baseline", *(stem for stem in found if stem != "baseline")]


def label_of(stem: str) -> str:
    """What tables call a configuration."""
    return {**CONFIGS, **ABLATIONS}.get(stem, Path(stem).stem)


def write_suite(folder: Path, asked: Asked, overrides: Sequence[str] = ()) -> Path:
    """Write the files and the protocol of a suite into `folder`; a suite that is there must be the same.

    Returns:
        The protocol's file.

    Raises:
        ConfigError: a file says something unfit, or another suite is there.

    """
    unknown = sorted(asked.instead.keys() - set(asked.configs))
    if unknown:
        raise ConfigError(f"--instead {unknown[0]}: not among the configurations: {', '.join(asked.configs)}")
    names = [Path(stem).stem for stem in asked.configs]
    if twice := next((name for name in names if names.count(name) > 1 or f"{name}.toml" == PROTOCOL), None):
        raise ConfigError(f"--configs: a file called {twice}.toml is in the suite already: name yours otherwise")
    texts = {}
    for stem in asked.configs:
        tables = changed(read_toml(_source(stem)), asked, shipped=stem in CONFIGS or stem in ABLATIONS)
        texts[f"{Path(stem).stem}.toml"] = tomli_w.dumps(tables)
    texts[PROTOCOL] = tomli_w.dumps(protocol(folder.resolve(), asked))
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in texts.items():
        path = folder / name
        if path.exists() and path.read_text(encoding="utf-8") != text:
            raise ConfigError(f"{path} is of a suite with other options: repeat those it began with")
        write_text_atomic(path, text)
        if name != PROTOCOL:
            read_file(str(path))
    return folder / PROTOCOL


def _source(stem: str) -> Path:
    return Path(stem) if stem.endswith(".toml") else path_of(f"e3/{stem}")


def changed(tables: dict[str, Any], asked: Asked, *, shipped: bool) -> dict[str, Any]:
    """Tables of a file with what was asked for in place of its own."""
    model, training = dict(tables.get("model", {})), dict(tables.get("training", {}))
    if asked.model is not None:
        model["family"] = asked.model
        model.pop("fields", None)
    if asked.tiny:
        model |= {} if asked.target is not None else TINY["model"]
        _projected(training)
        training |= {key: value for key, value in TINY["training"].items() if _fits(key, training)}
    model |= asked.shape
    if asked.target is not None:
        model["target_params"] = asked.target
    elif {"hidden_dim", "num_layers"} <= model.keys():
        model.pop("target_params", None)
    if asked.batch_size is not None:
        training["batch_size"] = asked.batch_size
    if asked.seq_length is not None:
        training["seq_length"] = asked.seq_length
        model["max_seq_len"] = max(asked.seq_length, model.get("max_seq_len", 0))
    _budget(training, asked)
    if asked.schedule is not None and training.get("schedule_type") != "none":
        training["schedule_type"] = asked.schedule
    if shipped and training.get("use_collider"):
        training["collider_min_dim"] = 0
    return {**tables, "model": model, "training": training}


def _fits(key: str, training: Mapping[str, Any]) -> bool:
    """Whether a setting of the tiny preset has anything to act on."""
    return not key.startswith("galore") or bool(training.get("use_galore"))


def _projected(training: dict[str, Any]) -> None:
    """A rank for any width: the documents' is for widths from 1024 on."""
    if training.get("use_galore"):
        training["galore_rank"] = "auto"


def _budget(training: dict[str, Any], asked: Asked) -> None:
    """The budget that was asked for, and a warm-up that ends within it."""
    before = training.get("total_steps")
    if asked.steps is not None:
        training["total_steps"] = asked.steps
    if asked.minutes is not None:
        training.pop("total_steps", None)
        training["max_minutes"] = asked.minutes
        if asked.batch_size is None and not asked.tiny:
            training["batch_size"] = SHORT_BATCH
    steps = training.get("total_steps")
    if training.get("warmup_steps") and steps is not None and (asked.tiny or steps != before):
        training["warmup_steps"] = max(1, round(WARMUP * steps)) if steps > 1 else 0


def protocol(folder: Path, asked: Asked) -> dict[str, Any]:
    """The protocol of a suite whose files are in `folder`."""
    runs = []
    for stem in asked.configs:
        run: dict[str, Any] = {"label": label_of(stem), "config": str(folder / f"{Path(stem).stem}.toml")}
        run["part"] = "ablations" if stem in ABLATIONS else "main"
        if stem in asked.instead:
            run["model"] = {"name": asked.instead[stem]}
        runs.append(run)
    return {
        "description": "The E3 suite: what features of training efficiency are worth, beside a baseline without them.",
        "eval": {"tokens": 8192 if asked.tiny else 2**20},
        "series": {
            "seeds": asked.seeds, "rotate": True, "metric": "last100",
            "notes": ["Configurations of the suite differ in several features at once; ablations in one."],
        },
        "run": runs,
    }  # fmt: skip
