"""Documents and the files that hold them, for the tests of packing."""

import gzip
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import zstandard

DOCUMENTS = ["first", "", "zwei €", "third\x1ewith a delimiter", "four\nlines", "  "]
PACKED = "first\x1ezwei €\x1ethird with a delimiter\x1efour\nlines\x1e  ".encode()


def write_jsonl(path: Path, documents: list[str]) -> Path:
    lines = "\n".join(json.dumps({"id": i, "text": text}) for i, text in enumerate(documents)).encode()
    if path.suffix == ".gz":
        lines = gzip.compress(lines)
    elif path.suffix == ".zst":
        half = len(lines) // 2
        compress = zstandard.ZstdCompressor().compress
        lines = compress(lines[:half]) + compress(lines[half:])
    path.write_bytes(lines)
    return path


def write_parquet(path: Path, documents: list[str], rows: int = 2) -> Path:
    pq.write_table(pa.table({"id": list(range(len(documents))), "text": documents}), path, row_group_size=rows)
    return path


def many(count: int) -> list[str]:
    return [f"document {index} " + "x" * (index * 37 % 400) for index in range(count)]
