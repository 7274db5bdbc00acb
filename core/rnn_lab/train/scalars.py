"""Scalars that a device computes now and the host reads later, in order, without holding the device up."""

from collections import deque
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, Protocol

import torch
from torch import Tensor


class Event(Protocol):
    """A point in a device's queue of work; torch.cuda.Event is one."""

    def query(self) -> bool:
        """Whether the device has passed it."""

    def synchronize(self) -> None:
        """Wait until it has."""

    def elapsed_time(self, end_event: Any) -> float:
        """Milliseconds of the device from here to `end_event`, both passed."""


class Queue(Protocol):
    """A device that works through what it is given, in order, while the host goes on."""

    def running(self) -> AbstractContextManager[None]:
        """Work issued inside comes after everything issued before, and before everything issued after."""

    def mark(self) -> Event:
        """An event behind everything issued so far."""

    def pinned(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """Host memory from and to which the device copies by itself."""

    def capture(self, body: Callable[[], None]) -> "Replay":
        """Record the work of `body`, which is not done yet."""


class Replay(Protocol):
    """Recorded work."""

    def replay(self) -> None:
        """Issue it once more."""

    def reset(self) -> None:
        """Give its memory back; it cannot be replayed any more."""


class ScalarReader:
    """Records of `width` fp64 values, each pushed by the device and popped by the host when it has arrived.

    Args:
        queue: the device.
        slots: how many records may be on their way at once.
        width: values in a record.

    """

    def __init__(self, queue: Queue, slots: int, width: int) -> None:
        self._queue = queue
        self._free = deque(queue.pinned((width,), torch.float64) for _ in range(slots))
        self._waiting: deque[tuple[Any, Tensor, Event, Event]] = deque()

    def __len__(self) -> int:
        """Records on their way."""
        return len(self._waiting)

    @property
    def idle(self) -> bool:
        """Whether the device has nothing of ours left to do."""
        return not self._waiting or self._waiting[-1][3].query()

    def push(self, tag: Any, values: Tensor, began: Event) -> None:
        """Send `values`, as the device will have them at this point of its queue; `began` marks where it started."""
        slot = self._free.popleft()
        slot.copy_(values, non_blocking=True)
        self._waiting.append((tag, slot, began, self._queue.mark()))

    def pop(self, wait: bool) -> tuple[Any, list[float], float] | None:
        """Tag, values and device seconds of the oldest record; None if there is none or it has not arrived."""
        if not self._waiting or not (wait or self._waiting[0][3].query()):
            return None
        tag, slot, began, ended = self._waiting.popleft()
        ended.synchronize()
        self._free.append(slot)
        return tag, slot.tolist(), began.elapsed_time(ended) / 1e3
