"""Byte files of any size, and which part of them trains and which validates."""

import mmap
from dataclasses import dataclass
from pathlib import Path
from stat import S_ISDIR, S_ISREG

import numpy as np
from numpy.typing import NDArray

from rnn_lab.data.sidecar import DELIMITER, Sidecar, read_sidecar
from rnn_lab.errors import ConfigError, DataError

__all__ = ["DELIMITER", "HORIZON", "ByteFile", "Region", "Split", "min_region_bytes", "open_split"]

# Window starts end this many bytes early for every model, so that a run that predicts up to 16 bytes
# ahead still draws the same windows as a run that predicts one.
HORIZON = 16


class ByteFile:
    """A raw byte file, mapped read-only; pages are read when touched, none ahead.

    `path` is the file, `array` its bytes as a read-only uint8 [size], `len()` the size in bytes.

    Raises:
        DataError: the file is missing, a folder, not a regular file, empty, or cannot be read or mapped.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.array: NDArray[np.uint8] = _map(self.path)

    def __len__(self) -> int:
        return int(self.array.size)

    def __repr__(self) -> str:
        return f"ByteFile({str(self.path)!r}, {len(self)} bytes)"


def _map(path: Path) -> NDArray[np.uint8]:
    try:
        mode = path.stat().st_mode
        if S_ISDIR(mode):
            raise DataError(f"{path} is a folder; pack it into one file with `rnn-lab data pack {path}`")
        if not S_ISREG(mode):
            raise DataError(f"{path} is not a regular file and cannot be mapped; copy its bytes into a file")
        with path.open("rb") as file:
            if file.seek(0, 2) == 0:
                raise DataError(f"{path} is empty; give a file with text in it")
            # np.memmap would do the same mapping, but offers no public way to madvise it.
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except FileNotFoundError as error:
        raise DataError(f"{path} does not exist; check the path") from error
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror}); check its permissions") from error
    if hasattr(mmap, "MADV_RANDOM"):
        mapped.madvise(mmap.MADV_RANDOM)
    return np.frombuffer(mapped, dtype=np.uint8)


@dataclass(frozen=True, slots=True)
class Region:
    """The bytes [start, stop) of a file.

    Raises:
        ConfigError: the range is empty or leaves the file.
    """

    file: ByteFile
    start: int
    stop: int

    def __post_init__(self) -> None:
        if not 0 <= self.start < self.stop <= len(self.file):
            raise ConfigError(
                f"region [{self.start}, {self.stop}) is empty or leaves {self.file.path} of {len(self.file)} bytes"
            )

    def __len__(self) -> int:
        return self.stop - self.start

    @property
    def array(self) -> NDArray[np.uint8]:
        """Its bytes, a read-only uint8 view [len]."""
        return self.file.array[self.start : self.stop]


@dataclass(frozen=True, slots=True)
class Split:
    """The training region, the validation region (never overlapping) and where the latter came from.

    `val_source` is "given" (an explicit file), "sidecar" (the corpus's own validation file) or
    "last 1 %" (the end of the data file, cut off from training).
    """

    train: Region
    val: Region
    val_source: str


def min_region_bytes(seq_len: int) -> int:
    """Return the smallest size of a region with one window of `seq_len` bytes: `seq_len + HORIZON + 1`.

    Raises:
        ConfigError: `seq_len` is below 1.
    """
    if seq_len < 1:
        raise ConfigError(f"seq_len = {seq_len}: a window needs at least 1 byte")
    return seq_len + HORIZON + 1


def open_split(data_path: str | Path, val_path: str | Path | None = None, *, seq_len: int) -> Split:
    """Open `data_path` and decide which bytes train and which validate windows of `seq_len` bytes.

    Validation is `val_path` if given, else the validation file that the sidecar names, else the last 1 %
    of the file (at least one window), which then does not train.

    Raises:
        DataError: a file is missing, unreadable, empty or not of the size its sidecar says, or a region is
            shorter than one window.
        ConfigError: `val_path` is the training file, or `seq_len` is below 1.
    """
    need = min_region_bytes(seq_len)
    file = ByteFile(data_path)
    sidecar = read_sidecar(data_path)
    _check_size(file, sidecar)
    if val_path is not None:
        val_file = ByteFile(val_path)
        if val_file.path.samefile(file.path):
            raise ConfigError(
                f"{val_path} is the training file itself; leave the validation file out to hold back the last 1 %"
            )
        _check_size(val_file, read_sidecar(val_path))
        return Split(_whole(file, need, "training"), _whole(val_file, need, "validation"), "given")
    if sidecar is not None and sidecar.validation is not None:
        val_file = ByteFile(file.path.with_name(sidecar.validation))
        if len(val_file) != sidecar.validation_bytes:
            raise DataError(_wrong_size(val_file, sidecar.validation_bytes))
        return Split(_whole(file, need, "training"), _whole(val_file, need, "validation"), "sidecar")
    return _cut(file, need)


def _whole(file: ByteFile, need: int, role: str) -> Region:
    if len(file) < need:
        raise DataError(
            f"{file.path}: {len(file)} bytes of {role} data are shorter than one window, which needs {need} "
            f"bytes (seq_len + {HORIZON + 1}); use more data or a smaller seq_len"
        )
    return Region(file, 0, len(file))


def _cut(file: ByteFile, need: int) -> Split:
    size = len(file)
    held = max(size // 100, need)
    if size - held < need:
        raise DataError(
            f"{file.path}: {size} bytes are too few: a window to train on and one to validate on need "
            f"{2 * need} bytes; use more data, a smaller seq_len, or give a validation file"
        )
    return Split(Region(file, 0, size - held), Region(file, size - held, size), "last 1 %")


def _check_size(file: ByteFile, sidecar: Sidecar | None) -> None:
    if sidecar is not None and sidecar.bytes != len(file):
        raise DataError(_wrong_size(file, sidecar.bytes))


def _wrong_size(file: ByteFile, expected: int) -> str:
    what = "truncated" if len(file) < expected else "longer than packed"
    return (
        f"{file.path} is {what}: {len(file)} bytes, its sidecar says {expected}; "
        "copy or pack it again, or remove the sidecar to use the file as raw bytes"
    )
