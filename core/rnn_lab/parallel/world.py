"""The processes of one run, called ranks, and what they agree on.

`World` is one process alone: it agrees with itself, for nothing. `Ranks` are several, joined by torch.distributed in
the environment that torchrun sets. Decisions that a clock or a signal makes are rank 0's, or anybody's, and reach all
of them before the same step, through a group on the CPU that needs no device.
"""

import faulthandler
import os
import re
import signal
import sys
from collections.abc import Callable, Mapping
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from rnn_lab.errors import ConfigError, RankLost
from rnn_lab.system.signals import when_parent_ends

T = TypeVar("T")
_LOST = (
    "closed by peer", "reset by peer", "gloo", "NCCL", "Socket Timeout", "Broken pipe", "timed out", "Timed out",
    "ProcessGroup", "TCPStore",
)  # fmt: skip
"""What torch writes in errors of a collective whose other side is gone; gloo's have no class of their own."""
LATER = 1.5
"""Factor from the time limit of collectives to that of a whole step."""


class World:
    """One process.

    Attributes:
        rank: number of this process among those of the run.
        size: how many there are.
        local_rank: number of this process on its machine.

    """

    rank, size, local_rank = 0, 1, 0

    @property
    def main(self) -> bool:
        """Whether this process writes the run's folder and talks to people."""
        return self.rank == 0

    def rows(self, batch_size: int) -> slice:
        """The sequences of a step that are this rank's."""
        each = batch_size // self.size
        return slice(self.rank * each, (self.rank + 1) * each)

    def agree(self, go: bool, stop: int | None) -> tuple[bool, int | None]:
        """Whether rank 0 goes on, and the signal that any rank was asked to stop by."""
        return go, stop

    def first(self, value: float) -> float:
        """Rank 0's value."""
        return value

    def everyone(self, value: T) -> list[T]:
        """The value of each rank, in their order."""
        return [value]

    def together(self, act: Callable[[], T]) -> T:
        """What `act` gives on rank 0, which alone calls it.

        Raises:
            Exception: what it raised there, on every rank.

        """
        return act()

    def summed(self, t: Tensor) -> Tensor:
        """`t` added up over all ranks in place, on its device."""
        return t

    def tick(self) -> None:
        """A step, or a batch of a validation, has ended: the next may take as long as the limit again."""

    def named(self, error: BaseException) -> BaseException:
        """The error that tells a person what happened: a lost rank where torch only knows of a closed connection."""
        return error

    def close(self) -> None:
        """Leave."""


class Ranks(World):
    """One of the processes that torchrun started.

    Args:
        device: `[train] device`.
        timeout: seconds after which a rank that does not answer is given up.

    Raises:
        ConfigError: this machine has fewer GPUs than ranks, or the device names one of them.
        RankLost: not all ranks came.

    """

    def __init__(self, device: str, timeout: float) -> None:
        self.rank, self.size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
        self.local_rank = int(os.environ.get("LOCAL_RANK", self.rank))
        self.timeout = timeout
        when_parent_ends(signal.SIGTERM)  # whoever launched the ranks: they write a checkpoint
        cuda = _uses_cuda(device, int(os.environ.get("LOCAL_WORLD_SIZE", self.size)))
        if cuda:
            torch.cuda.set_device(self.local_rank)
        try:
            dist.init_process_group(
                "cpu:gloo,cuda:nccl" if cuda else "gloo",
                timeout=timedelta(seconds=timeout),
                device_id=torch.device("cuda", self.local_rank) if cuda else None,
            )
            self.control = dist.new_group(backend="gloo", timeout=timedelta(seconds=timeout))
        except (dist.DistError, RuntimeError) as error:
            raise RankLost(f"rank {self.rank} of {self.size}: the ranks did not meet: {error}") from error

    def agree(self, go: bool, stop: int | None) -> tuple[bool, int | None]:
        """See World."""
        told = torch.tensor([int(go) if self.main else 0, stop or 0])
        dist.all_reduce(told, dist.ReduceOp.MAX, group=self.control)
        going, number = told.tolist()
        return bool(going), number or None

    def first(self, value: float) -> float:
        """See World."""
        told = torch.tensor(float(value), dtype=torch.float64)
        dist.broadcast(told, 0, group=self.control)
        return told.item()

    def everyone(self, value: T) -> list[T]:
        """See World."""
        found: list[Any] = [None] * self.size
        dist.all_gather_object(found, value, group=self.control)
        return found

    def together(self, act: Callable[[], T]) -> T:
        """See World."""
        told: list[Any] = [None, None]
        if self.main:
            try:
                told[0] = act()
            except Exception as error:
                told[1] = error
        dist.broadcast_object_list(told, 0, group=self.control)
        if told[1] is not None:
            raise told[1]
        return told[0]  # type: ignore[no-any-return]

    def summed(self, t: Tensor) -> Tensor:
        """See World."""
        dist.all_reduce(t)
        return t

    def tick(self) -> None:
        """See World. Python's own watchdog ends a process whose device waits for a rank, where nothing else would.

        A replayed CUDA graph is such a wait: torch knows nothing of the collectives in it. It comes after torch's own
        limits, which leave a process the time to say what happened.
        """
        if sys.__stderr__ is not None:
            faulthandler.dump_traceback_later(LATER * self.timeout, exit=True, file=sys.__stderr__)

    def named(self, error: BaseException) -> BaseException:
        """See World."""
        text = str(error)
        if not (isinstance(error, dist.DistError) or (type(error) is RuntimeError and any(s in text for s in _LOST))):
            return error
        first = next(iter(text.strip().splitlines()), type(error).__name__)
        said = re.sub(r"^\[[^]]*\]\s*", "", first).partition(". ")[0][:120]
        return RankLost(
            f"a rank of {self.size} is gone or did not answer within {self.timeout:g} s (rank {self.rank} was told: "
            f"{said}). `rnn-lab resume` goes on from the last checkpoint, on any number of GPUs"
        )

    def close(self) -> None:
        """See World. Leaving, too, may wait for a rank that is gone."""
        self.tick()
        if dist.is_initialized():
            dist.destroy_process_group()
        faulthandler.cancel_dump_traceback_later()


def launched(environment: Mapping[str, str] | None = None) -> int | None:
    """Ranks of the run that torchrun started this process for, or None where it did not."""
    found = os.environ if environment is None else environment
    return int(found["WORLD_SIZE"]) if {"RANK", "WORLD_SIZE", "MASTER_ADDR"} <= found.keys() else None


def join(device: str, timeout: float) -> World:
    """The ranks that this process is one of; itself alone where nobody started others.

    Raises:
        ConfigError, RankLost: see Ranks.

    """
    return World() if launched() in (None, 1) else Ranks(device, timeout)


def check_gpus(device: str, ranks: int) -> None:
    """Refuse more ranks on this machine than it has GPUs; a CPU takes any number.

    Raises:
        ConfigError: see Ranks.

    """
    _uses_cuda(device, ranks)


def _uses_cuda(device: str, ranks: int) -> bool:
    """Whether each of so many ranks here has a GPU of its own; False: they share the CPU."""
    if device == "cpu" or (device == "auto" and not torch.cuda.is_available()):
        return False
    if device not in ("auto", "cuda"):
        raise ConfigError(f"train.device = {device!r} is one device, and {ranks} ranks take one each: say auto or cuda")
    if ranks > torch.cuda.device_count():
        raise ConfigError(
            f"{ranks} ranks on this machine, where torch sees {torch.cuda.device_count()} CUDA devices: lower --gpus, "
            "or give --device cpu to try it out without"
        )
    return True
