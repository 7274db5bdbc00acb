"""Results as tables: Markdown documents, JSON lists and objects, and JSON lines of steps."""

import json
import math
import re
from bisect import bisect_right
from collections.abc import Iterator, Mapping
from json.scanner import py_make_scanner  # type: ignore[attr-defined]
from pathlib import Path
from typing import Any

from rnn_lab.legacy.found import FoundRun, Point, Source, count_of_steps, log_error, number

_LABEL = ("model", "name", "label", "variant", "config", "gating")
_LOSS = ("loss", "last100", "last-100 loss", "last-10 loss", "last100_loss", "last_100_loss", "final_loss",
         "avg_loss", "last100_avg", "best loss")  # fmt: skip
_RATE = ("tok/s", "throughput", "tok_s", "tokens_per_s", "tokens_per_sec", "tok_per_sec", "toks_per_sec")
_STEPS = ("steps", "step", "final_step")
_LOSSES = ("losses", "step_losses")
_SEPARATOR = re.compile(r"\|?[\s:|-]+\|?")


def read_markdown(path: Path, lines: list[str]) -> Source:
    """A run for every row of every table that has a column with a model's name and one with a loss.

    Raises:
        LogError: a row has another number of cells than its head, or a loss that is no number.
    """
    source = Source(path, "markdown")
    heading, head, fenced = "", None, False
    titles: list[str] = []
    for at, line in enumerate(lines, 1):
        text = line.strip()
        if text.startswith("```"):
            fenced = not fenced
        if fenced or not text.startswith("|"):
            head = None
            if text.startswith("#") and not fenced:
                heading = text.lstrip("# ")
            source.ignore("code" if fenced else "heading" if text.startswith("#") else "text" if text else "blank", at)
            continue
        cells = [cell.strip().strip("*`").strip() for cell in text.strip("|").split("|")]
        if head is None:
            titles = [cell.lower() for cell in cells]
            head = [title.partition(" (")[0] for title in titles]
            source.ignore("head of a table", at)
        elif _SEPARATOR.fullmatch(text):
            source.ignore("rule of a table", at)
        elif _first(head, _LABEL) is None or _first(head, _LOSS) is None:
            source.ignore("row of a table without model and loss", at)
        elif len(cells) != len(head):
            raise log_error(path, at, f"{len(cells)} cells under {len(head)} columns: {text!r:.90}")
        else:
            table = dict(zip(head, cells, strict=True))
            if all(_says_nothing(table[key]) for key in head if key in _LOSS):
                source.ignore("row whose loss is no number", at)
            else:
                source.runs.append(_row(path, at, heading, table, dict(zip(head, titles, strict=True))))
    return source


class _Placing(json.JSONDecoder):
    """A decoder that knows the lines of every object: `lines[id(object)]` is its first and its last."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.lines: dict[int, tuple[int, int]] = {}
        self._starts = [0, *(match.end() for match in re.finditer("\n", text))]
        plain: Any = self.parse_object  # type: ignore[has-type]

        def placed(text_and_start: tuple[str, int], *args: Any) -> tuple[Any, int]:
            found, end = plain(text_and_start, *args)
            self.lines[id(found)] = (self._line(text_and_start[1] - 1), self._line(end - 1))
            return found, end

        self.parse_object = placed
        self.scan_once = py_make_scanner(self)

    def _line(self, at: int) -> int:
        return bisect_right(self._starts, at)


def read_json(path: Path, text: str) -> Source:
    """A run for every object of a list, or of an object of objects, that has a loss.

    Raises:
        LogError: it is not JSON, or a figure is no number.
    """
    source = Source(path, "json")
    try:
        decoder = _Placing(text)
        data = decoder.decode(text)
    except (ValueError, RecursionError) as error:
        raise log_error(path, getattr(error, "lineno", 1), f"not JSON: {error}") from error
    for label, row in _objects(data, path.stem):
        first, last = decoder.lines[id(row)]
        lowered = {str(key).lower(): value for key, value in row.items()}
        if _first(list(lowered), (*_LOSS, *_LOSSES)) is None:
            source.ignore("object without a loss", first)
            continue
        name = _first(list(lowered), _LABEL)
        run = _row(path, first, "", lowered if name is not None else {"model": label, **lowered})
        run.last = last
        losses = _first(list(lowered), _LOSSES)
        if losses is not None:
            run.points = list(_points(path, first, lowered[losses]))
            run.stated.setdefault("steps", len(lowered[losses]))
        if not run.points and not run.figures:
            source.ignore("object whose loss is no number", first)
            continue
        source.runs.append(run)
    return source


def read_json_lines(path: Path, lines: list[str]) -> Source:
    """One run whose lines are objects with `step` and `loss`.

    Raises:
        LogError: a line is not such an object, or steps go backwards.
    """
    source = Source(path, "jsonl")
    run = FoundRun(path.stem, 1, max(1, len(lines)))
    for at, line in enumerate(lines, 1):
        if not line.strip():
            source.ignore("blank", at)
            continue
        try:
            row = json.loads(line)
            printed, step = row["loss"], row["step"]
            loss = None if printed is None else float("no loss" if isinstance(printed, bool) else printed)
        except (ValueError, TypeError, KeyError, RecursionError) as error:
            raise log_error(path, at, f"expected an object with step and loss: {line!r:.90}") from error
        step = _steps(path, at, "step", step)
        if run.steps is not None and step <= run.steps:
            raise log_error(path, at, f"step {step} after step {run.steps}")
        run.stated["steps"] = step
        if loss is None:
            source.ignore("step whose loss is null", at)
            continue
        known = ("lr", "grad_norm", "tokens_per_s", "seconds")
        run.points.append(Point(step, loss, at, {k: float(row[k]) for k in known if _is_finite(row.get(k))}))
    source.runs = [run] if run.points else []
    return source


def _row(
    path: Path, at: int, heading: str, table: Mapping[str, Any], titles: Mapping[str, str] | None = None
) -> FoundRun:
    """A run from the cells of one row; every column that has no name of ours is kept under its own."""
    used = {name: _first(list(table), keys) for name, keys in (("label", _LABEL), ("rate", _RATE), ("steps", _STEPS))}
    label = str(table[str(used["label"])])
    run = FoundRun(label, at, at, complete=True, stated={"table": heading} if heading else {})
    for key, value in table.items():
        if key in _LOSS and not (value is None or (isinstance(value, str) and _says_nothing(value))):
            run.figures[(titles or {}).get(key, key)] = (_loss(path, at, key, value), at)
        elif key == used["rate"]:
            run.stated["tokens_per_s"] = _count(path, at, key, str(value).partition(" tok/s")[0])
        elif key == "params":
            run.stated["printed_params" if isinstance(value, str) else "params"] = value
        elif key == used["steps"]:
            run.stated["steps"] = _steps(path, at, key, value)
        elif key == "seed" and str(value).isdecimal():
            run.stated["seed"] = int(value)
        elif key != used["label"] and key not in _LOSSES and key != "model":
            run.stated.setdefault("other", {})[key] = value
    run.stated["model"] = label
    return run


def _says_nothing(cell: str) -> bool:
    """Whether a cell holds words, a dash or nothing: no digit, and no `nan`."""
    return not re.search(r"[0-9]|nan|inf\b", cell.lower())


def _loss(path: Path, at: int, key: str, value: Any) -> float:
    """A printed loss; NaN for `nan`."""
    try:
        return number(str(value))
    except ValueError as error:
        raise log_error(path, at, f"{key} = {value!r} is no loss") from error


def _count(path: Path, at: int, key: str, value: Any) -> float:
    try:
        return number(str(value))
    except ValueError as error:
        raise log_error(path, at, f"{key} = {value!r} is no number") from error


def _steps(path: Path, at: int, key: str, value: Any) -> int:
    try:
        return count_of_steps(value)
    except ValueError as error:
        raise log_error(path, at, f"{key} = {value!r:.40}: {error}") from error


def _objects(data: Any, stem: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Objects that may be runs, each with a name."""
    if isinstance(data, list):
        yield from ((f"{stem}-{i}", row) for i, row in enumerate(data, 1) if isinstance(row, Mapping))
    elif isinstance(data, Mapping):
        inner = [(str(key), row) for key, row in data.items() if isinstance(row, Mapping)]
        is_run = _first([str(key).lower() for key in data], (*_LOSS, *_LOSSES)) is not None
        yield from [(stem, data)] if is_run or not inner else inner


def _points(path: Path, at: int, losses: Any) -> Iterator[Point]:
    """Losses of single steps, the first of step 1; null is a step whose loss nobody kept."""
    if not isinstance(losses, list):
        raise log_error(path, at, "losses: expected a list with one loss per step")
    for step, loss in enumerate(losses, 1):
        if loss is None:
            continue
        if not _is_number(loss):
            raise log_error(path, at, f"losses[{step - 1}] = {loss!r:.40} is no number")
        yield Point(step, float(loss), at)


def _first(names: list[str], wanted: tuple[str, ...]) -> str | None:
    return next((name for name in wanted if name in names), None)


def _is_finite(value: object) -> bool:
    return _is_number(value) and math.isfinite(float(str(value)))


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
