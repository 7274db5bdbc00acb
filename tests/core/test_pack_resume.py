"""Packing that is killed, interrupted or out of disk goes on and ends with the same bytes."""

import errno
import importlib
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from pack_inputs import many, write_jsonl, write_parquet
from rnn_lab.data import PackProgress, pack, partial
from rnn_lab.errors import ConfigError, DataError

pack_module: Any = importlib.import_module("rnn_lab.data.pack")


KILLED = """
import importlib, os, signal, sys
from rnn_lab.data import pack
module = importlib.import_module("rnn_lab.data.pack")
module.JOURNAL_BYTES, module.PROGRESS_SECONDS = 2000, 0.0
import rnn_lab.data.partial as partial
partial._BUFFER = 100
def progress(at):
    if at.documents >= int(sys.argv[1]):
        os.kill(os.getpid(), signal.SIGKILL)
pack(sys.argv[3:], sys.argv[2], val_fraction=0.1, progress=progress)
"""


@pytest.mark.parametrize("name", ["d.jsonl.zst", "d.parquet", "folder"])
def test_kill_and_resume_gives_identical_bytes(tmp_path: Path, name: str) -> None:
    documents = many(200)
    source = tmp_path / name
    if name == "folder":
        source.mkdir()
        for index, document in enumerate(documents):
            (source / f"{index:03}").write_text(document)
    else:
        (write_parquet if name.endswith("parquet") else write_jsonl)(source, documents)
    other = write_jsonl(tmp_path / "other.jsonl", many(50)[::-1])
    whole = pack([source, other], tmp_path / "whole.bin", val_fraction=0.1)
    out = tmp_path / "out.bin"
    for limit in (70, 150, 230):
        command = [sys.executable, "-c", KILLED, str(limit), str(out), str(source), str(other)]
        assert subprocess.run(command, check=False).returncode == -signal.SIGKILL
        journal = partial.Journal.model_validate_json((tmp_path / "out.bin.partial.json").read_bytes())
        assert limit - 30 < journal.state.train_documents + journal.state.val_documents <= limit
        assert not out.exists()
    resumed = pack([source, other], out, val_fraction=0.1)
    for first, second in (("whole.bin", "out.bin"), ("whole.val.bin", "out.val.bin")):
        assert (tmp_path / first).read_bytes() == (tmp_path / second).read_bytes()
    assert resumed == whole.model_copy(update={"validation": "out.val.bin"})
    assert not list(tmp_path.glob("*partial*"))


class StopHereError(Exception):
    """Stands for a kill at a chosen place."""


def stop_after(documents: int) -> Any:
    def progress(at: PackProgress) -> None:
        if at.documents >= documents:
            raise StopHereError

    return progress


@pytest.fixture
def eager(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pack_module, "JOURNAL_SECONDS", 0.0)
    monkeypatch.setattr(pack_module, "PROGRESS_SECONDS", 0.0)


@pytest.fixture
def stopped(tmp_path: Path, eager: None) -> tuple[Path, Path]:
    source, out = write_jsonl(tmp_path / "d.jsonl", many(20)), tmp_path / "out.bin"
    with pytest.raises(StopHereError):
        pack([source], out, progress=stop_after(9))
    return source, out


def test_resume_reads_only_what_is_left(stopped: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    source, out = stopped
    with Path(f"{out}.partial").open("ab") as file:
        file.write(b"not durable" * 10_000)
    written: list[bytes] = []
    add = partial.PartWriter.add

    def note(self: partial.PartWriter, document: bytes) -> None:
        written.append(document)
        add(self, document)

    monkeypatch.setattr(partial.PartWriter, "add", note)
    pack([source], out)
    assert out.read_bytes() == "\x1e".join(many(20)).encode()
    assert written == [document.encode() for document in many(20)[9:]]


def test_resume_after_a_whole_text_file(tmp_path: Path, eager: None) -> None:
    (tmp_path / "a.txt").write_text("once")
    sources = [tmp_path / "a.txt", write_jsonl(tmp_path / "d.jsonl", ["twice"])]
    with pytest.raises(StopHereError):
        pack(sources, tmp_path / "out", progress=stop_after(1))
    pack(sources, tmp_path / "out")
    assert (tmp_path / "out").read_bytes() == b"once\x1etwice"


def test_journal_is_written_after_the_bytes_are_durable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, eager: None
) -> None:
    synced: dict[str, int] = {}
    fsync, write_journal = os.fsync, partial.PackPaths.write_journal
    journals = 0

    def note_fsync(descriptor: int) -> None:
        fsync(descriptor)
        synced[Path(f"/proc/self/fd/{descriptor}").readlink().name] = os.fstat(descriptor).st_size

    def check_journal(self: partial.PackPaths, journal: partial.Journal) -> None:
        nonlocal journals
        journals += 1
        assert journal.state.train_bytes == synced["out.partial"]
        assert journal.state.val_bytes == synced["out.val.partial"]
        write_journal(self, journal)

    monkeypatch.setattr(os, "fsync", note_fsync)
    monkeypatch.setattr(partial.PackPaths, "write_journal", check_journal)
    pack([write_jsonl(tmp_path / "d.jsonl", many(20))], tmp_path / "out", val_fraction=0.5)
    assert journals == 21


def test_resume_refuses_other_plans(stopped: tuple[Path, Path]) -> None:
    source, out = stopped
    with pytest.raises(ConfigError, match="begun with other val_fraction, max_bytes;"):
        pack([source], out, val_fraction=0.5, max_bytes=10)
    write_jsonl(source, many(21))
    with pytest.raises(ConfigError, match=r"begun with other sources;.*resume=False"):
        pack([source], out)
    pack([source], out, resume=False)
    assert out.read_bytes() == "\x1e".join(many(21)).encode()


def test_resume_refuses_damaged_remains(stopped: tuple[Path, Path]) -> None:
    source, out = stopped
    part = Path(f"{out}.partial")
    part.write_bytes(part.read_bytes()[:-5])
    with pytest.raises(DataError, match="is 5 bytes shorter than its journal says"):
        pack([source], out)
    Path(f"{out}.partial.json").write_text("{}")
    with pytest.raises(DataError, match="not a journal"):
        pack([source], out)


@pytest.mark.parametrize("call", range(1, 8))
def test_death_while_finishing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: int) -> None:
    source, out = write_jsonl(tmp_path / "d.jsonl", many(60)), tmp_path / "out.bin"
    whole = pack([source], tmp_path / "whole.bin", val_fraction=0.3)
    calls = 0

    def dying(real: Any) -> Any:
        def step(*args: Any, **kwargs: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls == call:
                raise StopHereError
            return real(*args, **kwargs)

        return step

    with monkeypatch.context() as patch:
        patch.setattr(pack_module, "_finish", dying(pack_module._finish))
        patch.setattr(pack_module, "fsync_dir", dying(pack_module.fsync_dir))
        patch.setattr(pack_module, "write_sidecar", dying(pack_module.write_sidecar))
        patch.setattr(Path, "unlink", dying(Path.unlink))
        patch.setattr(partial.PackPaths, "write_journal", dying(partial.PackPaths.write_journal))
        with pytest.raises(StopHereError):
            pack([source], out, val_fraction=0.3)
    assert pack([source], out, val_fraction=0.3) == whole.model_copy(update={"validation": "out.val.bin"})
    assert out.read_bytes() == (tmp_path / "whole.bin").read_bytes()
    assert (tmp_path / "out.val.bin").read_bytes() == (tmp_path / "whole.val.bin").read_bytes()
    assert not list(tmp_path.glob("*partial*"))
    with pytest.raises(ConfigError, match="exists"):
        pack([source], out, val_fraction=0.3)


def test_existing_output(tmp_path: Path) -> None:
    source, out = write_jsonl(tmp_path / "d.jsonl", ["new"]), tmp_path / "out.bin"
    out.write_text("old")
    with pytest.raises(ConfigError, match=r"out\.bin exists"):
        pack([source], out)
    assert out.read_text() == "old"
    pack([source], out, overwrite=True)
    assert out.read_text() == "new"
    with pytest.raises(ConfigError, match="is a folder"):
        pack([source], tmp_path)
    with pytest.raises(ConfigError, match="create it first"):
        pack([source], tmp_path / "no" / "out")


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_disk_full_keeps_the_partial(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, eager: None, code: int) -> None:
    source, out = write_jsonl(tmp_path / "d.jsonl", many(60)), tmp_path / "out.bin"
    write, written = os.write, 0

    def limited(descriptor: int, data: Any) -> int:
        nonlocal written
        if written + len(data) > 3000:
            raise OSError(code, os.strerror(code))
        written += len(data)
        return write(descriptor, data)

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", limited)
        with pytest.raises(DataError, match=r"disk of .*out\.bin\.partial is full.*repeat the same command"):
            pack([source], out)
    assert 0 < Path(f"{out}.partial").stat().st_size <= 3000
    assert partial.PackPaths(out).read_journal() is not None
    pack([source], out)
    assert out.read_bytes() == "\x1e".join(many(60)).encode()


def test_short_writes_are_completed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = write_jsonl(tmp_path / "d.jsonl", many(60))
    write = os.write
    monkeypatch.setattr(os, "write", lambda descriptor, data: write(descriptor, data[:7]))
    pack([source], tmp_path / "out")
    assert (tmp_path / "out").read_bytes() == "\x1e".join(many(60)).encode()


def test_two_packs_into_one_file(tmp_path: Path) -> None:
    source = write_jsonl(tmp_path / "d.jsonl", ["x"])
    paths = partial.PackPaths(tmp_path / "out")
    writer = partial.PartWriter(paths.partial, keep=0, documents=0, delimiter=30)
    try:
        with pytest.raises(ConfigError, match="another process is packing"):
            pack([source], paths.out)
    finally:
        writer.close()
    pack([source], paths.out)
