"""Byte corpora, batches that are pure functions of (data, seed, step), and packing of other formats."""

from rnn_lab.data.batches import (
    Batch,
    ContiguousStreams,
    RandomWindows,
    Sampler,
    eval_windows,
    gather,
    window_starts,
)
from rnn_lab.data.chain import OffsetChain, fingerprint
from rnn_lab.data.corpus import DELIMITER, HORIZON, ByteFile, Region, Split, min_region_bytes, open_split
from rnn_lab.data.default import default_corpus
from rnn_lab.data.info import DataInfo, describe
from rnn_lab.data.pack import PackProgress, pack
from rnn_lab.data.sidecar import Sidecar, SourceInfo, read_sidecar, sidecar_path, write_sidecar

__all__ = [
    "DELIMITER",
    "HORIZON",
    "Batch",
    "ByteFile",
    "ContiguousStreams",
    "DataInfo",
    "OffsetChain",
    "PackProgress",
    "RandomWindows",
    "Region",
    "Sampler",
    "Sidecar",
    "SourceInfo",
    "Split",
    "default_corpus",
    "describe",
    "eval_windows",
    "fingerprint",
    "gather",
    "min_region_bytes",
    "open_split",
    "pack",
    "read_sidecar",
    "sidecar_path",
    "window_starts",
    "write_sidecar",
]
