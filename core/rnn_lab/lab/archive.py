"""Folders as tar streams in pieces: a run of any size travels without ever being whole in memory."""

import io
import tarfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

PIECE_BYTES = 4 * 2**20
"""Largest piece that is handed over at once."""


def pieces(members: Iterable[tuple[str, Path]]) -> Iterator[bytes]:
    """A tar archive of files, as (name within it, file), in pieces of at most PIECE_BYTES.

    Raises:
        OSError: a file cannot be read, or became shorter meanwhile.
    """
    for name, path in members:
        with path.open("rb") as file:
            info = tarfile.TarInfo(name)
            info.size, left = (path.stat().st_size,) * 2
            info.mtime = int(path.stat().st_mtime)
            yield info.tobuf(tarfile.PAX_FORMAT)
            while left:
                piece = file.read(min(left, PIECE_BYTES))
                if not piece:
                    raise OSError(f"{path} became shorter while it was read")
                left -= len(piece)
                yield piece
            yield bytes(-info.size % tarfile.BLOCKSIZE)
    yield bytes(2 * tarfile.BLOCKSIZE)


def unpack(take: Callable[[], bytes], folder: Path) -> None:
    """Write the files of an archive below `folder`; `take` gives the next piece, and nothing at its end.

    Raises:
        OSError: the disk is full.
        tarfile.TarError: the archive is cut short, or names a file outside the folder.
    """
    folder.mkdir(parents=True, exist_ok=True)
    reader = io.BufferedReader(_Pieces(take), PIECE_BYTES)
    with tarfile.open(fileobj=reader, mode="r|") as archive:
        archive.extractall(folder, filter="data")
    while reader.read(PIECE_BYTES):
        pass  # to its end, so that the sender knows that everything arrived


class _Pieces(io.RawIOBase):
    """A file over pieces that come one after the other."""

    def __init__(self, take: Callable[[], bytes]) -> None:
        self._take, self._left = take, b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: "memoryview") -> int:  # type: ignore[override]
        if not self._left:
            self._left = self._take()
        count = min(len(buffer), len(self._left))
        buffer[:count], self._left = self._left[:count], self._left[count:]
        return count
