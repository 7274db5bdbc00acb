"""The unfinished output of `pack`: byte files that can be cut back, and the journal that says to where."""

import contextlib
import hashlib
import os
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from rnn_lab.data.sidecar import Sidecar, sidecar_path
from rnn_lab.errors import ConfigError, DataError
from rnn_lab.system.atomic import write_text_atomic

_BUFFER = 1 << 22


class PackState(BaseModel):
    """How far a pack has come: items read of each source and, per part, what is durable on disk."""

    model_config = ConfigDict(extra="forbid")

    source: int = 0
    item: int = 0
    train_documents: int = 0
    train_bytes: int = 0
    val_documents: int = 0
    val_bytes: int = 0
    skipped_empty: int = 0
    skipped_not_utf8: int = 0
    source_documents: list[int] = []


class Plan(BaseModel):
    """What must be the same for a pack to go on: a hash of the sources' identities, and the settings."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    sources: str
    column: str
    delimiter: int
    val_fraction: float
    max_bytes: int | None


class Journal(BaseModel):
    """What `<out>.partial.json` holds: the plan, the state, the final sidecar.

    The sidecar is there once all bytes are durable, so that only renames are left to do.
    """

    model_config = ConfigDict(extra="forbid")

    plan: Plan
    state: PackState
    sidecar: Sidecar | None = None


class PackPaths:
    """The files that one pack writes, all in the folder of `out`."""

    def __init__(self, out: str | Path) -> None:
        self.out = Path(out)
        self.val = self.out.with_name(f"{self.out.stem}.val{self.out.suffix}")
        self.partial = self.out.with_name(self.out.name + ".partial")
        self.val_partial = self.val.with_name(self.val.name + ".partial")
        self.journal = sidecar_path(self.partial)

    def all(self) -> frozenset[Path]:
        """Every one of them, resolved, sidecars included."""
        data = (self.out, self.val, self.partial, self.val_partial)
        return frozenset(path.resolve() for name in data for path in (name, sidecar_path(name)))

    def discard(self) -> None:
        """Remove the unfinished files."""
        for path in (self.journal, self.partial, self.val_partial):
            path.unlink(missing_ok=True)

    def read_journal(self) -> Journal | None:
        """Read the journal of an unfinished pack, None where there is none.

        Raises:
            DataError: it cannot be understood.
        """
        try:
            return Journal.model_validate_json(self.journal.read_bytes())
        except FileNotFoundError:
            return None
        except (ValidationError, OSError) as error:
            raise DataError(
                f"{self.journal}: not a journal that this version can resume from; "
                f"pack without resuming, or remove it and {self.partial}"
            ) from error

    def write_journal(self, journal: Journal) -> None:
        """Replace the journal; what it calls durable must have been synced before.

        Raises:
            OSError: the disk is full or the folder not writable.
        """
        write_text_atomic(self.journal, journal.model_dump_json())


class PartWriter:
    """Appends documents to a partial file, from `keep` durable bytes on; what follows them is cut off.

    Raises:
        ConfigError: another process is writing the file.
        DataError: the file is shorter than `keep`.
        OSError: it cannot be opened or read.
    """

    def __init__(self, path: Path, *, keep: int, documents: int, delimiter: int) -> None:
        self.path = path
        self.bytes = keep
        self.documents = documents
        self._delimiter = bytes([delimiter])
        self._pending = bytearray()
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_BINARY", 0), 0o666)
        try:
            _lock(self._file, path)
            self._hash = self._hash_kept(keep)
            os.ftruncate(self._file, keep)
        except BaseException:
            os.close(self._file)
            raise

    def _hash_kept(self, keep: int) -> Any:
        digest = hashlib.sha256()
        left = keep
        while left and (block := os.read(self._file, min(left, _BUFFER))):
            digest.update(block)
            left -= len(block)
        if left:
            raise DataError(
                f"{self.path} is {left} bytes shorter than its journal says; remove it and its journal, then pack again"
            )
        return digest

    def add(self, document: bytes) -> None:
        """Append a non-empty document, after a delimiter unless it is the first.

        Raises:
            OSError: the disk is full.
        """
        piece = self._delimiter + document if self.documents else document
        self._hash.update(piece)
        self._pending += piece
        self.documents += 1
        self.bytes += len(piece)
        if len(self._pending) >= _BUFFER:
            self._flush()

    def _flush(self) -> None:
        with memoryview(self._pending) as data:
            done = 0
            while done < len(data):
                done += os.write(self._file, data[done:])
        self._pending.clear()

    def sync(self) -> None:
        """Make everything added so far durable.

        Raises:
            OSError: the disk is full.
        """
        self._flush()
        os.fsync(self._file)

    @property
    def sha256(self) -> str:
        """Hex digest of all bytes, kept ones included."""
        digest: str = self._hash.hexdigest()
        return digest

    def close(self) -> None:
        """Close the file; what was not synced may be lost."""
        os.close(self._file)


def _lock(descriptor: int, path: Path) -> None:
    try:
        import fcntl
    except ImportError:
        return
    try:
        # Some network file systems have no locks; then the user alone must not start two packs at once.
        with contextlib.suppress(PermissionError, NotADirectoryError):
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise ConfigError(f"{path}: another process is packing into it; wait for it to end") from error
