"""A limit on how long foreign code may run at import."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from rnn_lab.errors import PluginError


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Raise PluginError in the block once it has run for `seconds`.

    Works in the main thread of a Unix process; elsewhere the block runs without a limit.
    """
    if not hasattr(signal, "setitimer") or threading.current_thread() is not threading.main_thread():
        yield
        return

    def expired(number: int, frame: FrameType | None) -> None:
        raise PluginError(f"took longer than {seconds:g} s to load (RNN_LAB_PLUGIN_TIMEOUT sets the limit)")

    previous = signal.signal(signal.SIGALRM, expired)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)
