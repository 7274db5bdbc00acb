"""Batches read ahead by threads: the same ones in the same order, whoever reads them."""

import threading
from dataclasses import dataclass, field
from types import TracebackType

from rnn_lab.data.batches import Batch, Sampler
from rnn_lab.data.chain import OffsetChain


class ReadAhead:
    """A sampler whose batches k, k + 1, ... are made by threads from the first k on that is asked for.

    Any other k is made at once by whoever asks, so that batches stay pure functions of k. Errors of a thread are raised
    where its batch is asked for. `close` ends the threads; it may be called more than once.

    Args:
        sampler: where batches come from.
        workers: threads.
        ahead: batches that may wait to be asked for.

    """

    def __init__(self, sampler: Sampler, workers: int, ahead: int) -> None:
        self.name, self.region, self.seed = sampler.name, sampler.region, sampler.seed
        self.batch_size, self.seq_len = sampler.batch_size, sampler.seq_len
        self.starved = 0
        """Batches that were not ready when they were asked for."""
        self._sampler = sampler
        self._shared = _Shared(ahead)
        self._threads = [
            threading.Thread(target=_work, args=(sampler, self._shared), name=f"batches-{i}", daemon=True)
            for i in range(workers)
        ]

    @property
    def depth(self) -> int:
        """Batches that are ready."""
        return len(self._shared.ready)

    def chain(self) -> OffsetChain:
        """See Sampler."""
        return self._sampler.chain()

    def batch(self, k: int) -> Batch:
        """See Sampler.

        Raises:
            Exception: what a thread met that made this batch.

        """
        shared = self._shared
        with shared.changed:
            if shared.wanted is None and not shared.closed:
                shared.wanted = shared.next = k
                for thread in self._threads:
                    thread.start()
            if k != shared.wanted or shared.closed:
                return self._sampler.batch(k)
            self.starved += k not in shared.ready
            shared.changed.wait_for(lambda: k in shared.ready or shared.closed)
            found = shared.ready.pop(k, None)
            shared.wanted = k + 1
            shared.changed.notify_all()
        if isinstance(found, BaseException):
            raise found
        return found if found is not None else self._sampler.batch(k)

    def close(self) -> None:
        """End the threads."""
        with self._shared.changed:
            self._shared.closed = True
            self._shared.changed.notify_all()
        for thread in self._threads:
            if thread.ident is not None:
                thread.join()

    def __enter__(self) -> "ReadAhead":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


@dataclass
class _Shared:
    """What the threads and whoever asks have in common, under `changed`."""

    ahead: int
    changed: threading.Condition = field(default_factory=threading.Condition)
    ready: dict[int, Batch | BaseException] = field(default_factory=dict)
    wanted: int | None = None
    next: int = 0
    closed: bool = False


def _work(sampler: Sampler, shared: _Shared) -> None:
    """Make one batch after the other, as far ahead as allowed."""
    while True:
        with shared.changed:
            shared.changed.wait_for(lambda: shared.closed or shared.next < (shared.wanted or 0) + shared.ahead)
            if shared.closed:
                return
            k = shared.next
            shared.next += 1
        made: Batch | BaseException
        try:
            made = sampler.batch(k)
        except BaseException as error:
            made = error
        with shared.changed:
            shared.ready[k] = made
            shared.changed.notify_all()
