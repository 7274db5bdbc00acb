"""Files, plain or compressed, read as streams; damage is reported, never taken for the end of the file."""

import gzip
import importlib
import io
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from rnn_lab.errors import ConfigError, DataError

_COMPRESSED_CHUNK = 1 << 14
_BUFFER = 1 << 20


def require(module: str, purpose: str) -> Any:
    """Import an optional library.

    Raises:
        ConfigError: it is not installed; the message says how to get it.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ConfigError(f"{purpose} needs the library {module}; run: pip install {module}") from error


@contextmanager
def opened(path: Path) -> Iterator[io.BufferedReader | gzip.GzipFile]:
    """Open `path` for reading, decompressed if it ends in .gz or .zst.

    Raises:
        DataError: it cannot be read, or the compressed data is damaged or cut short; also while reading.
        ConfigError: .zst without the library zstandard.
    """
    try:
        with _open(path) as stream:
            yield stream
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DataError(f"{path}: damaged or truncated gzip data ({error}); copy it again") from error
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error})") from error


def _open(path: Path) -> io.BufferedReader | gzip.GzipFile:
    if path.suffix == ".gz":
        return gzip.open(path, "rb")
    if path.suffix == ".zst":
        library = require("zstandard", f"reading {path}")
        return io.BufferedReader(_ZstdReader(path, path.open("rb"), library), _BUFFER)
    return path.open("rb")


class _ZstdReader(io.RawIOBase):
    """All frames of a .zst file; unlike zstandard's own reader it refuses a last frame that is cut short."""

    def __init__(self, path: Path, file: IO[bytes], library: Any) -> None:
        self._path = path
        self._file = file
        self._library = library
        self._frame: Any = None
        self._compressed = b""
        self._ready = b""

    def readable(self) -> bool:
        return True

    def close(self) -> None:
        self._file.close()
        super().close()

    def readinto(self, buffer: Any) -> int:
        while not self._ready:
            self._compressed = self._compressed or self._file.read(_COMPRESSED_CHUNK)
            if not self._compressed:
                self._check_end()
                return 0
            self._decompress()
        taken = self._ready[: len(buffer)]
        self._ready = self._ready[len(taken) :]
        buffer[: len(taken)] = taken
        return len(taken)

    def _decompress(self) -> None:
        if self._frame is None:
            # Windows up to 2 GiB, as `zstd --long=31` writes them.
            self._frame = self._library.ZstdDecompressor(max_window_size=2**31).decompressobj()
        try:
            self._ready = self._frame.decompress(self._compressed)
        except self._library.ZstdError as error:
            raise DataError(f"{self._path}: damaged zstd data ({error}); copy it again") from error
        self._compressed = b""
        if self._frame.eof:
            self._compressed = self._frame.unused_data
            self._frame = None

    def _check_end(self) -> None:
        if self._frame is not None:
            raise DataError(f"{self._path}: truncated zstd data; copy it again")
