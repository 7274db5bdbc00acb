"""A suite in a folder: its configuration files with what was asked for, and the protocol that runs them.

The folder is part of the results: REPORT.md has the command that trains each configuration again.
"""

import shutil
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import tomli_w

from rnn_lab.config import Layer, parse_override, read_toml
from rnn_lab.e3.files import path_of, read_file, read_layers, tables_of
from rnn_lab.e3.schema import TrainingKeys, parse
from rnn_lab.e3.translate import in_steps, share_of, translate
from rnn_lab.errors import ConfigError, did_you_mean
from rnn_lab.lab.plan import SeriesPlan, plan_series
from rnn_lab.lab.series import SUITE as SUITE
from rnn_lab.lab.series import SeriesDir
from rnn_lab.registry import Registry
from rnn_lab.system.atomic import write_text_atomic

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
        ConfigError: one is neither, or is named twice, or `configs` names none.

    """
    known = {**CONFIGS, **ABLATIONS}
    labels = {label.lower(): stem for stem, label in known.items()}
    found = list(CONFIGS) if configs is None else []
    named = [part.strip() for part in (configs or "").split(",") if part.strip()]
    if configs is not None and not named:
        raise ConfigError(f"--configs {configs!r}: names no configuration. Known: {', '.join(known)}")
    for text in named:
        stem = labels.get(text.lower(), text)
        if stem not in known and not text.endswith(".toml"):
            raise ConfigError(
                f"--configs: unknown configuration {text!r}.{did_you_mean(text, list(known))} Known: "
                f"{', '.join(known)}, or the path of a .toml file."
            )
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
        ConfigError: a file says something unfit, another suite is there, or the folder cannot be written.

    """
    unknown = sorted(asked.instead.keys() - set(asked.configs))
    if unknown:
        raise ConfigError(f"--instead {unknown[0]}: not among the configurations: {', '.join(asked.configs)}")
    names = [Path(stem).stem for stem in asked.configs]
    if twice := next((name for name in names if names.count(name) > 1 or f"{name}.toml" == PROTOCOL), None):
        raise ConfigError(f"--configs: a file called {twice}.toml is in the suite already: name yours otherwise")
    texts = {}
    for stem in asked.configs:
        source = _source(stem)
        own = read_file(str(source)).training
        tables = changed(read_toml(source), asked, own, shipped=_is_shipped(stem))
        translate(parse(tables, str(source)), str(source))
        texts[f"{Path(stem).stem}.toml"] = tomli_w.dumps(tables)
    texts[PROTOCOL] = tomli_w.dumps(protocol(folder.resolve(), asked))
    try:
        _write_all(folder, texts)
    except OSError as error:
        raise ConfigError(f"--out {folder.parent}: cannot write there: {error.strerror}") from error
    return folder / PROTOCOL


def _write_all(folder: Path, texts: Mapping[str, str]) -> None:
    """Files by name; those that are there must say the same."""
    for name, text in texts.items():
        path = folder / name
        if path.exists() and path.read_text(encoding="utf-8") != text:
            raise ConfigError(f"{path} is of a suite with other options: repeat those it began with")
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in texts.items():
        write_text_atomic(folder / name, text)


def plan_suite(folder: Path, asked: Asked, found: Registry, overrides: Sequence[str] = ()) -> SeriesPlan:
    """Write a suite into `folder` and plan it; what cannot be planned leaves no files behind.

    Raises:
        ConfigError: see `write_suite` and `plan_series`.

    """
    absent = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        plan = plan_series(str(write_suite(folder, asked)), found, overrides=overrides)
    except BaseException:
        if folder in absent:
            shutil.rmtree(folder, ignore_errors=True)
            for path in absent[1:]:
                with suppress(OSError):  # somebody else's by now
                    path.rmdir()
        raise
    later = tables_of([Layer("-o", parse_override(text)) for text in overrides])
    notes = list(plan.notes)
    for stem in asked.configs:
        if not _is_shipped(stem):
            file = str(folder / f"{Path(stem).stem}.toml")
            notes += [
                f"{label_of(stem)}: {text.removeprefix(f'{file}: ')}" for text in read_layers(file, later).warnings
            ]
    return replace(plan, notes=tuple(notes))


def follow(out: Path) -> None:
    """Let the plan of a suite that was moved or copied to `out` name the files that are there now.

    Raises:
        ConfigError: `out` holds no series.
        RnnLabError: a scheduler works on it.

    """
    folder = (out / SUITE).resolve()
    series = SeriesDir.open(out)
    try:
        plan = series.read_plan()
        before = Path(str(plan["protocol"])).parent
        if before == folder or not (folder / PROTOCOL).is_file():
            return
        tables = _moved(read_toml(folder / PROTOCOL), before, folder)
        write_text_atomic(folder / PROTOCOL, tomli_w.dumps(tables))
        series.write_json(series.plan, _moved(plan, before, folder))
    finally:
        series.unlock()


def _moved(value: Any, before: Path, now: Path) -> Any:
    """The same with every path of a file in the folder `before` as one in `now`."""
    if isinstance(value, Mapping):
        return {key: _moved(item, before, now) for key, item in value.items()}
    if isinstance(value, list):
        return [_moved(item, before, now) for item in value]
    if isinstance(value, str) and value.startswith(f"{before}/"):
        return f"{now}{value.removeprefix(str(before))}"
    return value


def _is_shipped(stem: str) -> bool:
    return stem in CONFIGS or stem in ABLATIONS


def _source(stem: str) -> Path:
    return Path(stem) if stem.endswith(".toml") else path_of(f"e3/{stem}")


def changed(tables: dict[str, Any], asked: Asked, own: TrainingKeys, *, shipped: bool) -> dict[str, Any]:
    """Tables of a file with what was asked for in place of its `own`."""
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
    _budget(training, asked, own)
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


def _budget(training: dict[str, Any], asked: Asked, own: TrainingKeys) -> None:
    """The budget that was asked for, and a warm-up that keeps the share of it that it has in the file, which is `own`.

    Collider begins by steps: under minutes where its warm-up ends in the file.
    """
    if asked.steps is not None:
        training["total_steps"] = asked.steps
    if asked.minutes is not None:
        training.pop("total_steps", None)
        training["max_minutes"] = asked.minutes
        if asked.batch_size is None and not asked.tiny:
            training["batch_size"] = SHORT_BATCH
    if not own.warmup_steps:
        return
    share, steps = share_of(own.warmup_steps, own.total_steps), training.get("total_steps")
    if asked.minutes is not None and own.schedule_type != "none":
        training["warmup_steps"] = share
        if own.use_collider:
            training.setdefault("collider_start_step", in_steps(own.warmup_steps, own.total_steps))
    elif steps is not None and (asked.tiny or steps != own.total_steps):
        training["warmup_steps"] = max(1, round(share * steps)) if steps > 1 else 0


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
