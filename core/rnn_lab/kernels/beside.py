"""How many calls of a kernel run at once: those that fill a GPU alone are spread in another way beside others."""

from collections.abc import Iterator
from contextlib import contextmanager

_calls = 1  # no ContextVar, which dynamo does not trace


def calls() -> int:
    """As many as the pass at hand says; 1 outside of `beside`."""
    return _calls


@contextmanager
def beside(n: int) -> Iterator[None]:
    """Inside the block, so many calls are launched that may run at once."""
    global _calls
    before, _calls = _calls, n
    try:
        yield
    finally:
        _calls = before
