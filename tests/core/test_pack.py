"""Packing: formats, joins, validation split, limits, progress."""

import gzip
import hashlib
import importlib
import json
from pathlib import Path
from typing import Any

import pytest
import zstandard
from pack_inputs import DOCUMENTS, PACKED, many, write_jsonl, write_parquet
from rnn_lab.data import PackProgress, Sidecar, open_split, pack, read_sidecar
from rnn_lab.errors import ConfigError, DataError

pack_module: Any = importlib.import_module("rnn_lab.data.pack")


@pytest.mark.parametrize("name", ["d.jsonl", "d.jsonl.gz", "d.jsonl.zst", "d.parquet"])
def test_formats_give_the_same_bytes(tmp_path: Path, name: str) -> None:
    write = write_parquet if name.endswith("parquet") else write_jsonl
    source = write(tmp_path / name, DOCUMENTS)
    out = tmp_path / "out.bin"
    sidecar = pack([source], out)
    assert out.read_bytes() == PACKED
    assert read_sidecar(out) == sidecar
    assert sidecar.documents == PACKED.count(b"\x1e") + 1 == 5
    assert (sidecar.bytes, sidecar.sha256) == (len(PACKED), hashlib.sha256(PACKED).hexdigest())
    assert (sidecar.skipped_empty, sidecar.skipped_not_utf8, sidecar.validation) == (1, 0, None)
    [info] = sidecar.source
    assert (info.name, info.bytes, info.documents) == (str(source), source.stat().st_size, 5)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([name, "out.bin", "out.bin.json"])


def test_folder_of_text(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    for name, data in {
        "b.txt": b"two",
        "a/z.md": b"one",
        "a/empty": b"",
        "c.bin": b"\xff\xfe",
        ".hidden": b"no",
        ".git/x": b"no",
        "d.jsonl": b'{"text": "last"}\n',
        "c.txt.gz": gzip.compress(b"three"),
    }.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    sidecar = pack([folder], tmp_path / "out.bin")
    assert (tmp_path / "out.bin").read_bytes() == b"one\x1etwo\x1ethree\x1elast"
    assert (sidecar.skipped_empty, sidecar.skipped_not_utf8) == (1, 1)
    assert [(info.kind, info.documents) for info in sidecar.source] == [("text folder", 3), ("json lines", 1)]


def test_output_inside_its_own_source_folder(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("text")
    for _ in range(2):
        pack([tmp_path], tmp_path / "out.bin", overwrite=True)
        assert (tmp_path / "out.bin").read_bytes() == b"text"


def test_text_files_and_order_of_sources(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("aa")
    (tmp_path / "b.txt.zst").write_bytes(zstandard.ZstdCompressor().compress(b"bb"))
    (tmp_path / "c.txt.gz").write_bytes(gzip.compress(b"cc"))
    pack([tmp_path / "c.txt.gz", str(tmp_path / "b.txt.zst"), tmp_path / "a.txt"], tmp_path / "out")
    assert (tmp_path / "out").read_bytes() == b"cc\x1ebb\x1eaa"


def test_other_delimiter(tmp_path: Path) -> None:
    source = write_jsonl(tmp_path / "d.jsonl", ["a\nb", "c\x1ed"])
    sidecar = pack([source], tmp_path / "out", delimiter=10)
    assert (tmp_path / "out").read_bytes() == b"a b\nc\x1ed"
    assert sidecar.delimiter == 10
    for delimiter in (32, 128, -1):
        with pytest.raises(ConfigError, match="delimiter = "):
            pack([source], tmp_path / "out2", delimiter=delimiter)


def test_validation_part(tmp_path: Path) -> None:
    documents = many(300)
    source = write_jsonl(tmp_path / "d.jsonl", documents)
    sidecar = pack([source], tmp_path / "out.bin", val_fraction=0.2)
    train, val = ((tmp_path / name).read_bytes().split(b"\x1e") for name in ("out.bin", "out.val.bin"))
    assert 30 < len(val) < 90
    assert sorted(train + val) == sorted(document.encode() for document in documents)
    below = int(0.2 * 2**64)
    assert all(int.from_bytes(hashlib.sha256(d).digest()[:8], "big") < below for d in val)
    assert sidecar.validation == "out.val.bin"
    held = read_sidecar(tmp_path / "out.val.bin")
    assert held is not None
    assert (held.documents, held.bytes) == (len(val), (tmp_path / "out.val.bin").stat().st_size)
    assert (sidecar.validation_documents, sidecar.validation_bytes) == (held.documents, held.bytes)
    digest = hashlib.sha256((tmp_path / "out.val.bin").read_bytes()).hexdigest()
    assert sidecar.validation_sha256 == held.sha256 == digest
    assert open_split(tmp_path / "out.bin", seq_len=64).val_source == "sidecar"
    with pytest.raises(ConfigError, match="val_fraction = 1"):
        pack([source], tmp_path / "o", val_fraction=1.0)


def test_no_document_chosen_for_validation(tmp_path: Path) -> None:
    source = write_jsonl(tmp_path / "d.jsonl", ["one"])
    assert pack([source], tmp_path / "out.bin", val_fraction=1e-9).validation is None
    assert sorted(path.name for path in tmp_path.iterdir()) == ["d.jsonl", "out.bin", "out.bin.json"]


@pytest.mark.parametrize(
    ("limit", "packed"),
    [
        (1, "f"),
        (5, "first"),
        (6, "first"),
        (7, "first\x1ez"),
        (11, "first\x1ezwei "),
        (13, "first\x1ezwei "),
        (14, "first\x1ezwei €"),
        (1000, PACKED.decode()),
    ],
)
def test_max_bytes_cuts_between_characters(tmp_path: Path, limit: int, packed: str) -> None:
    source = write_jsonl(tmp_path / "d.jsonl", DOCUMENTS)
    pack([source, source] if limit < 1000 else [source], tmp_path / "out", max_bytes=limit)
    assert (tmp_path / "out").read_bytes() == packed.encode()


def test_progress(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pack_module, "PROGRESS_SECONDS", 0.0)
    one, two = (write_jsonl(tmp_path / f"{name}.jsonl", ["abc", "de"]) for name in "xy")
    seen: list[PackProgress] = []
    pack([one, two], tmp_path / "out", progress=seen.append)
    assert [(p.source_index, p.documents, p.bytes) for p in seen] == [
        (0, 1, 3),
        (0, 2, 6),
        (1, 3, 10),
        (1, 4, 13),
        (1, 4, 13),
    ]
    assert {(p.source, p.source_index, p.source_count) for p in seen} == {(str(one), 0, 2), (str(two), 1, 2)}


def test_nothing_to_train_on_leaves_nothing_behind(tmp_path: Path) -> None:
    source = write_jsonl(tmp_path / "d.jsonl", ["", ""])
    with pytest.raises(DataError, match=r"nothing to train on in 1 source.*: 2 empty"):
        pack([source], tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["d.jsonl"]


def test_sidecar_type_is_what_is_stored(tmp_path: Path) -> None:
    pack([write_jsonl(tmp_path / "d.jsonl", ["a"])], tmp_path / "out")
    stored = json.loads((tmp_path / "out.json").read_text())
    assert Sidecar.model_validate(stored).model_dump(mode="json") == stored
    assert stored["source"][0]["kind"] == "json lines"
