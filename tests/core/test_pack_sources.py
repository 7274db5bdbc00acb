"""What packing says about damaged, missing and remote sources."""

import importlib
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import zstandard
from pack_inputs import many, write_jsonl, write_parquet
from rnn_lab.data import pack, records, texts
from rnn_lab.errors import ConfigError, DataError

pack_module: Any = importlib.import_module("rnn_lab.data.pack")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b'{"text": "cut', r"d\.jsonl:3: not valid JSON"),
        (b'{"text": "\xff"}', r"d\.jsonl:3: not valid JSON"),
        (b'["text"]', r"d\.jsonl:3: a list, not an object"),
        (b'{"body": 1, "id": 2}', r"d\.jsonl:3: no column 'text'; available: body, id"),
        (b'{"text": 5}', r"d\.jsonl:3: 'text' is int, not text"),
    ],
)
def test_bad_json_line_is_named(tmp_path: Path, line: bytes, message: str) -> None:
    (tmp_path / "d.jsonl").write_bytes(b'{"text": "a"}\n\n' + line + b"\n")
    with pytest.raises(DataError, match=message):
        pack([tmp_path / "d.jsonl"], tmp_path / "out")


def test_json_without_text_is_skipped(tmp_path: Path) -> None:
    (tmp_path / "d.jsonl").write_bytes(b'\n{"text": null}\n{"text": "\\ud800"}\n{"text": "a"}\n')
    sidecar = pack([tmp_path / "d.jsonl"], tmp_path / "out")
    assert (sidecar.documents, sidecar.skipped_empty, sidecar.skipped_not_utf8) == (1, 2, 1)


@pytest.mark.parametrize("name", ["d.jsonl.gz", "d.jsonl.zst"])
@pytest.mark.parametrize(("cut", "garble"), [(40, False), (0, True)])
def test_damaged_compression_is_no_end_of_file(tmp_path: Path, name: str, cut: int, garble: bool) -> None:
    source = write_jsonl(tmp_path / name, many(2000))
    data = bytearray(source.read_bytes())
    if garble:
        data[0] ^= 0xFF
    source.write_bytes(data[: len(data) - cut])
    with pytest.raises(DataError, match=rf"{name}: (damaged|truncated)"):
        pack([source], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_zstd_cut_after_a_whole_block(tmp_path: Path) -> None:
    """The case that zstandard's own reader takes for the end of the file."""
    compressor = zstandard.ZstdCompressor().compressobj()
    data = compressor.compress(b'{"text": "a"}\n') + compressor.flush(zstandard.COMPRESSOBJ_FLUSH_BLOCK)
    (tmp_path / "d.jsonl.zst").write_bytes(data)
    with pytest.raises(DataError, match="truncated zstd data"):
        pack([tmp_path / "d.jsonl.zst"], tmp_path / "out")


def test_bad_parquet(tmp_path: Path) -> None:
    source = write_parquet(tmp_path / "d.parquet", ["a"])
    with pytest.raises(DataError, match=r"no column 'body'; available: id, text"):
        pack([source], tmp_path / "out", column="body")
    with pytest.raises(DataError, match="column 'id' is int64, not text"):
        pack([source], tmp_path / "out", column="id")
    source.write_bytes(source.read_bytes()[:-9])
    with pytest.raises(DataError, match="not a readable Parquet file"):
        pack([source], tmp_path / "out")


def test_parquet_groups_before_the_start_are_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = records.ParquetRows(write_parquet(tmp_path / "d.parquet", list("abcdefg"), rows=2), "text")
    read: list[int] = []
    group = records.ParquetRows._group

    def note(self: records.ParquetRows, file: Any, index: int) -> Iterator[bytes | None]:
        read.append(index)
        return group(self, file, index)

    monkeypatch.setattr(records.ParquetRows, "_group", note)
    assert [list(source.items(start)) for start in (3, 4, 7)] == [
        [b"d", b"e", b"f", b"g"],
        [b"e", b"f", b"g"],
        [],
    ]
    assert read == [1, 2, 3, 2, 3]


def test_bad_names(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="missing is neither a file nor a folder"):
        pack([tmp_path / "missing"], tmp_path / "out")
    with pytest.raises(DataError, match="holds no files"):
        pack([tmp_path], tmp_path / "out")
    with pytest.raises(DataError, match="nothing to pack"):
        pack([], tmp_path / "out")
    (tmp_path / "latin.txt").write_bytes(b"\xe9")
    with pytest.raises(DataError, match=r"latin\.txt is not UTF-8"):
        pack([tmp_path / "latin.txt"], tmp_path / "out")
    with pytest.raises(ConfigError, match="max_bytes = 0"):
        pack([tmp_path / "latin.txt"], tmp_path / "out", max_bytes=0)


def test_document_too_large_for_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(texts, "MAX_DOCUMENT", 100)
    (tmp_path / "a.txt").write_bytes(b"x" * 100)
    pack([tmp_path / "a.txt"], tmp_path / "out")
    (tmp_path / "b.txt").write_bytes(b"x" * 101)
    with pytest.raises(DataError, match=r"b\.txt is one document of more than 100 bytes"):
        pack([tmp_path / "b.txt"], tmp_path / "out2")
    with pytest.raises(DataError, match=r"c\.jsonl:1: the line is longer than 100"):
        pack([write_jsonl(tmp_path / "c.jsonl", ["x" * 100])], tmp_path / "out3")


@pytest.mark.parametrize(
    ("module", "name"), [("zstandard", "d.jsonl.zst"), ("pyarrow", "d.parquet"), ("datasets", "hf://a/b")]
)
def test_missing_library_names_the_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, module: str, name: str
) -> None:
    if not name.startswith("hf"):
        (tmp_path / name).touch()
        name = str(tmp_path / name)
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ConfigError, match=rf"needs the library {module}; run: pip install {module}$"):
        pack([name], tmp_path / "out")


class FakeRows:
    """As much of a streamed data set as is used."""

    def __init__(self, rows: list[Any]) -> None:
        self.rows = rows

    def skip(self, count: int) -> "FakeRows":
        return FakeRows(self.rows[count:])

    def __iter__(self) -> Iterator[Any]:
        for row in self.rows:
            if isinstance(row, Exception):
                raise row
            yield row


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> dict[tuple[str, str | None, str], list[Any]]:
    sets: dict[tuple[str, str | None, str], list[Any]] = {}

    def load_dataset(path: str, name: str | None, *, split: str, streaming: bool) -> FakeRows:
        assert streaming
        return FakeRows(sets[path, name, split])

    module = types.ModuleType("datasets")
    module.load_dataset = load_dataset  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "datasets", module)
    return sets


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("hf://squad", ("squad", None, "train")),
        ("hf://own/set", ("own/set", None, "train")),
        ("hf://own/set:test", ("own/set", None, "test")),
        ("hf://own/set/en:validation", ("own/set", "en", "validation")),
    ],
)
def test_hub_names(
    tmp_path: Path,
    hub: dict[tuple[str, str | None, str], list[Any]],
    name: str,
    key: tuple[str, str | None, str],
) -> None:
    hub[key] = [{"text": "a"}, {"text": "b"}]
    assert pack([name], tmp_path / "out").source[0].bytes is None
    assert (tmp_path / "out").read_bytes() == b"a\x1eb"


def test_hub_errors_and_resume(
    tmp_path: Path, hub: dict[tuple[str, str | None, str], list[Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pack_module, "JOURNAL_SECONDS", 0.0)
    rows: list[Any] = [{"text": "a"}, {"text": "b"}, ConnectionError("gone"), {"text": "c"}]
    hub["own/set", None, "train"] = rows
    with pytest.raises(DataError, match=r"hf://own/set, row 2: cannot be read \(gone\); run again"):
        pack(["hf://own/set"], tmp_path / "out")
    rows[2] = {"text": "x"}
    rows[0] = ConnectionError("read again from the start")
    pack(["hf://own/set"], tmp_path / "out")
    assert (tmp_path / "out").read_bytes() == b"a\x1eb\x1ex\x1ec"
    hub["own/set", None, "train"] = [{"body": "a"}]
    with pytest.raises(DataError, match="row 0: no column 'text'; available: body"):
        pack(["hf://own/set"], tmp_path / "out2")
    with pytest.raises(ConfigError, match="expected hf://owner"):
        pack(["hf://"], tmp_path / "out3")
