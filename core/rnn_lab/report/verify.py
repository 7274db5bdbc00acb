"""Whether a report still says what its runs say: everything is computed and rendered again, and all of it compared."""

import difflib
import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from rnn_lab.comparison.differences import TOPICS
from rnn_lab.comparison.records import SERIES, read_series
from rnn_lab.errors import RunError
from rnn_lab.report.build import facts
from rnn_lab.report.contestants import FILES
from rnn_lab.report.tensorboard import FILE, FOLDER, encoded
from rnn_lab.report.write import HTML, JSON, MARKDOWN, pages

DRAWING = re.compile(r"<svg.*?</svg>", re.DOTALL)
_CONTEXT = 36
_NUMBERED = re.compile(r"(?<=tfevents)\..*")


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
    written = {name: read_page(target / name) for name in (JSON, MARKDOWN, HTML)}
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
            {name: DRAWING.sub("", text) for name, text in some.items()} for some in (written, expected)
        )
    else:
        expected = pages(report)
    known = json.loads(report.to_json())
    differences += _changed_files(stored, known)
    differences += [f"{JSON}: {place}" for place in _tree(stored, known, "")]
    if not differences:
        differences += [f"{JSON}, {place}" for place in changed_lines(written[JSON], expected[JSON])]
    for name in (MARKDOWN, HTML):
        differences += [f"{name}, {place}" for place in changed_lines(written[name], expected[name])]
    return [*differences, *_events(target, expected[MARKDOWN])]


def uncovered(folder: Path, out: Path | None = None) -> dict[str, int]:
    """Files below `folder` that the report neither is nor was computed from, by pattern, and how many there are."""
    target = out or folder
    runs = {run.path for run in read_series(folder, keep_damaged=True).runs}
    read = {*(run / name for run in runs for name in FILES), *(folder / name for name in (SERIES, "noise.json"))}
    read |= {*(target / name for name in (JSON, MARKDOWN, HTML)), *(target / FOLDER).glob("*")}
    read |= {folder / "jobs" / f"{run.name}.json" for run in runs}
    found: Counter[str] = Counter()
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path not in read and not path.name.endswith(".lock"):
            run = next((parent for parent in path.parents if parent in runs), None)
            within = path.relative_to(run or folder)
            name = f"{within.parts[0]}/" if len(within.parts) > 1 else _NUMBERED.sub(".*", within.name)
            among = "." if run in (None, folder) else run.parent.relative_to(folder) / "*"
            found[f"{among}/{name}".removeprefix("./")] += 1
    return dict(found)


def _events(target: Path, page: str) -> Iterator[str]:
    """Whether TensorBoard's copy of the page holds just that."""
    folder = target / FOLDER
    if not (folder / FILE).is_file():
        yield f"{FOLDER}/{FILE} is missing: `rnn-lab report` writes it"
    elif (written := (folder / FILE).read_bytes()) != (expected := encoded(page)):
        # The head of the file holds lengths and sums, which say nothing to a person.
        texts = (data.partition(b"report/00")[2].decode(errors="replace") for data in (written, expected))
        yield f"{FOLDER}/{FILE}: {_around(*texts)}"
    for path in sorted(folder.glob("*tfevents*")):
        if path.name != FILE:
            yield f"{FOLDER}/{path.name} is no file of the report, and TensorBoard shows it as one: remove it"


def read_page(path: Path) -> str:
    """The text of a report's file.

    Raises:
        RunError: it cannot be read.
    """
    try:
        return path.read_bytes().decode()
    except (OSError, UnicodeDecodeError) as error:
        raise RunError(f"{path}: cannot be read ({error}): `rnn-lab report` writes it") from error


def _changed_files(stored: Any, known: Mapping[str, Any]) -> Iterator[str]:
    """Files of the series and its runs that are not those the report was written from."""
    yield from _other_sums("", stored.get("sources") or {}, known["sources"], "")
    rows = stored.get("runs")
    before = {run["name"]: run for run in rows if isinstance(run, dict) and "name" in run} if rows else {}
    for run in known["runs"]:
        files = before.get(run["name"], {}).get("files", {})
        why = f" ({run['problem']})" if run["problem"] else ""
        yield from _other_sums(f"run {run['name']}: ", files, run["files"], why)


def _other_sums(whose: str, before: Mapping[str, str], now: Mapping[str, str], why: str) -> Iterator[str]:
    for name in sorted(before.keys() | now.keys()):
        if before.get(name) != now.get(name):
            what = "is gone" if name not in now else "is new" if name not in before else "was changed"
            yield f"{whose}{name} {what} since the report was written{why}"


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


def changed_lines(written: str, expected: str) -> Iterator[str]:
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
