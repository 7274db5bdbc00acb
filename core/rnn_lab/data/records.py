"""Sources with one document per row: JSON lines, Parquet, and data sets of the Hugging Face hub."""

import json
import re
from collections.abc import Iterable, Iterator
from itertools import count, islice
from pathlib import Path
from typing import Any

from rnn_lab.data import texts
from rnn_lab.data.streams import opened, require
from rnn_lab.errors import ConfigError, DataError

_ROWS = 1024


def _encode(value: Any, where: str, column: str) -> bytes | None:
    """Encode a row's text as UTF-8: null is empty, text with lone surrogates is None."""
    if value is None:
        return b""
    if not isinstance(value, str):
        raise DataError(f"{where}: {column!r} is {type(value).__name__}, not text; choose another column")
    try:
        return value.encode()
    except UnicodeEncodeError:
        return None


def _no_column(where: str, column: str, known: Iterable[str]) -> DataError:
    return DataError(f"{where}: no column {column!r}; available: {', '.join(sorted(known)) or 'none'}")


class JsonLines:
    """A .jsonl file, plain or compressed: an object per line, its text under `column`."""

    kind = "json lines"

    def __init__(self, path: Path, column: str) -> None:
        self._path = path
        self._column = column
        self.name = str(path)
        self.size: int | None = path.stat().st_size
        self.identity = texts.file_identity(path)

    def items(self, start: int) -> Iterator[bytes | None]:
        """One document per line, blank lines as empty ones; see `Source`.

        Raises:
            DataError: a line is not a JSON object with text under the column (with file and line), or the
                file is damaged.
        """
        with opened(self._path) as stream:
            for number in count(1):
                line = stream.readline(texts.MAX_DOCUMENT + 1)
                if not line:
                    return
                if number > start:
                    yield self._parse(line, f"{self._path}:{number}")

    def _parse(self, line: bytes, where: str) -> bytes | None:
        if len(line) > texts.MAX_DOCUMENT:
            raise DataError(f"{where}: the line is longer than {texts.MAX_DOCUMENT} bytes; split the document")
        if not line.strip():
            return b""
        try:
            row = json.loads(line)
        except ValueError as error:
            raise DataError(f"{where}: not valid JSON ({error}); repair or remove the line") from error
        if not isinstance(row, dict):
            raise DataError(f"{where}: a {type(row).__name__}, not an object with a column {self._column!r}")
        if self._column not in row:
            raise _no_column(where, self._column, row)
        return _encode(row[self._column], where, self._column)


class ParquetRows:
    """A .parquet file with text in `column`.

    Raises:
        ConfigError: pyarrow is not installed.
        DataError: the file is damaged, or has no such column of text.
    """

    kind = "parquet"

    def __init__(self, path: Path, column: str) -> None:
        self._arrow = require("pyarrow", f"reading {path}")
        self._parquet = require("pyarrow.parquet", f"reading {path}")
        self._path = path
        self._column = column
        self.name = str(path)
        self.size: int | None = path.stat().st_size
        self.identity = texts.file_identity(path)
        with self._open() as file:
            schema = file.schema_arrow
            if column not in schema.names:
                raise _no_column(self.name, column, schema.names)
            kind = schema.field(column).type
            if str(kind) not in {"string", "large_string", "string_view", "null"}:
                raise DataError(f"{path}: column {column!r} is {kind}, not text; choose another column")

    def _open(self) -> Any:
        try:
            return self._parquet.ParquetFile(self._path)
        except (self._arrow.ArrowException, OSError) as error:
            raise DataError(f"{self._path}: not a readable Parquet file ({error}); copy it again") from error

    def items(self, start: int) -> Iterator[bytes | None]:
        """One document per row; row groups before `start` are not read. See `Source`.

        Raises:
            DataError: the file is damaged.
        """
        with self._open() as file:
            first = 0
            for group in range(file.num_row_groups):
                rows = file.metadata.row_group(group).num_rows
                if first + rows > start:
                    yield from islice(self._group(file, group), max(0, start - first), None)
                first += rows

    def _group(self, file: Any, group: int) -> Iterator[bytes | None]:
        where = f"{self._path}, row group {group}"
        try:
            for batch in file.iter_batches(_ROWS, row_groups=[group], columns=[self._column]):
                for value in batch.column(0).to_pylist():
                    yield _encode(value, where, self._column)
        except (self._arrow.ArrowException, OSError, UnicodeDecodeError) as error:
            raise DataError(f"{where}: cannot be read ({error}); copy it again") from error


class HubRows:
    """A streamed data set, `hf://owner/name[/config][:split]`; the split defaults to train.

    Raises:
        ConfigError: the name is malformed, or the library datasets is not installed.
    """

    kind = "hugging face"

    def __init__(self, name: str, column: str) -> None:
        match = re.fullmatch(r"hf://([^/:]+(?:/[^/:]+)?)(?:/([^/:]+))?(?::([^/:]+))?", name)
        if match is None:
            raise ConfigError(f"{name!r}: expected hf://owner/name[/config][:split]")
        self._path, self._config, split = match.groups()
        self._split = split or "train"
        self._column = column
        self._datasets = require("datasets", f"reading {name}")
        self.name = self.identity = name
        self.size: int | None = None

    def items(self, start: int) -> Iterator[bytes | None]:
        """One document per row, downloaded while reading; see `Source`.

        Raises:
            DataError: the data set or column doesn't exist, or the connection broke.
        """
        number = start
        try:
            rows = self._datasets.load_dataset(self._path, self._config, split=self._split, streaming=True)
            for row in rows.skip(start) if start else rows:
                where = f"{self.name}, row {number}"
                if self._column not in row:
                    raise _no_column(where, self._column, row)
                yield _encode(row[self._column], where, self._column)
                number += 1
        except DataError:
            raise
        # The library raises whatever its file systems and HTTP clients raise.
        except Exception as error:
            raise DataError(
                f"{self.name}, row {number}: cannot be read ({error}); run again to go on from there"
            ) from error
