"""Batches that depend on nothing but (data, seed, step).

Shapes: B windows, T input bytes; a window holds T + 1 bytes, input t is byte t and its target byte t + 1. Runs that
predict further ahead have windows of T + `ahead` bytes with the same starts.
"""

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from rnn_lab.data.chain import OffsetChain, check_word, fingerprint
from rnn_lab.data.corpus import DELIMITER, HORIZON, Region, min_region_bytes
from rnn_lab.errors import ConfigError, DataError

__all__ = [
    "HORIZON",
    "Batch",
    "ContiguousStreams",
    "OffsetChain",
    "RandomWindows",
    "Sampler",
    "eval_windows",
    "fingerprint",
    "gather",
    "stream_starts",
    "window_starts",
]


@dataclass(frozen=True, slots=True)
class Batch:
    """The windows of one step, or those rows of them that one of several processes takes.

    `bytes_BT1` uint8 [B, T + ahead], a fresh writable array; `starts_B` int64 [B], offsets within the region, of the
    whole step; `reset_BT` bool [B, T], True where the state must be zeroed before input t, None if nothing is carried.
    """

    bytes_BT1: NDArray[np.uint8]
    starts_B: NDArray[np.int64]
    reset_BT: NDArray[np.bool_] | None


class Sampler(Protocol):
    """What the trainer needs of a source of batches."""

    name: str
    region: Region
    seed: int
    batch_size: int
    seq_len: int

    def batch(self, k: int) -> Batch:
        """Return the batch of step `k`, a pure function of (region, seed, k)."""
        ...

    def chain(self) -> OffsetChain:
        """Begin the offset chain of a run that starts with this sampler."""
        ...


def window_starts(seed: int, k: int, batch_size: int, span: int) -> NDArray[np.int64]:
    """Draw starts int64 [batch_size] in [0, span) for step `k`: raw Philox words mapped by multiply-high.

    Raw words, because numpy promises no stable stream for `Generator`'s methods.

    Raises:
        ConfigError: `seed` or `k` is outside [0, 2^64), or `batch_size` or `span` is below 1.
    """
    if batch_size < 1 or not 1 <= span < 2**63:
        raise ConfigError(f"batch_size = {batch_size} and span = {span} must be at least 1")
    key = np.array([check_word("seed", seed), check_word("step k", k)], dtype=np.uint64)
    words = np.random.Philox(key=key).random_raw(batch_size)
    return _multiply_high(words, span).astype(np.int64)


def stream_starts(seed: int, k: int, batch_size: int, seq_len: int, span: int) -> NDArray[np.int64]:
    """Starts int64 [batch_size] in [0, span) at step `k` of streams that read on by `seq_len` a step.

    Stream b begins at b/B of the span plus a seeded jitter and goes round at its end.

    Raises:
        ConfigError: as `window_starts`.
    """
    spacing = max(1, span // batch_size)
    base_B = np.arange(batch_size, dtype=np.int64) * spacing + window_starts(seed, 0, batch_size, spacing)
    moved = check_word("step k", k) * seq_len % span
    return (base_B % span + moved) % span


def _multiply_high(words: NDArray[np.uint64], span: int) -> NDArray[np.uint64]:
    """High 64 bits of words * span, exact, from 32-bit halves."""
    shift, mask = np.uint64(32), np.uint64(0xFFFFFFFF)
    span_low, span_high = np.uint64(span & 0xFFFFFFFF), np.uint64(span >> 32)
    low, high = words & mask, words >> shift
    middle = high * span_low
    carry = ((low * span_low) >> shift) + (middle & mask) + low * span_high
    product: NDArray[np.uint64] = high * span_high + (middle >> shift) + (carry >> shift)
    return product


def gather(region: Region, starts_B: NDArray[np.int64], length: int) -> NDArray[np.uint8]:
    """Copy the bytes [start, start + length) of `region` for each start: a fresh uint8 [B, length].

    Raises:
        DataError: a window leaves the region.
    """
    if starts_B.size and (starts_B.min() < 0 or int(starts_B.max()) > len(region) - length):
        raise DataError(f"{region.file.path}: a window of {length} bytes leaves the {len(region)} bytes read")
    windows: NDArray[np.uint8] = sliding_window_view(region.array, length)[starts_B]
    return windows


class _Windows:
    """What both samplers share: checked settings and the span of allowed starts.

    `rows` are those of every step's windows that are read; which there are, is the same whoever reads them.
    """

    name: str

    def __init__(
        self, region: Region, seed: int, batch_size: int, seq_len: int, ahead: int = 1, rows: slice = slice(None)
    ) -> None:
        need = min_region_bytes(seq_len)
        if batch_size < 1:
            raise ConfigError(f"batch_size = {batch_size}: must be at least 1")
        if not 1 <= ahead <= HORIZON:
            raise ConfigError(f"{ahead} bytes ahead: between 1 and {HORIZON}, which every run keeps free")
        if len(region) < need:
            raise DataError(
                f"{region.file.path}: {len(region)} bytes are shorter than one window, which needs {need}; "
                "use more data or a smaller seq_len"
            )
        self.region = region
        self.seed = check_word("seed", seed)
        self.batch_size = batch_size
        self.seq_len, self.ahead, self.rows = seq_len, ahead, rows
        self.span = len(region) - seq_len - HORIZON

    def chain(self) -> OffsetChain:
        """Begin the offset chain of a run that starts with this sampler."""
        return OffsetChain.start(self.name, self.region, self.seed, self.batch_size, self.seq_len)


class RandomWindows(_Windows):
    """Windows at random offsets: batch k is a pure function of (region, seed, k).

    Raises:
        ConfigError: seed outside [0, 2^64), or batch_size or seq_len below 1.
        DataError: the region is shorter than one window.
    """

    name = "random-windows"

    def batch(self, k: int) -> Batch:
        """Copy B windows whose starts are drawn for step `k` >= 0; nothing is carried, so `reset_BT` is None.

        Raises:
            ConfigError: `k` is outside [0, 2^64).
        """
        starts_B = window_starts(self.seed, k, self.batch_size, self.span)
        return Batch(gather(self.region, starts_B[self.rows], self.seq_len + self.ahead), starts_B, None)


class ContiguousStreams(_Windows):
    """B streams that read on from step to step (stride T), for training that carries state.

    See `stream_starts`. Batch k is a pure function of (region, seed, k). Errors are those of `RandomWindows`.
    """

    name = "contiguous-streams"

    def batch(self, k: int) -> Batch:
        """Copy the windows of step `k` >= 0; input 0 of step k + 1 is the byte after input T - 1 of step k.

        `reset_BT` is True where the byte before the input is the delimiter 0x1e, and at t = 0 where the
        stream began (k = 0) or went round.

        Raises:
            ConfigError: `k` is outside [0, 2^64).
        """
        starts_B = stream_starts(self.seed, k, self.batch_size, self.seq_len, self.span)
        mine_B = starts_B[self.rows]
        bytes_BT1 = gather(self.region, mine_B, self.seq_len + self.ahead)
        before_B = self.region.array[np.maximum(mine_B - 1, 0)]
        reset_BT = np.empty((len(mine_B), self.seq_len), dtype=np.bool_)
        # A stream that did not go round has moved by T from a start >= 0, so its start is at least T.
        reset_BT[:, 0] = (before_B == DELIMITER) | (mine_B < self.seq_len) | (k == 0)
        np.equal(bytes_BT1[:, : self.seq_len - 1], DELIMITER, out=reset_BT[:, 1:])
        return Batch(bytes_BT1, starts_B, reset_BT)


def eval_windows(region: Region, seq_len: int, tokens: int) -> NDArray[np.int64]:
    """Choose starts int64 [n] of n = tokens // seq_len evenly spaced windows that score no byte twice.

    n is at least 1 and at most what fits into the region; the same for every model and seed. Each window
    holds `seq_len + 1` bytes; neighbours share at most the last target of one that is the first input of the
    next.

    Raises:
        ConfigError: `seq_len` or `tokens` is below 1.
        DataError: the region is shorter than `seq_len + 1` bytes.
    """
    if seq_len < 1 or tokens < 1:
        raise ConfigError(f"seq_len = {seq_len} and tokens = {tokens} must be at least 1")
    room = len(region) - 1
    if room < seq_len:
        raise DataError(
            f"{region.file.path}: {len(region)} bytes of evaluation data are shorter than one window of "
            f"{seq_len + 1}; use more data or a smaller seq_len"
        )
    count = max(1, min(tokens, room) // seq_len)
    index = np.arange(count, dtype=np.int64)
    whole, rest = divmod(room - seq_len, max(1, count - 1))
    return index * whole + index * rest // max(1, count - 1)
