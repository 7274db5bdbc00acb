"""Whether a report still says what its runs say: everything is computed and rendered again, and all of it compared."""

import difflib
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from rnn_lab.differences import TOPICS
from rnn_lab.errors import RunError
from rnn_lab.report.build import facts
from rnn_lab.report.write import HTML, JSON, MARKDOWN, pages

_DRAWING = re.compile(r"<svg.*?</svg>", re.DOTALL)
_CONTEXT = 36


def verify(folder: Path, out: Path | None = None, *, other_versions: bool = False) -> list[str]:
    """Every place where the report in `out` (default: `folder`) differs from what the runs in `folder` give.

    Args:
        folder: the runs.
        out: folder of the report.
        other_versions: accept a report made with other versions of the libraries; drawings are not compared then.

    Raises:
        RunError: there is no report, or there are no runs.
    """
    target = out or folder
    written = {name: _read(target / name) for name in (JSON, MARKDOWN, HTML)}
    try:
        stored = json.loads(written[JSON])
        allowed = frozenset(stored["allowed"])
        made_with = {str(name): str(version) for name, version in stored["made_with"].items()}
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        return [f"{JSON}: not the facts of a report ({type(error).__name__}: {error})"]
    report = facts(folder, allowed & TOPICS.keys())
    differences: list[str] = []
    if made_with != report.made_with and other_versions:
        report = replace(report, made_with=made_with)
        expected = pages(report)
        written, expected = (
            {name: _DRAWING.sub("", text) for name, text in some.items()} for some in (written, expected)
        )
    else:
        expected = pages(report)
    known = json.loads(report.to_json())
    differences += _changed_files(stored, known)
    differences += [f"{JSON}: {place}" for place in _tree(stored, known, "")]
    if not differences:
        differences += [f"{JSON}, {place}" for place in _lines(written[JSON], expected[JSON])]
    for name in (MARKDOWN, HTML):
        differences += [f"{name}, {place}" for place in _lines(written[name], expected[name])]
    return differences


def _read(path: Path) -> str:
    try:
        return path.read_bytes().decode()
    except (OSError, UnicodeDecodeError) as error:
        raise RunError(f"{path}: cannot be read ({error}): `rnn-lab report` writes it") from error


def _changed_files(stored: Any, known: Mapping[str, Any]) -> Iterator[str]:
    """Files of runs that are not those the report was written from."""
    rows = stored.get("runs")
    before = {run["name"]: run for run in rows if isinstance(run, dict) and "name" in run} if rows else {}
    for run in known["runs"]:
        files = before.get(run["name"], {}).get("files", {})
        for name in sorted(files.keys() | run["files"].keys()):
            if files.get(name) != run["files"].get(name):
                what = "is gone" if name not in run["files"] else "is new" if name not in files else "was changed"
                why = f" ({run['problem']})" if run["problem"] else ""
                yield f"run {run['name']}: {name} {what} since the report was written{why}"


def _tree(stored: Any, known: Any, where: str) -> Iterator[str]:
    """Places in two JSON values that differ, such as `standings[2].loss.value`."""
    if isinstance(stored, dict) and isinstance(known, dict):
        for key in [*known, *(key for key in stored if key not in known)]:
            place = f"{where}.{key}" if where else str(key)
            if key not in stored or key not in known:
                yield f"{place} is {'missing' if key in known else 'not what the runs give'}"
            else:
                yield from _tree(stored[key], known[key], place)
    elif isinstance(stored, list) and isinstance(known, list):
        if len(stored) != len(known):
            yield f"{where} has {len(stored)} entries, the runs give {len(known)}"
        for i, (old, new) in enumerate(zip(stored, known, strict=False)):
            yield from _tree(old, new, f"{where}[{i}]")
    elif stored != known or type(stored) is not type(known):
        yield f"{where} is {_short(stored)}, the runs give {_short(known)}"


def _lines(written: str, expected: str) -> Iterator[str]:
    """Lines that differ, by number, with what stands around the first difference within them."""
    old, new = written.split("\n"), expected.split("\n")
    for tag, a, b, c, d in difflib.SequenceMatcher(None, old, new, autojunk=False).get_opcodes():
        if tag == "replace" and b - a == d - c:
            for i, (left, right) in enumerate(zip(old[a:b], new[c:d], strict=True)):
                yield f"line {a + i + 1}: {_around(left, right)}"
        elif tag != "equal":
            yield f"line {a + 1}: {b - a} lines where the runs give {d - c}"


def _around(left: str, right: str) -> str:
    """The first difference of two lines, in context."""
    at = next((i for i, (a, b) in enumerate(zip(left, right, strict=False)) if a != b), min(len(left), len(right)))
    start = max(0, at - _CONTEXT)
    return f"{left[start : at + _CONTEXT]!r} where the runs give {right[start : at + _CONTEXT]!r}"


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 120 else f"{text[:117]}..."
