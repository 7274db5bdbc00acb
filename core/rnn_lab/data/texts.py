"""What a source of documents is, and the plain ones: text files and folders."""

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

from rnn_lab.data.streams import opened
from rnn_lab.errors import DataError

MAX_DOCUMENT = 1 << 30


class Source(Protocol):
    """A sequence of documents that can be read from the middle.

    `name` and `kind` are for people, `size` is in bytes or None, `identity` changes when the documents may
    have changed.
    """

    name: str
    kind: str
    size: int | None
    identity: str

    def items(self, start: int) -> Iterator[bytes | None]:
        """Documents from number `start` on, as UTF-8; b"" is an empty one, None one that is not UTF-8.

        Raises:
            DataError: the source is damaged, or a document is not where it should be.
        """
        ...


def file_identity(path: Path) -> str:
    """Path, size in bytes and time of change in ns."""
    state = path.stat()
    return f"{path} {state.st_size} {state.st_mtime_ns}"


def is_utf8(document: bytes) -> bool:
    """Whether `document` decodes as UTF-8."""
    try:
        document.decode()
    except UnicodeDecodeError:
        return False
    return True


class TextFile:
    """One file, plain or compressed, that is one document."""

    kind = "text file"

    def __init__(self, path: Path) -> None:
        self._path = path
        self.name = str(path)
        self.size: int | None = path.stat().st_size
        self.identity = file_identity(path)

    def items(self, start: int) -> Iterator[bytes | None]:
        """Its text; see `Source`.

        Raises:
            DataError: it is damaged, not UTF-8, or larger than 1 GiB.
        """
        if start == 0:
            document = read_document(self._path)
            if not is_utf8(document):
                raise DataError(f"{self._path} is not UTF-8 text; give text, or use it with --data as it is")
            yield document


class TextFolder:
    """Files of a folder, one document each, in the order of their paths."""

    kind = "text folder"

    def __init__(self, folder: Path, paths: list[Path]) -> None:
        self._paths = paths
        self.name = str(folder)
        self.size: int | None = sum(path.stat().st_size for path in paths)
        digest = hashlib.sha256()
        for path in paths:
            digest.update(file_identity(path).encode() + b"\0")
        self.identity = f"{folder} {digest.hexdigest()}"

    def items(self, start: int) -> Iterator[bytes | None]:
        """One document per file; see `Source`.

        Raises:
            DataError: a file can't be read or is larger than 1 GiB.
        """
        for path in self._paths[start:]:
            document = read_document(path)
            yield document if is_utf8(document) else None


def read_document(path: Path) -> bytes:
    """Read the whole file `path`, decompressed.

    Raises:
        DataError: it can't be read, is damaged, or is larger than 1 GiB.
    """
    with opened(path) as stream:
        document = stream.read(MAX_DOCUMENT + 1)
    if len(document) > MAX_DOCUMENT:
        raise DataError(
            f"{path} is one document of more than {MAX_DOCUMENT} bytes; "
            "use it unpacked with --data as it is, or split it into documents"
        )
    return document
