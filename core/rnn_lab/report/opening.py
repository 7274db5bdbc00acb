"""The head of a report: what the series is called, what its runs were given, and the bytes that they read."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rnn_lab.comparison.records import RunRecord, Series
from rnn_lab.report.contestants import Contestant
from rnn_lab.report.facts import Corpus
from rnn_lab.train.budget import budget_text

_UNTOLD = ("data.path", "data.val_path")
"""Overrides that change no setting: the head names the data itself."""


def title(series: Series, field: Sequence[Contestant]) -> str:
    """Name of the protocol, a file's without its place; the contestants where there is none."""
    if series.meta.get("protocol"):
        return Path(str(series.meta["protocol"])).stem
    labels = [one.label for one in field]
    more = f" and {len(labels) - 3} more" if len(labels) > 4 else ""
    return ", ".join(labels[: 3 if more else 4]) + more or "No finished run"


def description(meta: Mapping[str, Any]) -> str:
    """The protocol's own words where the series followed it; else what was changed, and those words as its words."""
    words = str(meta.get("description") or "")
    given = (str(text).partition("=") for text in meta.get("overrides") or ())
    changed = [f"{key} = {value}" for key, _, value in given if key not in _UNTOLD]
    if not changed:
        return words
    unchanged = f" As written the protocol is: {words}" if words else ""
    return f"Changed from the protocol: {', '.join(changed)}.{unchanged}"


def budgets(field: Sequence[Contestant]) -> tuple[str, ...]:
    """The budgets that runs which count ended by, as their own configurations state them; imported runs have none."""
    runs = [run for one in field for run in one.runs if not run.external]
    return tuple(dict.fromkeys(budget_text(run.config.get("train", {})) for run in runs))


def corpora(field: Sequence[Contestant]) -> tuple[Corpus, ...]:
    """What the runs that count read, by the fingerprint of the bytes; nothing for runs that do not say."""
    read: dict[tuple[str, int], list[RunRecord]] = {}
    for run in (run for one in field for run in one.runs):
        data = run.result.get("data") or {}
        if data.get("fingerprint") and data.get("bytes"):
            read.setdefault((str(data["fingerprint"]), int(data["bytes"])), []).append(run)
    found = []
    for (fingerprint, size), runs in read.items():
        tokens = [int(run.result["tokens"]) for run in runs if run.result.get("tokens") is not None]
        found.append(
            Corpus(
                name=" or ".join(dict.fromkeys(_name(run) for run in runs)),
                bytes=size,
                fingerprint=fingerprint,
                read=(min(tokens), max(tokens)) if tokens else None,
                passes=(min(tokens) / size, max(tokens) / size) if tokens else None,
                runs=", ".join(run.name for run in runs),
            )
        )
    return tuple(found)


def _name(run: RunRecord) -> str:
    """Name of the file, without its place, and whether it is the corpus that comes with Python."""
    name = Path(str(run.result["data"].get("path") or "without a name")).name
    return f"{name} (embedded corpus)" if "embedded corpus" in run.origins.get("data.path", "") else name
