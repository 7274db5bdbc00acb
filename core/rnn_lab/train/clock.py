"""Where the seconds of a run went. Every second is in exactly one bucket, so the buckets sum to the wall time.

startup     opening data, building and loading the model
warmup      the first steps of every session, one or those before a CUDA graph: compilation, autotuning, capture
train       all other optimizer steps: the clock that a time budget counts; device time where steps are queued
eval        validation
checkpoint  writing checkpoints
other       logging, trackers, everything else
"""

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

BUCKETS = ("startup", "warmup", "train", "eval", "checkpoint", "other")


class Clock:
    """Accounts the time since its creation, on top of what earlier sessions of the run spent.

    Args:
        spent: seconds per bucket that a resumed run brings along.
    """

    def __init__(self, spent: Mapping[str, float] | None = None) -> None:
        self._spent = {name: float((spent or {}).get(name, 0.0)) for name in BUCKETS}
        self._current = "startup"
        self._since = time.perf_counter()

    def switch(self, bucket: str) -> None:
        """Book the time until now and go on in `bucket`."""
        now = time.perf_counter()
        self._spent[self._current] += now - self._since
        self._current, self._since = bucket, now

    @contextmanager
    def book(self, bucket: str) -> Iterator[None]:
        """Book the block to `bucket`, then return to the bucket before it."""
        before = self._current
        self.switch(bucket)
        try:
            yield
        finally:
            self.switch(before)

    def claim(self, bucket: str, seconds: float) -> None:
        """Book to `bucket` what of the current bucket's time a device spent working meanwhile."""
        self.switch(self._current)
        moved = min(seconds, self._spent[self._current])
        self._spent[self._current] -= moved
        self._spent[bucket] += moved

    def seconds(self) -> dict[str, float]:
        """Seconds per bucket until now."""
        self.switch(self._current)
        return dict(self._spent)

    @property
    def train(self) -> float:
        """Seconds of timed training until now."""
        return self.seconds()["train"]
