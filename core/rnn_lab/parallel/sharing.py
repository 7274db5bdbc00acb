"""How the ranks of a run share its model: what the trainer asks wherever one process and several differ.

`Sharing` is one process with the whole model; each method is then what training does anyway. `Replicated` is the whole
model on every rank, gradients averaged by DistributedDataParallel while backward runs. parallel.sharded has FSDP2.
"""

import inspect
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from rnn_lab.config import OptimizerSection
from rnn_lab.lm import LM
from rnn_lab.optim import gram
from rnn_lab.parallel import storage
from rnn_lab.parallel.world import World
from rnn_lab.train import checkpoint as ckpt

T = TypeVar("T")
Factory = Callable[[nn.Module, OptimizerSection], torch.optim.Optimizer]
WARMUP = 2
"""Eager steps before a capture: the first compiles and tunes, the second has carried states."""
DDP_WARMUP = 11
"""The same under DistributedDataParallel, which times its first ten steps by events that no graph may hold."""

_NO_BUFFERS = next(
    name
    for name in ("forward_sync_buffers", "broadcast_buffers")
    if name in inspect.signature(DistributedDataParallel.__init__).parameters
)
"""DDP's switch for sending buffers around at every pass, which torch has renamed."""


class Sharing:
    """One process that holds the whole model.

    Attributes:
        mode: for the record.
        whole: whether this process has the whole model in its memory.
        warmup: eager steps before a capture.
        uncapturable: why no step may be captured in a CUDA graph, or None.

    """

    mode = "single"
    whole = True
    warmup = WARMUP
    uncapturable: str | None = None

    def __init__(self, model: LM, world: World | None = None) -> None:
        self.model, self.world = model, world or World()

    @property
    def parameters(self) -> list[nn.Parameter]:
        """What this rank updates, in the model's order; gradients are there after `reduced`."""
        return list(self.model.parameters())

    @property
    def updated(self) -> list[nn.Parameter]:
        """What the optimizer updates, gradients included, inside `updating`."""
        return self.parameters

    def optimizer(self, factory: Factory, section: OptimizerSection) -> torch.optim.Optimizer:
        """The optimizer over what this rank updates.

        Raises:
            ConfigError: it cannot work this way; the message says what can.

        """
        return factory(self.model, section)

    def prepare(self) -> None:
        """LM.prepare."""
        self.model.prepare()

    def forward(self, body: Callable[[], T]) -> T:
        """`body`, which runs the model, with whatever its passes need around them.

        Args:
            body: where gradients are on, the first of what it returns is what will be back-propagated.

        """
        return body()

    def piece(self, last: bool) -> AbstractContextManager[object]:
        """Around forward and backward of a micro-batch, the `last` of its step or not."""
        return nullcontext()

    def reduced(self, loss: Tensor, figures: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
        """After the last backward: loss and figures over the whole batch, and the norm of its gradient."""
        return loss, self._norm(), figures

    def updating(self) -> AbstractContextManager[object]:
        """Around the optimizer's step."""
        return nullcontext()

    def zero_grad(self, optimizer: torch.optim.Optimizer) -> None:
        """No gradients any more."""
        optimizer.zero_grad(set_to_none=True)

    def over_shards(self, t: Tensor) -> Tensor:
        """Sums over this rank's `parameters`, added up over the shares of all ranks."""
        return t

    def loaded(self) -> None:
        """The model's parameters were set anew."""

    def tensors(
        self, optimizer: torch.optim.Optimizer, carry: dict[str, Tensor]
    ) -> tuple[dict[str, dict[str, Tensor]], dict[str, Any]]:
        """Groups of tensors for a checkpoint, this rank's parts of them, and the optimizer's JSON values.

        Args:
            optimizer: of `optimizer`.
            carry: states of this rank's sequences, the sequence first.

        """
        state, values = ckpt.optimizer_tensors(optimizer)
        model = dict(self.model.state_dict())
        return {"model": model, "optimizer": state, "random": ckpt.random_state(), "carry": carry}, values

    def save(self, folder: Path, checkpoint: ckpt.Checkpoint, keep: int) -> None:
        """Write a checkpoint of `tensors`; see checkpoint.save_checkpoint."""
        ckpt.save_checkpoint(folder, checkpoint, keep)

    def restore(self, saved: ckpt.Checkpoint, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
        """Set model, optimizer and generators; the carried states, flat.

        Raises:
            KeyError, RuntimeError, ValueError: it is of another model or optimizer.

        """
        self.model.load_state_dict(saved.tensors["model"])
        ckpt.restore_optimizer(optimizer, saved.tensors["optimizer"], saved.state["optimizer"])
        ckpt.restore_random_state(saved.tensors["random"])
        return saved.tensors["carry"]

    def agreed(self, reason: str | None) -> str | None:
        """Why a capture failed: None if it did on no rank."""
        return reason

    def restart(self) -> None:
        """A capture failed, here or on another rank: forget what it began."""

    def first_of(self, found: str | None) -> str | None:
        """What the first rank to have found something found."""
        return next((each for each in self.world.everyone(found) if each is not None), None)

    def over_owners(self, figures: T) -> list[T]:
        """The figures of each rank that has a part of the optimizer's parameters."""
        return [figures]

    def _norm(self) -> Tensor:
        return torch.nn.utils.get_total_norm([p.grad for p in self.parameters if p.grad is not None])


class Pass(nn.Module):
    """The module that wrappers wrap: its forward runs whatever is computed by the model in a step."""

    def __init__(self, model: LM) -> None:
        super().__init__()
        self.model = model

    def forward(self, body: Callable[[], Any]) -> Any:
        """`body()`."""
        return body()


class Several(Sharing):
    """What the ranks of a run have in common, whichever way they share the model."""

    def __init__(self, model: LM, world: World) -> None:
        from torch.distributed.device_mesh import init_device_mesh

        super().__init__(model, world)
        self.host_mesh = init_device_mesh("cpu", (world.size,))

    def tensors(
        self, optimizer: torch.optim.Optimizer, carry: dict[str, Tensor]
    ) -> tuple[dict[str, dict[str, Tensor]], dict[str, Any]]:
        """See Sharing. Generators differ by rank where owners share the work out; one process takes rank 0's."""
        groups, values = super().tensors(optimizer, carry)
        rank, random = self.world.rank, _own_random_state(self.model.embedding.weight.device)
        groups["random"] = random if rank == 0 else {f"rank{rank}.{name}": t for name, t in random.items()}
        groups["carry"] = {name: self._rows(t.cpu(), t.shape[0] * self.world.size) for name, t in carry.items()}
        return groups, values

    def _rows(self, t: Tensor, rows: int) -> Tensor:
        """A tensor whose first axis is that of all sequences, of which these are the rank's."""
        from torch.distributed.tensor import DTensor, Shard

        shape = torch.Size([rows, *t.shape[1:]])
        stride = torch.empty(shape, device="meta").stride()
        return DTensor.from_local(t, self.host_mesh, [Shard(0)], run_check=False, shape=shape, stride=stride)

    def carry_place(self, size: torch.Size, dtype: torch.dtype) -> Tensor:
        """Where this rank's rows of a carried state are read to."""
        return self._rows(torch.empty(size[0] // self.world.size, *size[1:], dtype=dtype), size[0])

    def state_place(self, name: str, size: torch.Size, dtype: torch.dtype) -> Tensor | None:
        """Where a tensor of the optimizer's state, `index.name`, is read to; None: another rank has it."""
        return torch.empty(size, dtype=dtype)

    def save(self, folder: Path, checkpoint: ckpt.Checkpoint, keep: int) -> None:
        """See Sharing."""
        checkpoint.state["ranks"] = self.world.size
        storage.save(self.world, folder, checkpoint, keep)

    def restore(self, saved: ckpt.Checkpoint, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
        """See Sharing."""
        return storage.load(self, optimizer, saved)


class Replicated(Several):
    """The whole model on every rank: all make the same update from the same averaged gradients."""

    mode = "ddp"

    def __init__(self, model: LM, world: World) -> None:
        super().__init__(model, world)
        self.warmup = DDP_WARMUP
        self._wrapped: DistributedDataParallel | None = None
        self._unused: list[str] | None = None
        self._sends = True

    def optimizer(self, factory: Factory, section: OptimizerSection) -> torch.optim.Optimizer:
        """See Sharing."""
        found = factory(self.model, section)
        gram.agree_by(self.agreed)
        return found

    def forward(self, body: Callable[[], T]) -> T:
        """See Sharing. The wrapper is made by the first pass, on the stream that a capture is for."""
        if not torch.is_grad_enabled():
            return body()
        if self._wrapped is None:
            self._wrapped = self._wrap(body)
        # DDP learns in forward whether the backward that follows sends anything.
        with nullcontext() if self._sends else self._wrapped.no_sync():
            found: T = self._wrapped(body)
        return found

    def _wrap(self, body: Callable[[], Any]) -> DistributedDataParallel:
        module = Pass(self.model)
        if self._unused is None:
            # DDP waits for the gradient of each parameter: one that no pass uses, as E70's decay, has to be named.
            named = [(name, p) for name, p in module.named_parameters() if p.requires_grad]
            found = torch.autograd.grad(body()[0], [p for _, p in named], allow_unused=True)
            self._unused = [name for (name, _), grad in zip(named, found, strict=True) if grad is None]
        DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(module, self._unused)  # type: ignore[no-untyped-call]
        # Buffers follow from parameters, on every rank alike.
        options: dict[str, Any] = {_NO_BUFFERS: False, "gradient_as_bucket_view": True}
        return DistributedDataParallel(module, **options)

    def piece(self, last: bool) -> AbstractContextManager[object]:
        """See Sharing: only the last micro-batch sends gradients."""
        self._sends = last
        return nullcontext()

    def reduced(self, loss: Tensor, figures: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
        """See Sharing."""
        means = self.world.summed(packed([loss], figures)) / self.world.size
        return means[0], self._norm(), None if figures is None else means[1:]

    def agreed(self, reason: str | None) -> str | None:
        """See Sharing."""
        found = self.world.everyone(reason)
        return next((f"rank {rank}: {why}" for rank, why in enumerate(found) if why is not None), None)

    def restart(self) -> None:
        """See Sharing."""
        self._wrapped = None


def _own_random_state(device: torch.device) -> dict[str, Tensor]:
    """States of the CPU's generator and of this rank's device, under the names of a machine that has no other."""
    gpu = {"cuda0": torch.cuda.get_rng_state(device)} if device.type == "cuda" else {}
    return {"cpu": torch.get_rng_state(), **gpu}


def packed(scalars: Sequence[Tensor], figures: Tensor | None) -> Tensor:
    """Scalars and a vector as one fp64 vector, to be reduced at once."""
    vector = torch.stack([each.double() for each in scalars])
    return vector if figures is None else torch.cat([vector, figures.double()])
