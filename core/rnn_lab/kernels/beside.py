"""How many calls of a kernel run at once: those that fill a GPU alone are spread in another way beside others."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

_calls = ContextVar("calls", default=1)


def calls() -> int:
    """As many as the pass at hand says; 1 outside of `beside`."""
    return _calls.get()


@contextmanager
def beside(n: int) -> Iterator[None]:
    """Inside the block, so many calls are launched that may run at once."""
    token = _calls.set(n)
    try:
        yield
    finally:
        _calls.reset(token)
