"""What tests ask of processes that are not their children."""

import time
from collections.abc import Callable
from pathlib import Path


def alive(pid: int) -> bool:
    """Whether a process is there and not a zombie, by /proc."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:  # also one that ends while it is read
        return False
    return state != "Z"


def wait_for(holds: Callable[[], object], seconds: float = 30.0) -> None:
    """Until it holds; a failure after so many seconds."""
    until = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < until, "it did not come to be"
        time.sleep(0.05)
