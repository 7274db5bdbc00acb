"""The default corpus: text of this machine's Python standard library, so that a first run needs no data."""

import hashlib
import importlib
import os
import platform
import secrets
import shutil
import sysconfig
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from rnn_lab.data.sidecar import DELIMITER, Sidecar, SourceInfo, read_sidecar, sidecar_path, write_sidecar
from rnn_lab.errors import DataError
from rnn_lab.system.atomic import fsync_dir
from rnn_lab.system.paths import cache_dir

FORMAT_VERSION = 1
MIN_BYTES = 6_000_000
MAX_BYTES = 32_000_000
_VAL_MODULUS = 50
_TRAIN, _VAL = "train.bin", "val.bin"
_TEST_FOLDERS = frozenset({"test", "tests", "idle_test"})
_FOREIGN_FOLDERS = frozenset({"site-packages", "dist-packages", "__pycache__"})
_STALE_SECONDS = 3600


@dataclass(frozen=True, slots=True)
class _Document:
    name: str
    text: bytes

    @property
    def digest(self) -> bytes:
        return hashlib.sha256(self.text).digest()

    @property
    def order(self) -> bytes:
        return hashlib.sha256(b"rnn-lab default corpus\0" + self.name.encode()).digest()


def default_corpus(*, verify: bool = False) -> Path:
    """Path of the default corpus's `train.bin` in the cache; builds it (a few seconds) where it isn't there.

    Sources and texts of the standard library, one document per file, joined with 0x1e; about 2 % of the
    documents are the validation part that the sidecar names. It is deterministic for one installation of
    Python. The size is checked at each call, the sha256 only with `verify`; a damaged copy is built again.
    Several processes may call this at once.

    Raises:
        DataError: the standard library has no sources (a stripped Python), or the cache can't be written.
    """
    folder = cache_dir() / f"default-{platform.python_version()}-{FORMAT_VERSION}"
    if not _usable(folder, verify):
        try:
            _build(folder)
        except OSError as error:
            raise DataError(
                f"cannot write the default corpus to {folder} ({error.strerror}); "
                "set RNN_LAB_CACHE to a folder with room, or give --data"
            ) from error
    return folder / _TRAIN


def _usable(folder: Path, verify: bool) -> bool:
    try:
        train, val = read_sidecar(folder / _TRAIN), read_sidecar(folder / _VAL)
    except DataError:
        return False
    if train is None or val is None or train.validation_sha256 != val.sha256:
        return False
    return all(_intact(folder / name, part, verify) for name, part in ((_TRAIN, train), (_VAL, val)))


def _intact(path: Path, sidecar: Sidecar, verify: bool) -> bool:
    if not path.is_file() or path.stat().st_size != sidecar.bytes:
        return False
    return not verify or hashlib.sha256(path.read_bytes()).hexdigest() == sidecar.sha256


def _build(folder: Path) -> None:
    stdlib = Path(sysconfig.get_path("stdlib"))
    documents = collect(stdlib)
    folder.parent.mkdir(parents=True, exist_ok=True)
    _remove_stale(folder)
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}.{secrets.token_hex(4)}")
    temporary.mkdir()
    try:
        _write(temporary, documents, str(stdlib))
        _publish(temporary, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _remove_stale(folder: Path) -> None:
    """Remove what builds killed long ago left behind."""
    for left in folder.parent.glob(f".{folder.name}.*"):
        with suppress(FileNotFoundError):
            if time.time() - left.stat().st_mtime > _STALE_SECONDS:
                shutil.rmtree(left, ignore_errors=True)


def _publish(temporary: Path, folder: Path) -> None:
    try:
        temporary.rename(folder)
    except OSError:
        if not folder.is_dir():
            raise
        # Another process was first, or a damaged copy lies there. Each build writes the same bytes, so
        # replacing file by file is right in any interleaving and the folder never goes missing.
        for name in (_TRAIN, _VAL):
            (temporary / name).replace(folder / name)
            sidecar_path(temporary / name).replace(sidecar_path(folder / name))
        fsync_dir(folder)
    fsync_dir(folder.parent)


def _write(folder: Path, documents: list[_Document], stdlib: str) -> None:
    held = [document for document in documents if _held_back(document)]
    kept = [document for document in documents if not _held_back(document)]
    if not held or not kept:
        raise DataError(f"{stdlib}: too few documents to hold some back for validation; give --data")
    val = _write_part(folder / _VAL, held, stdlib)
    write_sidecar(folder / _VAL, val)
    train = _write_part(folder / _TRAIN, kept, stdlib).model_copy(
        update={
            "validation": _VAL,
            "validation_documents": val.documents,
            "validation_bytes": val.bytes,
            "validation_sha256": val.sha256,
        }
    )
    write_sidecar(folder / _TRAIN, train)


def _held_back(document: _Document) -> bool:
    return int.from_bytes(document.digest, "big") % _VAL_MODULUS == 0


def _write_part(path: Path, documents: list[_Document], stdlib: str) -> Sidecar:
    data = bytes([DELIMITER]).join(document.text for document in documents)
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    count = len(documents)
    return Sidecar(
        documents=count,
        bytes=len(data),
        sha256=hashlib.sha256(data).hexdigest(),
        created_by=f"rnn-lab default corpus, format {FORMAT_VERSION}, Python {platform.python_version()}",
        source=(SourceInfo(name=stdlib, kind="python standard library", bytes=None, documents=count),),
    )


def collect(stdlib: Path) -> list[_Document]:
    """Documents of the standard library at `stdlib` in corpus order: a fixed hash order of their names.

    Each is non-empty valid UTF-8 without 0x1e, no two are equal, at most 32 MB together. Tests are left out
    unless the rest is below 6 MB.

    Raises:
        DataError: there are less than 6 MB.
    """
    names = dict(sorted(_texts(stdlib)))
    total = 0
    for skipped in (_TEST_FOLDERS, frozenset[str]()):
        documents = _select(_documents(names, skipped))
        total = sum(len(document.text) for document in documents)
        if total >= MIN_BYTES:
            return documents
    raise DataError(
        f"the Python standard library at {stdlib} has {total / 1e6:.1f} MB of sources, the default corpus "
        f"needs {MIN_BYTES / 1e6:.0f} MB: this Python is installed without them; give --data FILE"
    )


def _texts(stdlib: Path) -> Iterator[tuple[str, Path]]:
    for top, folders, files in os.walk(stdlib):
        folders[:] = [name for name in folders if name not in _FOREIGN_FOLDERS]
        for name in files:
            if name.endswith(".py") or name.startswith("LICENSE"):
                path = Path(top, name)
                yield path.relative_to(stdlib).as_posix(), path


def _documents(names: dict[str, Path], skipped_folders: frozenset[str]) -> Iterator[_Document]:
    for name, path in names.items():
        if skipped_folders.isdisjoint(name.split("/")) and not _is_table(name):
            text = path.read_bytes()
            if not (name.startswith("encodings/") and b"\ndecoding_" in text):
                yield _Document(name, text)
    yield from _topics(names)


def _is_table(name: str) -> bool:
    """Whether a file is generated tables or settings of the machine, not written text."""
    return name == "pydoc_data/topics.py" or name.rsplit("/", 1)[-1].startswith("_sysconfigdata")


def _topics(names: dict[str, Path]) -> Iterator[_Document]:
    """Yield the language reference that `help()` shows, one document per topic."""
    if "pydoc_data/topics.py" in names:
        topics: dict[str, str] = importlib.import_module("pydoc_data.topics").topics
        for topic, text in sorted(topics.items()):
            yield _Document(f"pydoc_data/topics/{topic}.txt", text.encode())


def _select(documents: Iterator[_Document]) -> list[_Document]:
    seen: set[bytes] = set()
    chosen: list[_Document] = []
    total = 0
    for document in sorted(documents, key=lambda document: document.order):
        text = document.text.replace(bytes([DELIMITER]), b" ")
        clean = _Document(document.name, text)
        if not text or clean.digest in seen or not _is_utf8(text) or total + len(text) + 1 > MAX_BYTES:
            continue
        seen.add(clean.digest)
        chosen.append(clean)
        total += len(text) + 1
    return chosen


def _is_utf8(text: bytes) -> bool:
    try:
        text.decode()
    except UnicodeDecodeError:
        return False
    return True
