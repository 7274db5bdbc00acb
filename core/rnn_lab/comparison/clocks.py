"""Which jobs of a series shared a CPU, by the times that its scheduler recorded."""

import json
from collections.abc import Iterator, Mapping
from contextlib import suppress
from datetime import datetime, timedelta
from itertools import product
from pathlib import Path
from typing import Any

Span = tuple[datetime, datetime]
_SECOND = timedelta(seconds=1)  # starts are recorded to the second


def beside(jobs: Path, job: Mapping[str, Any]) -> tuple[str, ...] | None:
    """Names of the jobs in the folder `jobs` that ran on the CPU while an attempt of `job` did.

    None where `job` has no such attempt on record.
    """
    own = _spans(job)
    if not own:
        return None
    found = []
    for path in sorted(jobs.glob("*.json")):
        other: Any = {}
        with suppress(OSError, ValueError):
            other = json.loads(path.read_text(encoding="utf-8"))
        if path.stem == job.get("name") or not isinstance(other, dict):
            continue
        if any(min(ends) - max(starts) > _SECOND for starts, ends in _pairs(own, _spans(other))):
            found.append(path.stem)
    return tuple(found)


def _pairs(own: list[Span], other: list[Span]) -> Iterator[tuple[Span, Span]]:
    """Both begins and both ends of each pair of attempts."""
    for (began, ended), (start, end) in product(own, other):
        yield (began, start), (ended, end)


def _spans(job: Mapping[str, Any]) -> list[Span]:
    """Begin and end of each attempt on a CPU that has both."""
    spans = []
    for attempt in job.get("attempts") or ():
        with suppress(KeyError, TypeError, ValueError, OverflowError):
            if str(attempt["place"]).startswith("cpu"):
                began = datetime.fromisoformat(attempt["started"])
                spans.append((began, began + timedelta(seconds=attempt["seconds"])))
    return spans
