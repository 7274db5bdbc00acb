"""Files that are either the old ones or the complete new ones, whatever kills the process in between."""

import contextlib
import os
import secrets
from pathlib import Path


def write_bytes_atomic(path: str | Path, data: bytes) -> None:
    """Write `data` as the file `path`: temporary name in the same folder, fsync, rename, fsync of the folder.

    Raises:
        OSError: the folder is missing, not writable or full; `path` is then as it was before.

    """
    target = Path(path)
    temporary = target.with_name(f".{target.name}.{os.getpid()}.{secrets.token_hex(4)}.tmp")
    try:
        with temporary.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(target)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise
    fsync_dir(target.parent)


def write_text_atomic(path: str | Path, text: str) -> None:
    """Write `text` as UTF-8 the way `write_bytes_atomic` does; newlines stay as they are.

    Raises:
        OSError: as `write_bytes_atomic`.

    """
    write_bytes_atomic(path, text.encode())


def fsync_dir(path: str | Path) -> None:
    """Make renames and new names within the folder `path` durable; nothing where folders can't be opened.

    Raises:
        OSError: `path` is missing or not a folder.

    """
    if os.name == "nt":
        return
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
