"""SIGINT and SIGTERM as a request to stop in order."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType


@contextmanager
def asked_to_stop(first: Callable[[int], None]) -> Iterator[None]:
    """While the block lasts, the first SIGINT or SIGTERM calls `first` with its number; a second one ends at once.

    Signals reach the main thread only: in any other nothing is changed.

    Raises:
        KeyboardInterrupt: at the second signal.

    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    asked = False

    def stop(number: int, frame: FrameType | None) -> None:
        nonlocal asked
        if asked:
            raise KeyboardInterrupt
        asked = True
        first(number)

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
