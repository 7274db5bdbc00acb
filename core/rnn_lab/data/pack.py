"""Packing documents of other formats into one byte file; a pack that was killed goes on where it was."""

import errno
import hashlib
import time
from collections.abc import Callable, Iterable
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass
from pathlib import Path

from rnn_lab.data.partial import Journal, PackPaths, PackState, PartWriter, Plan
from rnn_lab.data.sidecar import DELIMITER, Sidecar, SourceInfo, write_sidecar
from rnn_lab.data.sources import open_sources
from rnn_lab.data.texts import Source
from rnn_lab.errors import ConfigError, DataError
from rnn_lab.system.atomic import fsync_dir

JOURNAL_BYTES = 256 << 20
JOURNAL_SECONDS = 5.0
PROGRESS_SECONDS = 0.25
_SPACE = 0x20


@dataclass(frozen=True, slots=True)
class PackProgress:
    """Where a pack is: source being read (index from 0), documents and bytes written, seconds of this run."""

    source: str
    source_index: int
    source_count: int
    documents: int
    bytes: int
    seconds: float


def pack(
    sources: Iterable[str | Path],
    out: str | Path,
    *,
    column: str = "text",
    delimiter: int = DELIMITER,
    val_fraction: float = 0.0,
    progress: Callable[[PackProgress], None] | None = None,
    resume: bool = True,
    max_bytes: int | None = None,
    overwrite: bool = False,
) -> Sidecar:
    """Write the documents of `sources` to the byte file `out` and return its sidecar, `<out>.json`.

    Documents are joined by `delimiter` (a delimiter inside one becomes a space); empty ones and files that
    are not UTF-8 are left out and counted. `val_fraction` of the documents, chosen by content hash, goes to
    `<stem>.val<suffix>` beside `out`; where chance chooses none, the sidecar names no validation file.
    `max_bytes` ends the pack there (both files together), the last document cut between characters.

    Until it is complete the output is `<out>.partial`, with a journal. The same call after a kill or a full
    disk goes on from the journal and ends with the same bytes; `resume=False` starts over. `progress` is
    called a few times per second and at the end. Names of sources: see `open_sources`.

    Raises:
        ConfigError: an argument is out of range, `out` exists without `overwrite`, a library is missing, or
            the partial file belongs to a pack of other sources or settings.
        DataError: a source is missing or damaged or has no such column, there is no document, or the disk
            is full.
    """
    paths = PackPaths(out)
    _check_arguments(paths, delimiter, val_fraction, max_bytes)
    opened = open_sources(sources, column, paths.all())
    plan = _plan(opened, column, delimiter, val_fraction, max_bytes)
    journal = paths.read_journal() if resume else None
    if journal is not None:
        _check_plan(paths, journal.plan, plan)
    try:
        if journal is None or journal.sidecar is None:
            _refuse_existing(paths, val_fraction, overwrite)
            state = journal.state if journal else PackState(source_documents=[0] * len(opened))
            with ExitStack() as stack:
                journal = _Packer(paths, opened, Journal(plan=plan, state=state), stack, progress).run()
        assert journal.sidecar is not None
        return _finish(paths, journal.sidecar)
    except OSError as error:
        raise _write_error(paths, error) from error


def _check_arguments(paths: PackPaths, delimiter: int, val_fraction: float, max_bytes: int | None) -> None:
    if not 0 <= delimiter < 128 or delimiter == _SPACE:
        raise ConfigError(f"delimiter = {delimiter}: must be an ASCII code other than the space, e.g. 30")
    if not 0 <= val_fraction < 1:
        raise ConfigError(f"val_fraction = {val_fraction}: must be at least 0 and below 1, e.g. 0.01")
    if max_bytes is not None and max_bytes < 1:
        raise ConfigError(f"max_bytes = {max_bytes}: must be at least 1")
    if not paths.out.parent.is_dir():
        raise ConfigError(f"{paths.out}: the folder {paths.out.parent} does not exist; create it first")
    if paths.out.is_dir():
        raise ConfigError(f"{paths.out} is a folder; name the file to write")


def _refuse_existing(paths: PackPaths, val_fraction: float, overwrite: bool) -> None:
    for path in (paths.out, paths.val) if val_fraction else (paths.out,):
        if path.exists() and not overwrite:
            raise ConfigError(f"{path} exists; choose another name, or overwrite it: --overwrite (overwrite=True)")


def _plan(sources: list[Source], column: str, delimiter: int, val_fraction: float, max_bytes: int | None) -> Plan:
    identities = "\n".join(source.identity for source in sources).encode(errors="surrogateescape")
    return Plan(
        sources=hashlib.sha256(identities).hexdigest(),
        column=column,
        delimiter=delimiter,
        val_fraction=val_fraction,
        max_bytes=max_bytes,
    )


def _check_plan(paths: PackPaths, old: Plan, new: Plan) -> None:
    before, now = old.model_dump(), new.model_dump()
    if changed := [key for key in now if before[key] != now[key]]:
        raise ConfigError(
            f"{paths.partial} was begun with other {', '.join(changed)}; repeat them to go on, "
            "or start over: --no-resume (resume=False)"
        )


def _write_error(paths: PackPaths, error: OSError) -> DataError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return DataError(
            f"the disk of {paths.partial} is full; the partial file is kept: make room and repeat the same "
            "command to go on from there"
        )
    return DataError(
        f"cannot write {paths.out} ({error.strerror or error}); the partial file is kept: "
        "repeat the same command to go on from there"
    )


def _finish(paths: PackPaths, sidecar: Sidecar) -> Sidecar:
    """Rename the complete partial files; repeating it after a kill at any point ends the same."""
    if sidecar.validation is None:
        paths.val_partial.unlink(missing_ok=True)
    else:
        _rename(paths.val_partial, paths.val)
        held = Sidecar(
            documents=sidecar.validation_documents,
            bytes=sidecar.validation_bytes,
            sha256=sidecar.validation_sha256,
            delimiter=sidecar.delimiter,
            created_by=sidecar.created_by,
        )
        write_sidecar(paths.val, held)
    _rename(paths.partial, paths.out)
    write_sidecar(paths.out, sidecar)
    paths.journal.unlink(missing_ok=True)
    return sidecar


def _rename(partial: Path, final: Path) -> None:
    with suppress(FileNotFoundError):
        partial.replace(final)
    fsync_dir(final.parent)


class _Packer:
    """One run over the sources from the state in `journal`; `stack` closes the files."""

    def __init__(
        self,
        paths: PackPaths,
        sources: list[Source],
        journal: Journal,
        stack: ExitStack,
        progress: Callable[[PackProgress], None] | None,
    ) -> None:
        self.paths = paths
        self.sources = sources
        self.plan = journal.plan
        self.state = state = journal.state
        self.progress = progress
        self.delimiter = bytes([self.plan.delimiter])
        self.val_below = int(self.plan.val_fraction * 2**64)
        self.train = self._part(stack, paths.partial, state.train_bytes, state.train_documents)
        self.val: PartWriter | None = None
        if self.plan.val_fraction:
            self.val = self._part(stack, paths.val_partial, state.val_bytes, state.val_documents)
        self.started = self.last_journal = self.last_progress = time.monotonic()
        self.journal_bytes = self._bytes()

    def _part(self, stack: ExitStack, path: Path, keep: int, documents: int) -> PartWriter:
        return stack.enter_context(
            closing(PartWriter(path, keep=keep, documents=documents, delimiter=self.delimiter[0]))
        )

    def _bytes(self) -> int:
        return self.train.bytes + (self.val.bytes if self.val else 0)

    def run(self) -> Journal:
        """Pack everything that is left; returns the journal with the final sidecar, all bytes durable."""
        state = self.state
        full = False
        while state.source < len(self.sources) and not full:
            for item in self.sources[state.source].items(state.item):
                state.item += 1
                full = self._take(item)
                if full:
                    break
                self._tick()
            if not full:
                state.source, state.item = state.source + 1, 0
        self._sync()
        if not self.train.documents:
            self.paths.discard()
            raise DataError(
                f"nothing to train on in {len(self.sources)} source(s): {state.skipped_empty} empty and "
                f"{state.skipped_not_utf8} non-UTF-8 documents, {state.val_documents} held back; "
                "check the sources"
            )
        journal = Journal(plan=self.plan, state=state, sidecar=self._sidecar())
        self.paths.write_journal(journal)
        self._report(state.source)
        return journal

    def _take(self, item: bytes | None) -> bool:
        """Write one document; True when `max_bytes` is reached."""
        if item is None:
            self.state.skipped_not_utf8 += 1
            return False
        if not item:
            self.state.skipped_empty += 1
            return False
        part = self.train
        if self.val and int.from_bytes(hashlib.sha256(item).digest()[:8], "big") < self.val_below:
            part = self.val
        full = False
        if self.plan.max_bytes is not None:
            room = self.plan.max_bytes - self._bytes() - (1 if part.documents else 0)
            full = len(item) >= room
            if len(item) > room:
                # A cut inside a character leaves an incomplete tail, which "ignore" drops.
                item = item[: max(0, room)].decode(errors="ignore").encode()
        if item:
            part.add(item.replace(self.delimiter, b" "))
            self.state.source_documents[self.state.source] += 1
        return full

    def _tick(self) -> None:
        now = time.monotonic()
        if now - self.last_journal >= JOURNAL_SECONDS or self._bytes() - self.journal_bytes >= JOURNAL_BYTES:
            self._sync()
            self.paths.write_journal(Journal(plan=self.plan, state=self.state))
            self.last_journal, self.journal_bytes = time.monotonic(), self._bytes()
        if now - self.last_progress >= PROGRESS_SECONDS:
            self._report(self.state.source)
            self.last_progress = now

    def _sync(self) -> None:
        self.train.sync()
        self.state.train_bytes, self.state.train_documents = self.train.bytes, self.train.documents
        if self.val:
            self.val.sync()
            self.state.val_bytes, self.state.val_documents = self.val.bytes, self.val.documents

    def _report(self, index: int) -> None:
        if self.progress is not None:
            index = min(index, len(self.sources) - 1)
            documents = self.train.documents + (self.val.documents if self.val else 0)
            name = self.sources[index].name
            seconds = time.monotonic() - self.started
            self.progress(PackProgress(name, index, len(self.sources), documents, self._bytes(), seconds))

    def _sidecar(self) -> Sidecar:
        held = self.val if self.val and self.val.documents else None
        return Sidecar(
            documents=self.train.documents,
            bytes=self.train.bytes,
            sha256=self.train.sha256,
            delimiter=self.delimiter[0],
            created_by="rnn-lab data pack",
            source=tuple(
                SourceInfo(name=source.name, kind=source.kind, bytes=source.size, documents=documents)
                for source, documents in zip(self.sources, self.state.source_documents, strict=True)
            ),
            skipped_empty=self.state.skipped_empty,
            skipped_not_utf8=self.state.skipped_not_utf8,
            validation=self.paths.val.name if held else None,
            validation_documents=held.documents if held else 0,
            validation_bytes=held.bytes if held else 0,
            validation_sha256=held.sha256 if held else "",
        )
