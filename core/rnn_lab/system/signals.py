"""SIGINT and SIGTERM as a request to stop in order, and a signal for those whose parent is gone."""

import ctypes
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType

_PR_SET_PDEATHSIG = 1


def when_parent_ends(number: int) -> None:
    """Have the kernel send this process `number` when its parent ends; nothing where there is no such call (Linux)."""
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, number)


@contextmanager
def asked_to_stop(first: Callable[[int], None], echo: float = 0.0) -> Iterator[None]:
    """While the block lasts, the first SIGINT or SIGTERM calls `first` with its number; a second one ends at once.

    Signals reach the main thread only: in any other nothing is changed.

    Args:
        first: hears of the first.
        echo: seconds in which another is taken for the same request, sent twice.

    Raises:
        KeyboardInterrupt: at the second signal.

    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    asked: float | None = None

    def stop(number: int, frame: FrameType | None) -> None:
        nonlocal asked
        now = time.monotonic()
        if asked is None:
            asked = now
            first(number)
        elif now - asked >= echo:
            raise KeyboardInterrupt

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
