"""Limits on what foreign code may do at import: how long it runs, and that it does not end the process."""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn

from rnn_lab.errors import PluginError

PATIENT = {"RNN_LAB_PLUGIN_TIMEOUT": "120"}
"""Environment of training programs that others start: many at once import torch more slowly than one, and nobody waits
for their prompt. The user's own value holds."""


@contextmanager
def confined(seconds: float) -> Iterator[None]:
    """Raise PluginError in the block once it has run for `seconds`, and where it calls `os._exit`.

    The limit of time works in the main thread of a Unix process; elsewhere the block runs without one.
    """
    with _no_sudden_exit(), _time_limit(seconds):
        yield


@contextmanager
def _time_limit(seconds: float) -> Iterator[None]:
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


@contextmanager
def _no_sudden_exit() -> Iterator[None]:
    """`os._exit`, which no `except` would see, raises in this process; forked children may still call it."""
    real, process = os._exit, os.getpid()

    def refused(status: int) -> NoReturn:
        if os.getpid() != process:
            real(status)
        raise PluginError(f"calls os._exit({status})")

    os._exit = refused
    try:
        yield
    finally:
        os._exit = real
