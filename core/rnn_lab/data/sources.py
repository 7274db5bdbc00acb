"""The choice of readers for the names that a user gives to `pack`."""

import os
from collections.abc import Iterable
from pathlib import Path

from rnn_lab.data.records import HubRows, JsonLines, ParquetRows
from rnn_lab.data.texts import Source, TextFile, TextFolder
from rnn_lab.errors import DataError

_JSON_LINES = tuple(ending + packing for ending in (".jsonl", ".ndjson") for packing in ("", ".gz", ".zst"))
_HUB = "hf://"


def open_sources(names: Iterable[str | Path], column: str, exclude: frozenset[Path]) -> list[Source]:
    """One or more sources per name: a file, a folder, or `hf://owner/name[/config][:split]`.

    A folder gives its text files as one source, then each .jsonl and .parquet file (compressed ones too) as
    its own, sorted by path; hidden files and the resolved paths in `exclude` are left out. `column` names the
    field of JSON lines, Parquet and hub rows that holds the text.

    Raises:
        DataError: a name does not exist, a folder holds no files, or nothing was named.
        ConfigError: an optional library is missing, or a hub name is malformed.
    """
    found: list[Source] = []
    for name in names:
        if str(name).startswith(_HUB):
            found.append(HubRows(str(name), column))
            continue
        path = Path(name)
        if path.is_dir():
            found += _open_folder(path, column, exclude)
        elif path.is_file():
            found.append(_open_records(path, column) or TextFile(path))
        else:
            raise DataError(f"{path} is neither a file nor a folder; check the path")
    if not found:
        raise DataError("nothing to pack; name files, folders or hf:// data sets")
    return found


def _open_records(path: Path, column: str) -> Source | None:
    name = path.name.lower()
    if name.endswith(_JSON_LINES):
        return JsonLines(path, column)
    if name.endswith(".parquet"):
        return ParquetRows(path, column)
    return None


def _open_folder(folder: Path, column: str, exclude: frozenset[Path]) -> list[Source]:
    texts: list[Path] = []
    records: list[Source] = []
    for path in _walk(folder):
        if path.resolve() in exclude:
            continue
        if source := _open_records(path, column):
            records.append(source)
        else:
            texts.append(path)
    if not texts and not records:
        raise DataError(f"{folder} holds no files (hidden ones don't count); check the path")
    return [TextFolder(folder, texts), *records] if texts else records


def _walk(folder: Path) -> list[Path]:
    found: list[Path] = []
    for top, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        found += [Path(top, name) for name in files if not name.startswith(".")]
    return sorted((path for path in found if path.is_file()), key=lambda path: path.as_posix())
