"""One optimizer step: forward, backward, clip and update, and who executes it.

`TrainStep` is what is computed; an executor decides when. This module has the eager one; train.graph replays the same
step as a CUDA graph.
"""

import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from math import isfinite
from typing import Any, Protocol

import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from rnn_lab.config import TrainSection
from rnn_lab.data.batches import Batch, Sampler
from rnn_lab.layer import State
from rnn_lab.lm import LM
from rnn_lab.optim.gram import choices
from rnn_lab.optim.layerwise import LayerwiseRouted
from rnn_lab.optim.routed import RoutedOptimizer
from rnn_lab.parallel.sharing import Sharing
from rnn_lab.remat import Remat
from rnn_lab.train.clock import Clock
from rnn_lab.train.device import autocast
from rnn_lab.train.diagnose import first_offender
from rnn_lab.train.objective import Objective
from rnn_lab.train.optimizers import GatedOptimizer, current_lr
from rnn_lab.train.schedule import Schedule, accept_schedule, follow, set_factor
from rnn_lab.wavefront import Wavefront

Carry = list[State] | None
RECORD = 4
"""What a step reports first, in fp64: loss, gradient norm before the clip, learning rate, 1 if it was not applied."""
CONTROL = 2
"""What a step is told, in fp64: the factor of its rate, and its number."""
PATIENCE = 3
"""Steps in a row that may not be finite under `train.on_nonfinite = "rollback"` before the run goes back."""
SLOWED = 0.5
"""Factor of the rate for a while after that."""


@dataclass(frozen=True)
class Outcome:
    """What the host learns of step k; `timed` unless it was a warm-up step.

    `waited` of the seconds went by until its batch was there; `factor` is the schedule's; `figures` are what the
    objective tells of itself.
    """

    k: int
    starts_B: NDArray[Any]
    loss: float
    grad_norm: float
    lr: float
    seconds: float
    timed: bool
    waited: float = 0.0
    factor: float = 1.0
    figures: dict[str, float] = field(default_factory=dict)

    @property
    def finite(self) -> bool:
        """Whether the step was applied."""
        return isfinite(self.loss) and isfinite(self.grad_norm)


class Executor(Protocol):
    """Runs steps in order; results come in the same order, at once or up to `depth` steps later."""

    @property
    def depth(self) -> int:
        """Steps that may be in flight when another is submitted."""

    @property
    def graph(self) -> dict[str, Any]:
        """For result.json: whether a CUDA graph is in use, and why not."""

    @property
    def carry(self) -> Carry:
        """States to go on with after the last step; to be read when nothing is in flight."""

    def __len__(self) -> int:
        """Steps in flight."""

    def submit(self, k: int) -> None:
        """Start step k; the caller collects so often that at most `depth` steps are in flight before."""

    def collect(self, wait: bool) -> Outcome | None:
        """The oldest step in flight, or None if there is none or it is not done and need not be waited for."""

    def offender(self, k: int) -> str:
        """What went non-finite in step k, which was not applied; the executor ends with this."""


class HostUpdate:
    """Clip and update by any optimizer: the host looks at loss and norm first."""

    def __init__(self, parameters: list[nn.Parameter], optimizer: torch.optim.Optimizer, clip: float) -> None:
        self.parameters, self.optimizer, self.clip = parameters, optimizer, clip

    def __call__(self, loss: Tensor, norm: Tensor) -> Tensor:
        """Apply the gradients in place if both are finite; the step's record."""
        value, size = loss.item(), norm.item()
        applied = isfinite(value) and isfinite(size)
        if applied:
            if self.clip > 0:
                torch.nn.utils.clip_grads_with_norm_(self.parameters, self.clip, norm)
            self.optimizer.step()
        return torch.tensor([value, size, current_lr(self.optimizer), not applied], dtype=torch.float64)

    def reset(self) -> None:
        """Nothing: the host looks at each step by itself."""


class DeviceUpdate:
    """The same without the host: a step that is not finite is not applied, nor is any after `patience` in a row."""

    def __init__(self, optimizer: GatedOptimizer, clip: float, device: torch.device, patience: int = 1) -> None:
        self.optimizer, self.clip, self.patience = optimizer, clip, patience
        self.halted, self.missed = torch.zeros((), device=device), torch.zeros((), device=device)
        self.skipped = self.halted
        """1 where the last step was not applied."""

    def __call__(self, loss: Tensor, norm: Tensor) -> Tensor:
        """Apply the gradients in place unless a loss or norm was not finite; the step's record, on the device."""
        finite = torch.isfinite(loss) & torch.isfinite(norm)
        missed = (~finite).float()
        if self.patience > 1:
            self.missed.add_(1).mul_(missed)
            torch.maximum(self.halted, (self.missed >= self.patience).float(), out=self.halted)
            self.skipped = torch.maximum(self.halted, missed)
        else:
            torch.maximum(self.halted, missed, out=self.halted)
        scale = (self.clip / (norm + 1e-6)).clamp(max=1.0) if self.clip > 0 else torch.ones_like(norm)
        self.optimizer.gated_step(scale, self.skipped)
        return torch.stack([loss.double(), norm.double(), self.optimizer.lr_now, self.skipped.double()])

    def reset(self) -> None:
        """Apply steps again."""
        self.halted.zero_()
        self.missed.zero_()


class TrainStep:
    """Forward, backward and update over one batch in `train.grad_accum` pieces.

    Args:
        model: with the heads that the objective asks for.
        optimizer: over its parameters.
        train: how much at once.
        dtype: of matrix products.
        objective: what to back-propagate; the loss when None.
        schedule: of the learning rate; none when None.
        filter_from: steps that are done before Collider filters.
        sharing: how several processes share the model; None: there is one.

    Raises:
        ConfigError: the optimizer follows no schedule.

    """

    def __init__(
        self, model: LM, optimizer: torch.optim.Optimizer, train: TrainSection, dtype: torch.dtype,
        objective: Objective | None = None, schedule: Schedule | None = None, filter_from: int = 0,
        sharing: Sharing | None = None,
    ) -> None:  # fmt: skip
        self.model, self.train, self.dtype = model, train, dtype
        self.sharing = sharing or Sharing(model)
        world = self.sharing.world
        mine = world.rows(train.batch_size)
        self.rows, self._first_row = mine.stop - mine.start, mine.start
        self.optimizer, self.objective, self.schedule = optimizer, objective, schedule
        self.device = model.embedding.weight.device
        self.patience = PATIENCE if train.on_nonfinite == "rollback" else 1
        self.backward_seconds: tuple[float, float] | None = None
        """Of one product, dense and filtered, where that was measured."""
        self.slow_until = 0
        """Last step whose rate is multiplied by SLOWED."""
        self.update: HostUpdate | DeviceUpdate
        if isinstance(optimizer, GatedOptimizer):
            self.update = DeviceUpdate(optimizer, train.clip, self.device, self.patience)
        else:
            self.update = HostUpdate(self.sharing.updated, optimizer, train.clip)
        self.columns = objective.columns if objective else ()
        self.ahead = objective.ahead if objective else 1
        told = objective is not None or schedule is not None or self.patience > 1
        self.control = torch.zeros(CONTROL, dtype=torch.float64, device=self.device) if told else None
        self._follows = True
        if self.control is not None and (schedule is not None or self.patience > 1):
            self._follows = (follow if schedule is None else accept_schedule)(optimizer, self.control[0])
        self._filter_from = filter_from if objective and objective.filters else 0
        self._filtering = False
        self._figures: Tensor | None = None
        if train.checkpoint_every is not None:
            model.walk = Remat(train.checkpoint_every, train.checkpoint_chunk)
        elif train.chunks > 1:
            model.walk = Wavefront(train.chunks)

    @property
    def width(self) -> int:
        """Values in a record."""
        return RECORD + len(self.columns)

    def phase(self, k: int) -> bool:
        """What of step k a captured step cannot take from its inputs: whether positions are filtered."""
        return k > self._filter_from

    def begin(self, k: int, seconds: float) -> tuple[float, float]:
        """Make step k the next, when `seconds` of the training clock are spent; what `control` has to hold for it."""
        self._filtering = self.phase(k)
        if self.schedule is not None and self.schedule.timed:
            seconds = self.sharing.world.first(seconds)
        factor = 1.0 if self.schedule is None else self.schedule.factor(k - 1, seconds)
        factor *= SLOWED if k <= self.slow_until else 1.0
        if not self._follows:
            set_factor(self.optimizer, factor)
        return factor, float(k)

    def __call__(self, bytes_BT1: Tensor, reset_BT: Tensor | None, carry: Carry) -> tuple[Tensor, Carry]:
        """Train on a batch.

        Returns:
            The record, and the states to carry on if states are carried.

        """
        self.sharing.prepare()
        if isinstance(self.optimizer, LayerwiseRouted):
            self.optimizer.begin()
            loss, carry = self.backward(bytes_BT1, reset_BT, carry)
            size, applied = self.optimizer.end()
            told = [loss.item(), size.item(), current_lr(self.optimizer), not applied]
            return self._with_figures(torch.tensor(told, dtype=torch.float64)), carry
        loss, carry = self.backward(bytes_BT1, reset_BT, carry)
        loss, norm, self._figures = self.sharing.reduced(loss, self._figures)
        with self.sharing.updating():
            record = self.update(loss, norm)
        return self._with_figures(record), carry

    def _with_figures(self, record: Tensor) -> Tensor:
        return record if self._figures is None else torch.cat([record, self._figures.to(record)])

    def backward(self, bytes_BT1: Tensor, reset_BT: Tensor | None, carry: Carry) -> tuple[Tensor, Carry]:
        """Add the gradients of a batch's mean objective; its mean loss here, and the states to carry on."""
        total = torch.zeros((), device=self.device)
        carried: list[list[State]] = []
        self._figures = None
        for piece in self._pieces():
            with self.sharing.piece(last=piece.stop == self.rows):
                objective, loss, states, figures = self._forward(piece, bytes_BT1, reset_BT, carry)
                if isinstance(self.optimizer, LayerwiseRouted):
                    self.optimizer.judge(objective.detach())
                (objective / self.train.grad_accum).backward()  # type: ignore[no-untyped-call]
            total += loss.detach() / self.train.grad_accum
            if figures:
                told = torch.stack([figure.double() for figure in figures]) / self.train.grad_accum
                self._figures = told if self._figures is None else self._figures + told
            if self.train.carry_state:
                carried.append([{name: t.detach() for name, t in state.items()} for state in states])
        return total, _joined(carried) if carried else None

    def zero_grad(self) -> None:
        """No gradients any more."""
        self.sharing.zero_grad(self.optimizer)

    def forward(self, bytes_BT1: Tensor, reset_BT: Tensor | None, carry: Carry) -> None:
        """The forward passes alone."""
        for piece in self._pieces():
            self._forward(piece, bytes_BT1, reset_BT, carry)

    def _pieces(self) -> Iterator[slice]:
        micro = self.rows // self.train.grad_accum
        return (slice(first, first + micro) for first in range(0, self.rows, micro))

    def _forward(
        self, rows: slice, bytes_BT1: Tensor, reset_BT: Tensor | None, carry: Carry
    ) -> tuple[Tensor, Tensor, list[State], list[Tensor]]:
        """What to back-propagate, the loss, the states, and what the objective tells."""
        states = carry and [{name: t[rows] for name, t in state.items()} for state in carry]
        reset = None if reset_BT is None else reset_BT[rows]

        def body() -> tuple[Tensor, Tensor, list[State], list[Tensor]]:
            if self.objective is None:
                loss, new = self.model.loss(bytes_BT1[rows], states, reset)
                return loss, loss, new, []
            assert self.control is not None
            found = self.objective(
                self.model, bytes_BT1[rows], states, reset,
                filtering=self._filtering, step=self.control[1], first_row=self._first_row + rows.start,
            )  # fmt: skip
            return found.objective, found.loss, found.states, found.figures

        with autocast(self.device, self.dtype):
            return self.sharing.forward(body)


class EagerExecutor:
    """Runs each step at once and waits for its result.

    Args:
        step: what to compute.
        sampler: batches.
        clock: seconds are booked to `warmup` for the first `warmup` steps, then to `train`.
        carry: states to begin with.
        warmup: how many steps are not timed.

    """

    depth = 0

    def __init__(self, step: TrainStep, sampler: Sampler, clock: Clock, carry: Carry, warmup: int = 1) -> None:
        self.step, self.sampler, self.clock, self.carry = step, sampler, clock, carry
        self.graph: dict[str, Any] = {"used": False, "reason": None}
        self._warmup = warmup
        self._done: Outcome | None = None

    def __len__(self) -> int:
        """See Executor."""
        return int(self._done is not None)

    def submit(self, k: int) -> None:
        """See Executor."""
        bucket = "warmup" if self._warmup > 0 else "train"
        before = self.clock.seconds()[bucket]
        with self.clock.book(bucket):
            values = self.step.begin(k, self.clock.train)
            if self.step.control is not None:
                self.step.control.copy_(torch.tensor(values, dtype=torch.float64))
            asked = time.perf_counter()
            batch = self.sampler.batch(k)
            waited = time.perf_counter() - asked
            record, carry = self.step(*self._on_device(batch), self.carry)
            loss, norm, lr, halted, *figures = record.tolist()
            if not halted:
                self.carry = carry
            if not halted or self.step.patience > 1:
                self.step.zero_grad()
        seconds = self.clock.seconds()[bucket] - before
        told = dict(zip(self.step.columns, figures, strict=True))
        self._done = Outcome(
            k, batch.starts_B, loss, norm, lr, seconds, timed=self._warmup <= 0, waited=waited, factor=values[0],
            figures=told,
        )  # fmt: skip
        self._warmup -= 1

    def collect(self, wait: bool) -> Outcome | None:
        """See Executor."""
        done, self._done = self._done, None
        return done

    def untimed(self, steps: int) -> None:
        """Count the next steps as warm-up."""
        self._warmup = steps

    def offender(self, k: int) -> str:
        """See Executor."""
        if self.step.patience > 1 or isinstance(self.step.optimizer, LayerwiseRouted):
            self.repeat(k)  # its gradients are gone
        batch = self.sampler.batch(k)
        on_device = self._on_device(batch)
        first_of = self.step.sharing.first_of
        return first_offender(self.step.model, lambda: self.step.forward(*on_device, self.carry), first_of)

    def repeat(self, k: int) -> None:
        """The gradients of step k once more, into cleared ones."""
        self.step.zero_grad()
        self.step.backward(*self._on_device(self.sampler.batch(k)), self.carry)

    def _on_device(self, batch: Batch) -> tuple[Tensor, Tensor | None]:
        reset_BT = None if batch.reset_BT is None else torch.from_numpy(batch.reset_BT).to(self.step.device)
        return torch.from_numpy(batch.bytes_BT1).to(self.step.device), reset_BT


def _joined(pieces: list[list[State]]) -> list[State]:
    """States of all rows from those of the pieces of a batch."""
    return [
        {name: torch.cat([part[i][name] for part in pieces]) for name in first} for i, first in enumerate(pieces[0])
    ]


def optimizer_backends(optimizer: torch.optim.Optimizer) -> list[dict[str, Any]]:
    """The same of the optimizer's products, where it has a choice."""
    if not isinstance(optimizer, RoutedOptimizer):
        return []
    return [{**choice.as_dict(), "layers": ["optimizer"]} for choice in choices()]


def backends(model: LM) -> list[dict[str, Any]]:
    """Which backend ran each operation of each layer, and why no faster one; equal layers share a row.

    What the language model runs around its layers is in layer "lm".
    """
    rows: dict[str, dict[str, Any]] = {}
    for name, owner in [*enumerate(model.layers), ("lm", model)]:
        for choice in getattr(owner, "backends", {}).values():
            row = rows.setdefault(repr(choice), {**choice.as_dict(), "layers": []})
            row["layers"].append(name)
    return list(rows.values())
