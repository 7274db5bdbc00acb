"""Byte files of any size, the split into training and validation, cache folder, atomic writes."""

import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from rnn_lab.data import (
    ByteFile,
    ContiguousStreams,
    RandomWindows,
    Region,
    Sidecar,
    open_split,
    read_sidecar,
    sidecar_path,
    write_sidecar,
)
from rnn_lab.errors import ConfigError, DataError
from rnn_lab.system.atomic import fsync_dir, write_bytes_atomic, write_text_atomic
from rnn_lab.system.paths import cache_dir


def make(path: Path, size: int) -> Path:
    path.write_bytes(bytes(97 + index % 26 for index in range(size)))
    return path


def sidecar_for(size: int, **extra: object) -> Sidecar:
    fields = {"documents": 1, "bytes": size, "sha256": "0" * 64, "created_by": "test", **extra}
    return Sidecar.model_validate(fields)


def test_byte_file_is_read_only_bytes(tmp_path: Path) -> None:
    file = ByteFile(str(make(tmp_path / "x", 100)))
    assert file.path == tmp_path / "x"
    assert len(file) == 100
    assert file.array.dtype == np.uint8
    assert file.array[:3].tobytes() == b"abc"
    with pytest.raises(ValueError, match="read-only"):
        file.array[0] = 1


def test_byte_file_errors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DataError, match="missing does not exist"):
        ByteFile(tmp_path / "missing")
    with pytest.raises(DataError, match=r"is a folder.*rnn-lab data pack"):
        ByteFile(tmp_path)
    (tmp_path / "empty").touch()
    with pytest.raises(DataError, match="empty is empty"):
        ByteFile(tmp_path / "empty")
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(DataError, match="not a regular file"):
        ByteFile(tmp_path / "pipe")
    with pytest.raises(DataError, match=r"x/y cannot be read \(Not a directory\)"):
        ByteFile(make(tmp_path / "x", 9) / "y")

    def refuse(*args: object, **kwargs: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(DataError, match=r"cannot be read \(Permission denied\)"):
        ByteFile(tmp_path / "x")


def test_file_of_1300_gigabytes(tmp_path: Path) -> None:
    path = tmp_path / "huge.bin"
    size = 1_300_000_000_000
    with path.open("wb") as file:
        try:
            file.truncate(size)
        except OSError as error:
            pytest.skip(f"no sparse files here: {error}")
        file.seek(size - 1)
        file.write(b"!")
    split = open_split(path, seq_len=512)
    assert len(split.val) == 13_000_000_000
    assert split.val.array[-1] == ord("!")
    starts = RandomWindows(split.train, 0, 64, 512).batch(1).starts_B
    assert starts.min() >= 0
    assert starts.max() > 2**40
    streams = ContiguousStreams(split.train, 0, 4, 512)
    assert streams.batch(10**9).starts_B.max() < len(split.train) - 512


def test_region_stays_within_its_file(tmp_path: Path) -> None:
    file = ByteFile(make(tmp_path / "x", 100))
    assert Region(file, 26, 30).array.tobytes() == b"abcd"
    assert len(Region(file, 26, 30)) == 4
    for start, stop in ((-1, 5), (5, 5), (6, 5), (0, 101)):
        with pytest.raises(ConfigError, match="empty or leaves"):
            Region(file, start, stop)


def test_last_percent_validates_and_never_trains(tmp_path: Path) -> None:
    split = open_split(make(tmp_path / "x", 10_000), seq_len=10)
    assert (split.train.start, split.train.stop, split.val.start, split.val.stop) == (0, 9900, 9900, 10_000)
    assert split.val_source == "last 1 %"


def test_small_file_validates_on_one_window(tmp_path: Path) -> None:
    split = open_split(make(tmp_path / "x", 200), seq_len=10)
    assert (len(split.train), len(split.val)) == (200 - 27, 27)
    assert len(open_split(make(tmp_path / "x", 54), seq_len=10).train) == 27
    with pytest.raises(DataError, match=r"53 bytes are too few.*need 54 bytes"):
        open_split(make(tmp_path / "x", 53), seq_len=10)
    with pytest.raises(ConfigError, match="seq_len = 0"):
        open_split(tmp_path / "x", seq_len=0)


def test_given_validation_file(tmp_path: Path) -> None:
    train, val = make(tmp_path / "x", 27), make(tmp_path / "y", 40)
    split = open_split(train, val, seq_len=10)
    assert (len(split.train), len(split.val), split.val_source) == (27, 40, "given")
    assert split.val.file.path == val
    with pytest.raises(ConfigError, match="is the training file itself"):
        open_split(train, tmp_path / "." / "x", seq_len=10)
    with pytest.raises(DataError, match=r"x: 27 bytes of training data .* needs 28"):
        open_split(train, val, seq_len=11)
    with pytest.raises(DataError, match=r"y: 26 bytes of validation data .* needs 27"):
        open_split(train, make(val, 26), seq_len=10)
    with pytest.raises(DataError, match="does not exist"):
        open_split(train, tmp_path / "z", seq_len=10)


def test_sidecar_names_the_validation_file(tmp_path: Path) -> None:
    train, val = make(tmp_path / "x", 300), make(tmp_path / "v", 50)
    write_sidecar(train, sidecar_for(300, validation="v", validation_bytes=50))
    split = open_split(train, seq_len=10)
    assert (len(split.train), len(split.val), split.val_source) == (300, 50, "sidecar")
    assert open_split(train, make(tmp_path / "w", 60), seq_len=10).val_source == "given"
    make(val, 49)
    with pytest.raises(DataError, match="v is truncated: 49 bytes, its sidecar says 50"):
        open_split(train, seq_len=10)


def test_sidecar_tells_a_truncated_file(tmp_path: Path) -> None:
    path = make(tmp_path / "x", 299)
    write_sidecar(path, sidecar_for(300))
    with pytest.raises(DataError, match="x is truncated: 299 bytes, its sidecar says 300"):
        open_split(path, seq_len=10)
    with pytest.raises(DataError, match="x is truncated"):
        open_split(make(tmp_path / "y", 300), path, seq_len=10)
    make(path, 301)
    with pytest.raises(DataError, match="x is longer than packed"):
        open_split(path, seq_len=10)


def test_sidecar_reading(tmp_path: Path) -> None:
    path = tmp_path / "x"
    assert read_sidecar(path) is None
    sidecar_path(path).write_text('{"someone": "else"}')
    assert read_sidecar(path) is None
    write_sidecar(path, sidecar_for(300))
    assert read_sidecar(path) == sidecar_for(300)
    stored = json.loads(sidecar_path(path).read_text())
    assert (stored["format"], stored["delimiter"], stored["bytes"]) == ("rnn-lab-bytes", 30, 300)
    for change in ({"version": 2}, {"sha256": "no"}, {"validation": "../up"}, {"unknown": 1}):
        sidecar_path(path).write_text(json.dumps(stored | change))
        with pytest.raises(DataError, match=rf"x\.json: not a sidecar.*{next(iter(change))}"):
            read_sidecar(path)


def test_cache_dir(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("RNN_LAB_CACHE", str(tmp_path / "own"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert cache_dir() == tmp_path / "own"
    monkeypatch.setenv("RNN_LAB_CACHE", "~/mine")
    assert cache_dir() == tmp_path / "home" / "mine"
    monkeypatch.setenv("RNN_LAB_CACHE", "")
    assert cache_dir() == tmp_path / "xdg" / "rnn-lab"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_dir() == tmp_path / "home" / ".cache" / "rnn-lab"
    assert list(tmp_path.iterdir()) == []


def test_atomic_write_replaces(tmp_path: Path) -> None:
    path = tmp_path / "f"
    write_bytes_atomic(path, b"one")
    write_text_atomic(path, "zwei\n€")
    assert path.read_bytes() == "zwei\n€".encode()
    assert [entry.name for entry in tmp_path.iterdir()] == ["f"]


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_atomic_write_that_fails_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str) -> None:
    path = tmp_path / "f"
    path.write_bytes(b"old")

    def full(*args: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os if step == "fsync" else Path, step, full)
    with pytest.raises(OSError, match="No space"):
        write_bytes_atomic(path, b"new")
    assert path.read_bytes() == b"old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["f"]


def test_atomic_write_syncs_before_it_renames(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    steps: list[str] = []
    fsync, replace = os.fsync, Path.replace

    def note_fsync(descriptor: int) -> None:
        steps.append("folder" if os.path.isdir(f"/proc/self/fd/{descriptor}") else "file")  # noqa: PTH112
        fsync(descriptor)

    def note_replace(self: Path, target: Path) -> Path:
        steps.append("rename")
        return replace(self, target)

    monkeypatch.setattr(os, "fsync", note_fsync)
    monkeypatch.setattr(Path, "replace", note_replace)
    write_bytes_atomic(tmp_path / "f", b"new")
    assert steps == ["file", "rename", "folder"]
    with pytest.raises(OSError, match="f"):
        fsync_dir(tmp_path / "f")


def test_data_package_imports_no_torch() -> None:
    code = "import sys, rnn_lab.data; assert 'torch' not in sys.modules; assert 'pyarrow' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
