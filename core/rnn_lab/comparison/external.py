"""Published figures as rows beside ours: what a preset's document printed, in numbers, with its caveats.

Nothing is copied: a protocol names presets, and the figures are read from the text that they keep.
"""

import re
from collections.abc import Iterator
from typing import Any

from rnn_lab.errors import ConfigError
from rnn_lab.presets import Preset, Printed, find_preset, printed_count
from rnn_lab.protocol import Entry, External, Protocol
from rnn_lab.registry import Registry

_FIGURE = re.compile(r"~?([0-9]+(?:\.[0-9]+)?)\b")


def external_rows(protocol: Protocol, entries: list[Entry], found: Registry) -> tuple[list[dict[str, Any]], list[str]]:
    """Rows for the runs in `entries`, and for what belongs to no run; and why a row is missing.

    A row has `label`, `document`, `table`, `run` (label of ours, or None), `loss` (nats per byte; None where the
    document prints no number), `bpb`, `tokens_per_s`, `params`, `caveat`, `history` (how it was really run) and
    `preset`.
    """
    wanted = [External(preset=name, run=entry.named) for entry in entries for name in _presets_of(entry)]
    labels = {entry.named for entry in entries}
    wanted += [row for row in protocol.external if row.run is None or row.run in labels]
    rows: list[dict[str, Any]] = []
    notes = []
    for external in wanted:
        try:
            rows += _rows(external, protocol.series.tables, found)
        except ConfigError as error:
            notes.append(f"published figures left out: {error}")
    return rows, notes


def _presets_of(entry: Entry) -> tuple[str, ...]:
    return entry.external or ((entry.preset,) if entry.preset else ())


def _rows(external: External, tables: tuple[str, ...], found: Registry) -> Iterator[dict[str, Any]]:
    own = external.model_dump(mode="json")
    if external.preset is None:
        yield {**own, "table": None, "history": None}
        return
    preset = find_preset(external.preset, found)
    given = {key: value for key, value in own.items() if value is not None}
    for printed in preset.row.printed:
        if not tables or printed.table in tables:
            yield {**own, **_printed_row(preset, printed), **given}


def _printed_row(preset: Preset, printed: Printed) -> dict[str, Any]:
    params = preset.row.params
    if params is None and printed.params is not None:
        params = printed_count(printed.params)[0]
    return {
        "label": printed.row,
        "document": preset.document.document,
        "table": printed.table,
        "loss": printed_loss(printed.loss),
        "tokens_per_s": printed_rate(printed.tok_s),
        "params": params,
        "caveat": " ".join(preset.notes) or None,
        "history": preset.history and " ".join(preset.history.split()),
    }


def printed_loss(text: str | None) -> float | None:
    """Nats per byte from `1.4463` or `1.686 (last 10)`; None for `NaN`, words and nothing."""
    match = _FIGURE.match(text or "")
    return float(match[1]) if match else None


def printed_rate(text: str | None) -> float | None:
    """Bytes per second from `~104K`, `366K` or `78,657`; None where there is none."""
    if text is None:
        return None
    try:
        return float(printed_count(text)[0])
    except ValueError:
        return None
