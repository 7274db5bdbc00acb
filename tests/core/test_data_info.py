"""`describe`: counts and entropies against brute force, sampling, UTF-8, sidecars."""

import math
from collections import Counter
from pathlib import Path

import pytest
from rnn_lab.data import Sidecar, describe, info, write_sidecar
from rnn_lab.errors import ConfigError, DataError

TEXT = ("Grüße an alle, € und 𝄞!\x1e" + "the cat sat on the mat; the rat sat on the cat. " * 9).encode()


def brute_entropy(data: bytes, order: int) -> float:
    grams = Counter(data[i : i + order + 1] for i in range(len(data) - order))
    contexts: Counter[bytes] = Counter()
    for gram, count in grams.items():
        contexts[gram[:-1]] += count
    total = sum(grams.values())
    return -sum(n / total * math.log2(n / contexts[gram[:-1]]) for gram, n in grams.items())


@pytest.mark.parametrize("chunk", [1, 2, 3, 7, 1 << 22])
def test_entropies_equal_brute_force_whatever_the_chunks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chunk: int
) -> None:
    monkeypatch.setattr(info, "_CHUNK", chunk)
    monkeypatch.setattr(info, "_FLUSH", 50 if chunk == 7 else 1 << 22)
    path = tmp_path / "x"
    path.write_bytes(TEXT[:200])
    found = describe(path)
    assert found.entropies == pytest.approx([brute_entropy(TEXT[:200], order) for order in range(3)])
    assert found.histogram.tolist() == [TEXT[:200].count(byte) for byte in range(256)]
    assert found.utf8_error is None
    assert (found.size, found.read_bytes, found.sampled) == (200, 200, False)


def test_documents_are_delimiters_plus_one(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_bytes(b"a\x1eb\x1ec")
    found = describe(path)
    assert (found.documents, found.documents_estimated, found.delimiter) == (3, False, 30)
    assert found.sidecar is None
    sidecar = Sidecar(documents=9, bytes=5, sha256="0" * 64, created_by="test", delimiter=ord("b"))
    write_sidecar(path, sidecar)
    found = describe(path)
    assert (found.documents, found.delimiter, found.sidecar) == (2, ord("b"), sidecar)


@pytest.mark.parametrize("data", [b"a", b"ab", b"aaaa"])
def test_tiny_files_have_no_entropy_to_speak_of(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "x"
    path.write_bytes(data)
    assert describe(path).entropies == (brute_entropy(data, 0), 0.0, 0.0)


@pytest.mark.parametrize(
    ("data", "error"),
    [
        (b"abc\xffdef", 3),
        (b"\x80abc", 0),
        ("ab€".encode()[:-1], 2),
        ("ab€".encode()[:-1] + b"cd", 2),
        (b"a" * 20 + "𝄞".encode()[:3], 20),
        ("ab€".encode(), None),
    ],
)
@pytest.mark.parametrize("chunk", [1, 4, 100])
def test_first_invalid_offset(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, data: bytes, error: int | None, chunk: int
) -> None:
    monkeypatch.setattr(info, "_CHUNK", chunk)
    path = tmp_path / "x"
    path.write_bytes(data)
    assert describe(path).utf8_error == error


def test_sampled_blocks_are_spread_and_honest(tmp_path: Path) -> None:
    path = tmp_path / "x"
    data = ("€" * 99 + "\x1e").encode() * 200
    path.write_bytes(data)
    found = describe(path, limit_bytes=6400)
    assert found.sampled
    assert (found.size, found.read_bytes) == (len(data), 6400)
    assert found.documents_estimated
    assert found.documents == round(int(found.histogram[30]) * len(data) / 6400) + 1
    assert 100 < found.documents < 400
    assert found.utf8_error is None
    path.write_bytes(data[:-1] + b"\xff")
    assert describe(path, limit_bytes=6400).utf8_error == len(data) - 1
    path.write_bytes(b"\xff" + data[1:])
    assert describe(path, limit_bytes=6400).utf8_error == 0
    sidecar = Sidecar(documents=200, bytes=len(data), sha256="0" * 64, created_by="test")
    write_sidecar(path, sidecar)
    found = describe(path, limit_bytes=6400)
    assert (found.documents, found.documents_estimated) == (200, False)


def test_sampling_does_not_join_blocks(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_bytes(bytes(range(250)) * 40)
    found = describe(path, limit_bytes=6400)
    assert found.sampled
    assert found.entropies[1:] == (0.0, 0.0)


def test_limit_is_inclusive(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_bytes(TEXT[:192])
    assert describe(path, limit_bytes=192).entropies[1] == pytest.approx(brute_entropy(TEXT[:192], 1))
    with pytest.raises(ConfigError, match="at least 192"):
        describe(path, limit_bytes=191)


def test_errors(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="does not exist"):
        describe(tmp_path / "x")
    with pytest.raises(DataError, match="folder"):
        describe(tmp_path)


def test_file_that_shrinks_while_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x"
    path.write_bytes(b"a" * 50)
    monkeypatch.setattr(info, "_spans", lambda size, limit: [(0, 100)])
    with pytest.raises(DataError, match="became shorter"):
        describe(path)
