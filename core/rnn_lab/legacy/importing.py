"""From a source file to run folders that `compare` and `report` read: result.json, and what was printed on the way.

An external run has no config.toml: nobody here can run it again. Its losses stand in points.jsonl as printed, because
metrics.jsonl holds one loss per optimizer step; only a source with a loss for every step gets one. `last100` is set
only where the printed means are exactly that; any other mean stands under `figures` with what is known of it.
"""

import hashlib
import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rnn_lab import __version__
from rnn_lab.comparison.records import wrong_in
from rnn_lab.errors import ConfigError, DataError
from rnn_lab.legacy.found import FoundRun, Source, last100, log_error
from rnn_lab.legacy.tables import read_json, read_json_lines, read_markdown
from rnn_lab.legacy.textlog import FORMATS as LOG_FORMATS
from rnn_lab.legacy.textlog import read_log, recognise
from rnn_lab.protocol import slug
from rnn_lab.registry import Registry
from rnn_lab.system.atomic import write_text_atomic
from rnn_lab.train.metrics import WINDOW, bits_per_byte

FORMATS = (*LOG_FORMATS, "markdown", "json", "jsonl")
_MAX_BYTES = 2**28
_SUFFIXES = {".md": "markdown", ".json": "json", ".jsonl": "jsonl"}
_UNSTATED = "mean over an unstated window"
_OWN = (
    "model", "seed", "params", "tokens", "tokens_per_s", "total_seconds", "peak_memory_bytes", "device", "dtype",
    "steps",
)  # fmt: skip
_MEASURED = {
    "bpb", "date", "error", "flops", "grad", "hours", "id", "loss", "mem", "memory", "mfu", "minutes", "perplexity",
    "ppl", "run", "seconds", "status", "time",
}  # fmt: skip
"""Words in a column's name that tell what came out from what was set."""


@dataclass(frozen=True)
class Imported:
    """An external run, ready to be written: the name of its folder, result.json, and the printed points."""

    name: str
    result: dict[str, Any]
    points: list[dict[str, Any]]
    per_step: bool


def read_source(path: Path, format_name: str) -> Source:
    """Read a file in one of FORMATS, or find out which with `auto`.

    Raises:
        DataError: it cannot be read, no format fits, it holds no run, or a line is malformed (with file and line).
    """
    try:
        if path.stat().st_size > _MAX_BYTES:
            raise DataError(f"{path}: larger than 256 MiB, which no log of figures is")
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        line = path.read_bytes()[: error.start].count(b"\n") + 1
        raise log_error(path, line, "not UTF-8 text") from error
    lines = text.splitlines()
    name = format_name
    if name == "auto":
        found = _SUFFIXES.get(path.suffix.lower()) or recognise(lines)
        if found is None:
            raise DataError(
                f"{path}: no format is recognised: give --format ({', '.join(FORMATS)}); a text log needs step lines"
            )
        name = found
    if name == "markdown":
        source = read_markdown(path, lines)
    elif name == "json":
        source = read_json(path, text)
    elif name == "jsonl":
        source = read_json_lines(path, lines)
    else:
        source = read_log(path, lines, name)
    if not any(run.points or run.figures for run in source.runs):
        kinds = ", ".join(f"{count} {kind}" for kind, count in source.ignored.most_common()) or "nothing"
        raise DataError(f"{path}: read as {name}, it holds no loss of any run (it holds: {kinds})")
    return source


def external_runs(source: Source, found: Registry, window: int | None) -> list[Imported]:
    """The runs of a source as result.json holds them.

    Args:
        source: what was read.
        found: registry that models are looked up in.
        window: optimizer steps that every printed loss is the mean of, as the user says; None when nobody does.

    Raises:
        DataError: a figure that no run can have, such as fewer than 0 steps (with file and line).
    """
    digest = hashlib.sha256(source.path.read_bytes()).hexdigest()
    imported = []
    labels = _labels(source.runs)
    for run, label in zip(source.runs, labels, strict=True):
        per_step = _per_step(run, window)
        value, why = _last100(run, 1 if per_step else window)
        model = _model(run, found)
        stated = {key: run.stated.get(key) for key in _OWN}
        seconds = stated.pop("total_seconds")
        status, error = _status(run)
        result = {
            "status": status,
            "error": error,
            "external": True,
            "label": label,
            **stated,
            "model": model,
            "steps": run.steps,
            "last100": value,
            "last100_from": why,
            "bpb": bits_per_byte(value),
            "clock": {} if seconds is None else {"buckets": {}, "total": seconds, "budget": None},
            "figures": _figures(run, window, per_step),
            "stated": _plain({key: text for key, text in run.stated.items() if key not in _OWN}),
            "source": {
                "file": str(source.path),
                "sha256": digest,
                "format": source.format,
                "lines": [run.first, run.last],
                "date_imported": datetime.now(UTC).isoformat(timespec="seconds"),
                "rnn_lab": __version__,
            },
        }
        if (wrong := wrong_in(result)) is not None:
            raise log_error(source.path, run.first, wrong)
        points = [
            {
                "step": p.step,
                "loss_mean": _finite(p.loss),
                "window": 1 if per_step else window,
                "line": p.line,
                **p.values,
            }
            for p in run.points
        ]
        name = slug(label) if stated["seed"] is None else f"{slug(label)}-s{stated['seed']}"
        imported.append(Imported(name, result, points, per_step))
    return _with_unique_names(imported)


def write_runs(runs: Sequence[Imported], out: Path) -> list[Path]:
    """Write each run as a folder below `out`; their paths. Nothing is written where one of them exists already.

    Raises:
        ConfigError: a folder exists, or cannot be written.
    """
    folders = [out / run.name for run in runs]
    taken = next((folder for folder in folders if folder.exists()), None)
    if taken is not None:
        raise ConfigError(f"{taken} exists already: choose another --out")
    try:
        for run, folder in zip(runs, folders, strict=True):
            folder.mkdir(parents=True)
            if run.points:
                _write_lines(folder / "points.jsonl", run.points)
            if run.per_step:
                _write_lines(folder / "metrics.jsonl", [_step_line(point, run.result) for point in run.points])
            # Last, because a folder with a result is a run.
            write_text_atomic(folder / "result.json", json.dumps(run.result, indent=1, allow_nan=False) + "\n")
    except OSError as error:
        raise ConfigError(f"--out {out}: cannot write there: {error.strerror}") from error
    return folders


def _write_lines(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    write_text_atomic(path, "".join(json.dumps(row, allow_nan=False) + "\n" for row in rows))


def _step_line(point: dict[str, Any], result: dict[str, Any]) -> dict[str, Any]:
    """A line of metrics.jsonl; bytes are known where the source states its batch."""
    stated = result["stated"]
    per_step = stated["batch_size"] * stated["seq_len"] if {"batch_size", "seq_len"} <= stated.keys() else None
    return {
        "step": point["step"],
        "tokens": None if per_step is None else per_step * point["step"],
        "flops": None,
        "seconds": point.get("seconds"),
        "loss": point["loss_mean"],
        "grad_norm": point.get("grad_norm"),
        "lr": point.get("lr"),
    }


def _per_step(run: FoundRun, window: int | None) -> bool:
    """Whether every step from 1 on has a finite loss of its own."""
    consecutive = bool(run.points) and [p.step for p in run.points] == list(range(1, len(run.points) + 1))
    return consecutive and window in (None, 1) and not run.diverged and run.steps == len(run.points)


def _last100(run: FoundRun, window: int | None) -> tuple[float | None, str | None]:
    """Our last100 and where it comes from; both None where the source does not give it."""
    if run.points:
        value = last100(run, window)
        if value is None or window is None:
            return None, None
        many = f"the last {WINDOW // window} printed means" if window < WINDOW else "the last printed mean"
        return value, f"{many}, each of {window} steps" if window > 1 else f"the losses of the last {WINDOW} steps"
    if window == WINDOW and len(run.figures) == 1 and not run.diverged:
        ((name, (value, line)),) = run.figures.items()
        return value, f"{name} in line {line}, a mean of {WINDOW} steps as given by --window"
    return None, None


def _labels(runs: Sequence[FoundRun]) -> list[str]:
    """What to call each run: seeds of one label are one model, unless something else that was set differs, too."""
    tables = [_set(run) for run in runs]
    labels = []
    for run, table in zip(runs, tables, strict=True):
        alike = [other for known, other in zip(runs, tables, strict=True) if known.label == run.label]
        seeds = [other for other in alike if other is not None]
        differs = [key for key, value in (table or {}).items() if any(other.get(key) != value for other in seeds)]
        labels.append(" ".join([run.label, *(f"{key}={(table or {})[key]}" for key in differs)]))
    return labels


def _set(run: FoundRun) -> dict[str, Any] | None:
    """What the source says was set, of a run whose seed it states; None for another, which is in no group."""
    if "seed" not in run.stated:
        return None
    kept = {key: run.stated[key] for key in ("table", "params", "printed_params", "steps") if key in run.stated}
    other = run.stated.get("other", {}).items()
    return kept | {key: value for key, value in other if not _MEASURED & set(re.split(r"[^a-z]+", key.lower()))}


def _figures(run: FoundRun, window: int | None, per_step: bool) -> dict[str, Any]:
    """Losses by the source's names, with what is known of the mean that each is."""
    given = _UNSTATED if window is None else f"mean of {window} steps, as given by --window"
    if per_step:
        given = "the loss of one step"
    figures: dict[str, Any] = {}
    if run.points:
        final = run.points[-1]
        figures["last printed loss"] = {
            "loss": _finite(final.loss),
            "is": given,
            "step": final.step,
            "line": final.line,
        }
    for name, (loss, line) in run.figures.items():
        same = not run.points or loss == run.points[-1].loss
        # What is called last100 may be a mean of 100 log lines that are means themselves.
        unknown = f"{_UNSTATED}; the source calls it {name}"
        known = given if same and (window is not None or per_step) else unknown
        figures[name] = {"loss": _finite(loss), "is": known, "line": line}
    return figures


def _status(run: FoundRun) -> tuple[str, str | None]:
    """Status of result.json and a message, from what the source says."""
    if run.diverged:
        return "diverged", run.error or "a printed loss is not finite"
    if run.error is not None:
        memory = "out of memory" in run.error.lower()
        return "oom" if memory else "failed", run.error
    if not run.complete:
        return "interrupted", "the source does not say that the run came to its end"
    return "ok", None


def _model(run: FoundRun, found: Registry) -> str:
    """Registered model that the source means, else its own name for it."""
    stated = str(run.stated.get("model", run.label))
    word = stated.split()[0] if stated.split() else stated
    for name in (f"e{stated}" if stated[:1].isdigit() else stated, word, word.partition("_")[0]):
        key = name.lower()
        if key in found.models or key in found.aliases:
            return found.find_model(key)[0].name
    return stated


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _plain(value: Any) -> Any:
    """What a source states, null where it states a number that is not finite."""
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return _finite(value) if isinstance(value, float) else value


def _with_unique_names(runs: list[Imported]) -> list[Imported]:
    """Runs with one label in one source, told apart by their number."""
    seen: dict[str, int] = {}
    unique = []
    for run in runs:
        seen[run.name] = seen.get(run.name, 0) + 1
        suffix = f"-{seen[run.name]}" if seen[run.name] > 1 else ""
        unique.append(Imported(run.name + suffix, run.result, run.points, run.per_step))
    return unique
