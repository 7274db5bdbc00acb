"""A device queue for machines without one: a capture is replayed by running its body, results arrive late."""

import time
from contextlib import contextmanager

import torch


class FakeEvent:
    """Passed once `lag` later events have been marked, or when waited for."""

    def __init__(self, queue):
        self.queue, self.number, self.time = queue, queue.marks, time.perf_counter()
        self.waited = False

    def query(self):
        return self.waited or self.queue.marks - self.number > self.queue.lag

    def synchronize(self):
        self.waited = True

    def elapsed_time(self, end_event):
        return self.queue.milliseconds or (end_event.time - self.time) * 1e3


class FakeReplay:
    def __init__(self, body):
        self.body, self.replays, self.alive = body, 0, True

    def replay(self):
        assert self.alive
        # A graph writes its gradients anew; this body would add to those of the replay before.
        self.body.__self__.step.optimizer.zero_grad(set_to_none=True)
        self.replays += 1
        self.body()

    def reset(self):
        self.alive = False


class FakeQueue:
    def __init__(self, lag=6, milliseconds=None):
        self.lag, self.milliseconds, self.marks = lag, milliseconds, 0
        self.captured = []

    @contextmanager
    def running(self):
        yield

    def mark(self):
        self.marks += 1
        return FakeEvent(self)

    def pinned(self, shape, dtype):
        return torch.empty(shape, dtype=dtype)

    def capture(self, body):
        self.captured.append(FakeReplay(body))
        return self.captured[-1]
