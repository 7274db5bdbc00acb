"""What is in a byte file: size, documents, byte histogram, entropies, valid UTF-8 or not."""

import codecs
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from rnn_lab.data.corpus import ByteFile
from rnn_lab.data.sidecar import DELIMITER, Sidecar, read_sidecar
from rnn_lab.errors import ConfigError, DataError

_CHUNK = 1 << 22
_FLUSH = 1 << 22
_BLOCKS = 64
_CONTINUATION = range(0x80, 0xC0)


@dataclass(frozen=True, slots=True)
class DataInfo:
    """Description of a byte file; if `sampled`, all but `size` and `sidecar` is about `read_bytes` of them.

    `documents` is the number of delimiter bytes plus one; of a sampled file the sidecar's number, else an
    estimate. `histogram` is int64 [256]. `entropies` are bits per byte given the 0, 1 and 2 bytes before,
    from the counts themselves, so they are too low when the bytes read are few for the contexts.
    `utf8_error` is the offset in the file of the first byte read that is not valid UTF-8, None if all is.
    """

    path: Path
    size: int
    read_bytes: int
    sampled: bool
    documents: int
    documents_estimated: bool
    delimiter: int
    histogram: NDArray[np.int64]
    entropies: tuple[float, float, float]
    utf8_error: int | None
    sidecar: Sidecar | None


def describe(path: str | Path, *, limit_bytes: int = 64 << 20) -> DataInfo:
    """Describe the byte file `path`; of a file above `limit_bytes`, 64 evenly spaced blocks are read.

    Takes about 400 MB of memory for the order-2 counts.

    Raises:
        DataError: the file is missing, a folder, empty or unreadable, or changes while it is read.
        ConfigError: `limit_bytes` is too small for 64 blocks of 3 bytes.
    """
    if limit_bytes < 3 * _BLOCKS:
        raise ConfigError(f"limit_bytes = {limit_bytes}: must be at least {3 * _BLOCKS}")
    file = ByteFile(path)
    sidecar = read_sidecar(path)
    size = len(file)
    counts = _Counts()
    spans = _spans(size, limit_bytes)
    for start, stop in spans:
        counts.add_span(_chunks(file.path, start, stop), start, stop == size)
    read = int(counts.bytes.sum())
    delimiter = sidecar.delimiter if sidecar else DELIMITER
    sampled = read < size
    documents = round(int(counts.bytes[delimiter]) * size / read) + 1
    known = sampled and sidecar is not None
    if known and sidecar is not None:
        documents = sidecar.documents
    return DataInfo(
        path=file.path,
        size=size,
        read_bytes=read,
        sampled=sampled,
        documents=documents,
        documents_estimated=sampled and not known,
        delimiter=delimiter,
        histogram=counts.bytes,
        entropies=counts.entropies(),
        utf8_error=counts.utf8_error,
        sidecar=sidecar,
    )


def _spans(size: int, limit: int) -> list[tuple[int, int]]:
    """[start, stop) of what is read: everything, or blocks of which the last ends with the file."""
    if size <= limit:
        return [(0, size)]
    length = limit // _BLOCKS
    starts = [index * (size - length) // (_BLOCKS - 1) for index in range(_BLOCKS)]
    return [(start, start + length) for start in starts]


def _chunks(path: Path, start: int, stop: int) -> Iterator[bytes]:
    """Read the bytes [start, stop) in order; not mapped, because the mapping asks for no read-ahead."""
    try:
        with path.open("rb", buffering=0) as file:
            file.seek(start)
            while start < stop:
                chunk = file.read(min(_CHUNK, stop - start))
                if not chunk:
                    raise DataError(f"{path} became shorter while it was read; wait until it is complete")
                yield chunk
                start += len(chunk)
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from error


class _Counts:
    """Counts of single bytes, pairs and triples over contiguous spans, and the first invalid UTF-8 offset."""

    def __init__(self) -> None:
        self.bytes = np.zeros(1 << 8, dtype=np.int64)
        self.pairs = np.zeros(1 << 16, dtype=np.int64)
        self.triples = np.zeros(1 << 24, dtype=np.int64)
        self._pending: list[NDArray[np.int32]] = []
        self._pending_codes = 0
        self.utf8_error: int | None = None

    def add_span(self, chunks: Iterator[bytes], start: int, at_end: bool) -> None:
        """Count the bytes of one contiguous span that begins at offset `start` of the file."""
        decoder = codecs.getincrementaldecoder("utf-8")()
        offset, before = start, b""
        for chunk in chunks:
            self._count(before, chunk)
            if self.utf8_error is None:
                skipped = _leading_continuation(chunk) if offset == start > 0 else 0
                self._decode(decoder, chunk[skipped:], offset + skipped, False)
            offset += len(chunk)
            before = (before + chunk)[-2:]
        if at_end and self.utf8_error is None:
            self._decode(decoder, b"", offset, True)

    def _decode(self, decoder: codecs.IncrementalDecoder, data: bytes, offset: int, final: bool) -> None:
        held = len(decoder.getstate()[0])
        try:
            decoder.decode(data, final)
        except UnicodeDecodeError as error:
            self.utf8_error = offset - held + error.start

    def _count(self, before: bytes, chunk: bytes) -> None:
        data = np.frombuffer(before + chunk, dtype=np.uint8)
        self.bytes += np.bincount(data[len(before) :], minlength=1 << 8)
        codes = data.astype(np.int32)
        pairs = codes[:-1] << 8 | codes[1:]
        self.pairs += np.bincount(pairs[max(0, len(before) - 1) :], minlength=1 << 16)
        self._pending.append(pairs[:-1] << 8 | codes[2:])
        self._pending_codes += len(chunk)
        if self._pending_codes >= _FLUSH:
            self._flush()

    def _flush(self) -> None:
        """Count the pending triples, many at once, because each count passes over the whole table."""
        if self._pending:
            self.triples += np.bincount(np.concatenate(self._pending), minlength=1 << 24)
            self._pending, self._pending_codes = [], 0

    def entropies(self) -> tuple[float, float, float]:
        """Bits per byte of orders 0, 1 and 2."""
        self._flush()
        return (
            _conditional_entropy(self.bytes[None, :]),
            _conditional_entropy(self.pairs.reshape(-1, 256)),
            _conditional_entropy(self.triples.reshape(-1, 256)),
        )


def _leading_continuation(chunk: bytes) -> int:
    """How many bytes at the start of a block may be the rest of a character cut by the block's start."""
    count = 0
    while count < min(3, len(chunk)) and chunk[count] in _CONTINUATION:
        count += 1
    return count


def _conditional_entropy(counts_CV: NDArray[np.int64]) -> float:
    """Entropy in bits of the value V given the context C, both distributed as counted; 0 without counts."""
    total = counts_CV.sum()
    if total == 0:
        return 0.0
    contexts = counts_CV.sum(axis=1)
    seen, per_context = counts_CV[counts_CV > 0], contexts[contexts > 0]
    bits = (per_context * np.log2(per_context)).sum() - (seen * np.log2(seen)).sum()
    return float(max(0.0, bits / total))
