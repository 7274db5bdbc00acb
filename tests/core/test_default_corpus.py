"""The default corpus: contents, split, cache, repair, and two builds at once."""

import hashlib
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
from rnn_lab.data import default, default_corpus, open_split, read_sidecar
from rnn_lab.errors import DataError


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RNN_LAB_CACHE", str(tmp_path_factory.mktemp("cache") / "deep" / "er"))
        return default_corpus()


@pytest.fixture
def train(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setenv("RNN_LAB_CACHE", str(tmp_path))
    return default_corpus()


def fake_stdlib(folder: Path, sizes: dict[str, int]) -> Path:
    for name, size in sizes.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text((f"# {name}\n" * (size // 4 + 1))[:size])
    return folder


def test_contents_and_sidecars(built: Path) -> None:
    version = ".".join(str(part) for part in sys.version_info[:3])
    assert (built.parent.name, built.name) == (f"default-{version}-1", "train.bin")
    sidecars = {}
    for name in ("train.bin", "val.bin"):
        data = (built.parent / name).read_bytes()
        sidecar = sidecars[name] = read_sidecar(built.parent / name)
        assert sidecar is not None
        documents = data.split(b"\x1e")
        assert len(documents) == sidecar.documents == len(set(documents))
        assert (len(data), hashlib.sha256(data).hexdigest()) == (sidecar.bytes, sidecar.sha256)
        held = {int(hashlib.sha256(document).hexdigest(), 16) % 50 == 0 for document in documents}
        assert held == {name == "val.bin"}
        assert all(documents)
        data.decode()
        assert sidecar.delimiter == 30
    train, val = sidecars["train.bin"], sidecars["val.bin"]
    assert train is not None and val is not None
    assert train.validation == "val.bin"
    assert (train.validation_bytes, train.validation_sha256) == (val.bytes, val.sha256)
    assert 6_000_000 <= train.bytes + val.bytes <= 32_000_000
    assert sorted(entry.name for entry in built.parent.parent.iterdir()) == [built.parent.name]


def test_it_is_text_to_train_on(built: Path) -> None:
    text = built.read_bytes()
    assert b"def __init__(self" in text
    assert b"PSF LICENSE AGREEMENT" in text or b"PYTHON SOFTWARE FOUNDATION LICENSE" in text
    assert b'The "with" statement' in text or b'The "try" statement' in text
    assert b"decoding_table = (" not in text
    assert open_split(built, seq_len=512).val_source == "sidecar"


def test_cached_copy_is_used(train: Path) -> None:
    before = train.stat().st_mtime_ns
    assert default_corpus() == default_corpus(verify=True) == train
    assert train.stat().st_mtime_ns == before


@pytest.mark.parametrize("name", ["train.bin", "val.bin", "train.bin.json", "val.bin.json"])
@pytest.mark.parametrize("damage", ["missing", "truncated"])
def test_half_written_copy_is_rebuilt(train: Path, name: str, damage: str) -> None:
    path = train.parent / name
    whole = path.read_bytes()
    if damage == "missing":
        path.unlink()
    else:
        path.write_bytes(whole[:-10])
    assert default_corpus() == train
    assert path.read_bytes() == whole
    assert [entry.name for entry in train.parent.parent.iterdir()] == [train.parent.name]


def test_parts_of_two_builds_are_no_corpus(train: Path) -> None:
    path = train.parent / "val.bin.json"
    whole = path.read_text()
    path.write_text(re.sub('"sha256": "[0-9a-f]{4}', '"sha256": "0000', whole))
    default_corpus()
    assert path.read_text() == whole


@pytest.mark.parametrize("name", ["train.bin", "val.bin"])
def test_changed_byte_is_found_by_verify(train: Path, name: str) -> None:
    path = train.parent / name
    whole = path.read_bytes()
    path.write_bytes(b"?" + whole[1:])
    default_corpus()
    assert path.read_bytes() != whole
    default_corpus(verify=True)
    assert path.read_bytes() == whole


def test_two_builds_at_once(tmp_path: Path, built: Path) -> None:
    code = (
        "import time; from pathlib import Path; from rnn_lab.data import default;"
        "publish = default._publish;"
        # Both have built before either publishes.
        "default._publish = lambda *where: (time.sleep(1.5), publish(*where));"
        "print(default.default_corpus(verify=True))"
    )
    environment = os.environ | {"RNN_LAB_CACHE": str(tmp_path)}
    runs = [
        subprocess.Popen([sys.executable, "-c", code], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        for _ in range(2)
    ]
    answers = [run.communicate(timeout=60) for run in runs]
    expected = tmp_path / built.parent.name / "train.bin"
    assert [(run.returncode, *answer) for run, answer in zip(runs, answers, strict=True)] == [
        (0, f"{expected}\n".encode(), b"")
    ] * 2
    assert expected.read_bytes() == built.read_bytes()
    assert [entry.name for entry in tmp_path.iterdir()] == [built.parent.name]


def test_old_remains_are_removed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, built: Path) -> None:
    monkeypatch.setenv("RNN_LAB_CACHE", str(tmp_path))
    old, new = (tmp_path / f".{built.parent.name}.{tail}" for tail in ("1.a", "2.b"))
    old.mkdir()
    new.mkdir()
    os.utime(old, (time.time() - 7200,) * 2)
    default_corpus()
    assert (old.exists(), new.exists()) == (False, True)


def test_cache_that_cannot_be_written(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("RNN_LAB_CACHE", str(tmp_path / "file"))
    with pytest.raises(DataError, match="set RNN_LAB_CACHE"):
        default_corpus()


def test_stripped_python_is_explained(tmp_path: Path) -> None:
    stdlib = fake_stdlib(tmp_path, {"a.py": 1000, "site-packages/big.py": 7_000_000})
    with pytest.raises(DataError, match=r"has 0\.0 MB of sources.*installed without them"):
        default.collect(stdlib)


def test_tests_are_taken_only_where_needed(tmp_path: Path) -> None:
    stdlib = fake_stdlib(tmp_path, {"a.py": 3_500_000, "test/b.py": 3_500_000})
    assert sorted(document.name for document in default.collect(stdlib)) == ["a.py", "test/b.py"]
    fake_stdlib(tmp_path, {"c.py": 2_500_000})
    assert sorted(document.name for document in default.collect(stdlib)) == ["a.py", "c.py"]


def test_documents_are_clean_unique_and_capped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(default, "MIN_BYTES", 10)
    monkeypatch.setattr(default, "MAX_BYTES", 100)
    contents = {
        "one.py": b"same text here",
        "two.py": b"same text here",
        "sep.py": b"left\x1eright",
        "latin.py": b"caf\xe9 is not UTF-8",
        "empty.py": b"",
        "big.py": b"x" * 101,
        "_sysconfigdata_x.py": b"settings of this machine",
        "encodings/cp1.py": b"import codecs\ndecoding_table = 1",
        "encodings/aliases.py": b"aliases",
        "LICENSE.txt": b"license",
        "notes.txt": b"no source",
    }
    for name, text in contents.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(text)
    found = default.collect(tmp_path)
    assert sorted(document.text for document in found) == [
        b"aliases",
        b"left right",
        b"license",
        b"same text here",
    ]
    assert found == default.collect(tmp_path)
    hashes = [hashlib.sha256(b"rnn-lab default corpus\0" + document.name.encode()) for document in found]
    assert hashes == sorted(hashes, key=lambda digest: digest.digest())


def test_build_is_quick(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("RNN_LAB_CACHE", str(tmp_path))
    started = time.monotonic()
    default_corpus()
    assert time.monotonic() - started < 5
