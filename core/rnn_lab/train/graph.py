"""The whole step as one CUDA graph, replayed a few steps ahead of the host.

The first steps of a session run eagerly; they are real steps, so neither data nor losses depend on the graph (but for
rounding, where layers share the GPU in it). Then forward, backward, clip and update of all micro-batches are captured
once over static buffers. From there on a step is a copy of its batch from pinned memory, a replay and a copy of four
scalars back, all queued: the host learns of step k while later ones run. A step that is not finite halts the optimizer
on the device, so what was queued behind it changes nothing.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from rnn_lab.config import TrainSection
from rnn_lab.cuda_graphs import capture
from rnn_lab.data.batches import Sampler
from rnn_lab.errors import GraphUnavailable
from rnn_lab.lm import LM
from rnn_lab.tensors import is_out_of_memory
from rnn_lab.train.clock import Clock
from rnn_lab.train.scalars import Event, Queue, Replay, ScalarReader
from rnn_lab.train.step import CONTROL, Carry, DeviceUpdate, EagerExecutor, Executor, Outcome, TrainStep
from rnn_lab.wavefront import Wavefront, leave_room, overlap, undo_overlap

DEPTH = 3
"""Steps in flight behind the one being submitted: enough to hide the host, few enough to stop soon."""


class CudaQueue:
    """A CUDA stream of its own, because the default one cannot be captured; see scalars.Queue."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.stream: torch.cuda.Stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    @contextmanager
    def running(self) -> Iterator[None]:
        """See Queue."""
        around = torch.cuda.current_stream(self.device)
        self.stream.wait_stream(around)
        with torch.cuda.stream(self.stream):
            yield
        around.wait_stream(self.stream)

    def mark(self) -> Event:
        """See Queue."""
        event: torch.cuda.Event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record(self.stream)
        return event

    def pinned(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """See Queue."""
        return torch.empty(shape, dtype=dtype, pin_memory=True)

    def capture(self, body: Callable[[], None]) -> Replay:
        """See Queue."""
        return capture(body, self.stream)


def queue_of(device: torch.device) -> Queue | None:
    """The queue of a device that can replay graphs."""
    return CudaQueue(device) if device.type == "cuda" else None


def executor(step: TrainStep, sampler: Sampler, clock: Clock, carry: Carry, note: Callable[[str], None]) -> Executor:
    """Who runs the steps of a run, by `train.graph`."""
    train = step.train
    queue = queue_of(step.device) if train.graph != "off" else None
    if queue is not None:
        return GraphExecutor(step, sampler, clock, carry, queue, note)
    eager = EagerExecutor(step, sampler, clock, carry)
    eager.graph["reason"] = "train.graph = off" if train.graph == "off" else f"the device is {step.device.type}"
    if _without_waves(train):
        note(f"no CUDA graph: {eager.graph['reason']}{_without_waves(train)}")
    return eager


def _without_waves(train: TrainSection) -> str:
    return f"; train.wavefront = {train.wavefront} then only costs time" if train.chunks > 1 else ""


class GraphExecutor:
    """Eager for the sharing's warm-up steps, then a graph, or eager for good with the reason on record.

    Args:
        step, sampler, clock, carry: as for EagerExecutor.
        queue: the device.
        note: hears of a fallback.

    """

    def __init__(
        self, step: TrainStep, sampler: Sampler, clock: Clock, carry: Carry, queue: Queue, note: Callable[[str], None]
    ) -> None:
        self.step, self.sampler, self.clock, self.queue, self.note = step, sampler, clock, queue, note
        warmup = step.sharing.warmup
        self.eager = EagerExecutor(step, sampler, clock, carry, warmup=warmup)
        self.graph: dict[str, Any] = {"used": False, "reason": f"no more than {warmup} warm-up steps were run"}
        self._left = warmup
        self._grew = False
        self._room = False
        """Whether the layers left some of the GPU idle in the last eager step."""
        self._uncapturable: str | None = None
        """What of that step cannot be captured."""
        undo_overlap(step.model)
        self._captured: CapturedStep | None = None
        self._phase = False
        self._last = 0.0

    @property
    def depth(self) -> int:
        """See Executor."""
        return 0 if self._captured is None else DEPTH

    @property
    def carry(self) -> Carry:
        """See Executor."""
        return self.eager.carry if self._captured is None else self._captured.carry

    def __len__(self) -> int:
        """See Executor."""
        return len(self.eager) if self._captured is None else len(self._captured.reader)

    def submit(self, k: int) -> None:
        """See Executor."""
        if self._captured is not None and self.step.phase(k) != self._phase:
            self._end_phase()
        if self._captured is None and self._left == 0:
            self.step.begin(k, self.clock.train)
            self._phase = self.step.phase(k)
            with self.clock.book("warmup"):
                self._capture()
            self._left = -1
        if self._captured is not None:
            self._captured.submit(k, self.clock.train + len(self) * self._last)
            return
        before = _shapes(self.eager.carry)
        with self.queue.running():
            self.eager.submit(k)
        self._grew = bool(before) and before != _shapes(self.eager.carry)
        if self._left > 0:  # a step before a capture
            self._room, self._uncapturable = leave_room(self.step.model), next(uncapturable(self.step.model), None)
            self._left -= 1

    def collect(self, wait: bool) -> Outcome | None:
        """See Executor."""
        if self._captured is None:
            return self.eager.collect(wait)
        found = self._captured.reader.pop(wait)
        if found is None:
            return None
        (k, starts_B, host, factor), (loss, norm, lr, _, *figures), device = found
        self._last = host + device
        self.clock.claim("train", self._last)
        told = dict(zip(self.step.columns, figures, strict=True))
        return Outcome(k, starts_B, loss, norm, lr, self._last, timed=True, waited=host, factor=factor, figures=told)

    def offender(self, k: int) -> str:
        """See Executor."""
        if self._captured is None:
            return self.eager.offender(k)
        # Later replays have overwritten the gradients; parameters and carried states are those before step k.
        self.eager.carry = self._captured.carry
        self._captured.release()
        undo_overlap(self.step.model)
        try:
            with self.queue.running():
                self.eager.repeat(k)
                return self.eager.offender(k)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            return "unknown, because a second pass does not fit into memory"

    def _end_phase(self) -> None:
        """Go on eagerly for a step that is computed in another way than those before; what comes is captured anew."""
        assert not len(self)
        self._give_up()
        self._left = 1
        self.eager.untimed(1)

    def _give_up(self) -> None:
        """Eager steps again, from the states that the captured one has."""
        if self._captured is not None:
            self.eager.carry = self._captured.carry
            self._captured.release()
            self._captured = None
        undo_overlap(self.step.model)

    def _capture(self) -> None:
        reason = self._obstacle()
        if reason is None:
            waves = self._may_overlap() and overlap(self.step.model, self.step.train.seq_len)
            reason = self._attempt()
            if waves and (reason is not None or not leave_room(self.step.model)):
                why = reason or "chunks of their time run by kernels that fill it"
                self.note(f"layers do not share the GPU: {why}")
                self._give_up()
                reason = self._attempt()
        reason = self.step.sharing.agreed(reason)
        if reason is not None:  # here, or on another rank
            self._give_up()
        self.graph = {"used": reason is None, "reason": reason}
        if reason is None and isinstance(self.step.model.walk, Wavefront):
            self.graph["wavefront"] = self.step.model.walk.chunks
        if reason is not None:
            self.step.sharing.restart()  # on all ranks alike: what comes anew has to be made by all
            if self.step.train.graph == "on":
                raise GraphUnavailable(f"train.graph = on, but {reason}. `-o train.graph=auto` trains without")
            self.note(f"no CUDA graph: {reason}{_without_waves(self.step.train)}")

    def _may_overlap(self) -> bool:
        """Whether layers leave room, nobody said how to use it, and nothing is there that chunks would slow down."""
        objective = self.step.objective
        filters = objective is not None and objective.filters
        alone = self.step.sharing.world.size == 1
        return self._room and self.step.train.wavefront is None and alone and not filters

    def _attempt(self) -> str | None:
        """Capture the step; why that failed, or None."""
        try:
            self._captured = CapturedStep(self.step, self.sampler, self.eager.carry, self.queue)
        except Exception as error:
            # The capture ran nothing; its gradients point into memory that is gone.
            self.step.zero_grad()
            return f"the capture failed: {_first_line(_root(error))}"
        self.eager.carry = None
        return None

    def _obstacle(self) -> str | None:
        """Why a capture need not be tried."""
        if self.step.sharing.uncapturable is not None:
            return self.step.sharing.uncapturable
        if not isinstance(self.step.update, DeviceUpdate):
            return f"the optimizer {type(self.step.optimizer).__name__} keeps its counters on the host"
        if self._grew:
            return "the carried state grows from step to step"
        return self._uncapturable


class CapturedStep:
    """A step recorded over static buffers, and the queue of its replays.

    Raises:
        Exception: whatever stands in the way of a capture.

    """

    def __init__(self, step: TrainStep, sampler: Sampler, carry: Carry, queue: Queue) -> None:
        self.step, self.sampler, self.queue = step, sampler, queue
        self.carry: Carry = carry and [{name: t.clone() for name, t in state.items()} for state in carry]
        shape, device = (step.rows, step.train.seq_len), step.device
        self._bytes_BT1 = torch.zeros(shape[0], shape[1] + step.ahead, dtype=torch.uint8, device=device)
        self._reset_BT = torch.zeros(shape, dtype=torch.bool, device=device) if step.train.carry_state else None
        self._hosts = [
            (
                queue.pinned((shape[0], shape[1] + step.ahead), torch.uint8),
                queue.pinned(shape, torch.bool),
                queue.pinned((CONTROL,), torch.float64),
            )
            for _ in range(DEPTH + 1)
        ]
        self._record = torch.zeros(step.width, dtype=torch.float64, device=device)
        self.reader = ScalarReader(queue, DEPTH + 1, step.width)
        with queue.running():
            self._replay = queue.capture(self._body)
            assert isinstance(step.update, DeviceUpdate)
            step.update.optimizer.bind()

    def _body(self) -> None:
        record, carry = self.step(self._bytes_BT1, self._reset_BT, self.carry)
        self._record.copy_(record)
        assert isinstance(self.step.update, DeviceUpdate)
        going = self.step.update.skipped == 0
        for static, new in zip(self.carry or [], carry or [], strict=True):
            for name, t in static.items():
                t.copy_(torch.where(going, new[name], t))

    def submit(self, k: int, seconds: float) -> None:
        """Queue step k: its batch from pinned memory, the replay, its record back.

        Args:
            k: the step.
            seconds: of the training clock that will be spent before it.

        """
        idle, began_host = self.reader.idle, time.perf_counter()
        batch = self.sampler.batch(k)
        bytes_BT1, reset_BT, control = self._hosts[k % len(self._hosts)]
        told = self.step.begin(k, seconds)
        control.copy_(torch.tensor(told, dtype=torch.float64))
        bytes_BT1.copy_(torch.from_numpy(batch.bytes_BT1))
        if batch.reset_BT is not None:
            reset_BT.copy_(torch.from_numpy(batch.reset_BT))
        # A device that waits for its batch is training all the same; otherwise the batch costs no time.
        host = time.perf_counter() - began_host if idle else 0.0
        with self.queue.running():
            began = self.queue.mark()
            self._bytes_BT1.copy_(bytes_BT1, non_blocking=True)
            if self._reset_BT is not None:
                self._reset_BT.copy_(reset_BT, non_blocking=True)
            if self.step.control is not None:
                self.step.control.copy_(control, non_blocking=True)
            self._replay.replay()
            self.reader.push((k, batch.starts_B, host, told[0]), self._record, began)

    def release(self) -> None:
        """Wait for what is queued, then give the graph's memory back."""
        while self.reader.pop(wait=True) is not None:
            pass
        self.step.zero_grad()
        self._replay.reset()


def uncapturable(model: LM) -> Iterator[str]:
    """Reasons of the backends that ran in the last forward pass."""
    for layer in model.layers:
        for choice in getattr(layer, "backends", {}).values():
            if not getattr(choice, "capturable", True):
                yield f"{choice.op} runs by {choice.backend}, which cannot be captured"


def _shapes(carry: Carry) -> list[dict[str, torch.Size]]:
    return [{name: t.shape for name, t in state.items()} for state in carry or []]


def _root(error: BaseException) -> BaseException:
    """What first went wrong: leaving a capture that failed raises once more."""
    while error.__context__ is not None:
        error = error.__context__
    return error


def _first_line(error: BaseException) -> str:
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0] if text else ''}"[:300]
