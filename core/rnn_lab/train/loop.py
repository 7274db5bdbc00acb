"""The training loop: one optimizer step after the other, under a budget, with every figure on record."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, Protocol

import torch
from torch import Tensor

from rnn_lab.config import RunConfig
from rnn_lab.data.batches import ContiguousStreams, RandomWindows, Sampler
from rnn_lab.data.chain import OffsetChain, fingerprint
from rnn_lab.data.corpus import Split
from rnn_lab.errors import BudgetTooSmall, CheckpointError, Diverged
from rnn_lab.layer import State
from rnn_lab.lm import LM
from rnn_lab.modelspec import ModelSpec
from rnn_lab.train import checkpoint as ckpt
from rnn_lab.train.budget import Budget
from rnn_lab.train.clock import Clock
from rnn_lab.train.device import autocast, peak_flops, peak_memory_bytes
from rnn_lab.train.diagnose import advice, first_offender
from rnn_lab.train.evaluate import averaged_weights, evaluate
from rnn_lab.train.metrics import MetricsLog, bits_per_byte
from rnn_lab.train.optimizers import current_lr, set_mode
from rnn_lab.train.rundir import RunDir

AUTO_CHECKPOINT_SECONDS = 120.0


class Observer(Protocol):
    """Who watches a run; the command line shows it, tests record it."""

    def step(self, line: dict[str, Any], fraction: float) -> None:
        """After every optimizer step: its line of metrics.jsonl and the spent share of the budget."""

    def note(self, text: str) -> None:
        """Something a person should know."""


class Trainer:
    """One run from its current step to the end of its budget.

    Args:
        cfg: the resolved configuration.
        spec: the model.
        run: the run's folder.
        split: training and validation bytes.
        model, optimizer: on their device, freshly initialised.
        trackers: receivers of every metrics line.
        observer: who watches.
        clock: started when the run's session began.
    """

    def __init__(
        self, *, cfg: RunConfig, spec: ModelSpec, run: RunDir, split: Split, model: LM,
        optimizer: torch.optim.Optimizer, dtype: torch.dtype, observer: Observer, clock: Clock,
    ) -> None:  # fmt: skip
        self.cfg, self.spec, self.run, self.split = cfg, spec, run, split
        self.model, self.optimizer, self.dtype = model, optimizer, dtype
        self.device = model.embedding.weight.device
        self.observer, self.clock = observer, clock
        self.trackers: list[Any] = []
        self.budget = Budget.of(cfg.train)
        train = cfg.train
        kind = ContiguousStreams if train.carry_state else RandomWindows
        self.sampler: Sampler = kind(split.train, train.seed, train.batch_size, train.seq_len)
        self.chain = self.sampler.chain()
        self.data_fingerprint = fingerprint(split.train)
        self.step_flops = 3 * spec.flops_per_token(train.seq_len) * self.budget.tokens_per_step
        self.peak = peak_flops(self.device)
        self.step, self.timed_steps = 0, 0
        self.last_line: dict[str, Any] = {}
        self.carry: list[State] | None = None
        self.stop_signal: int | None = None
        self.metrics: MetricsLog | None = None
        self._warm = False
        self._saved_step = 0
        set_mode(optimizer, "train")

    def restore(self, saved: ckpt.Checkpoint) -> None:
        """Go on from a checkpoint.

        Raises:
            CheckpointError: it belongs to another model or other data.
        """
        before, now = saved.state["identity"], self.identity
        changed = sorted(key for key in before.keys() | now.keys() if before.get(key) != now.get(key))
        if changed:
            raise CheckpointError(
                f"{self.run.config} says {changed[0]} = {now.get(changed[0])}, the run was trained with "
                f"{before.get(changed[0])}: set it back, or start a new run (changed: {', '.join(changed)})"
            )
        if saved.state["data_fingerprint"] != self.data_fingerprint:
            raise CheckpointError(
                f"{self.split.train.file.path} is not the data this run began with (fingerprint differs): "
                "restore the file, or start a new run"
            )
        try:
            self.model.load_state_dict(saved.tensors["model"])
            ckpt.restore_optimizer(self.optimizer, saved.tensors["optimizer"], saved.state["optimizer"])
        except (RuntimeError, KeyError, ValueError) as error:
            raise CheckpointError(f"the checkpoint does not fit this model: {error}") from error
        ckpt.restore_random_state(saved.tensors["random"])
        if saved.tensors["carry"]:
            self.carry = _unflatten_states(saved.tensors["carry"], self.device)
        self.step = self._saved_step = saved.step
        self.timed_steps = saved.state["timed_steps"]
        self.chain = OffsetChain(saved.state["data_chain"])

    @property
    def identity(self) -> dict[str, Any]:
        """What must not change within a run: the model, the batches, the update rule."""
        free = {"train.steps", "train.tokens", "train.minutes", "train.device", "model.target"}
        tables = self.cfg.model_dump(mode="json") | {"model": self.spec.table()}
        return {
            f"{section}.{key}": value
            for section in ("model", "train", "optimizer")
            for key, value in tables[section].items()
            if f"{section}.{key}" not in free and value is not None
        }

    def train(self) -> None:
        """Run until the budget is spent or a signal asks to stop; both end with a checkpoint.

        Raises:
            Diverged: a loss or gradient was not finite.
            BudgetTooSmall: the first timed step overran the whole time budget.
        """
        self.metrics = MetricsLog(self.run.metrics, self.step)
        self.last_line = self.metrics.last_line
        last_save = self.clock.seconds()
        with self._signals():
            while self.stop_signal is None and self.budget.allows(self.step, self.clock.train):
                self._advance()
                if self._checkpoint_due(last_save):
                    self.save()
                    last_save = self.clock.seconds()
            if self.step > self._saved_step:
                self.save()

    def _advance(self) -> None:
        """One optimizer step, booked, recorded and shown."""
        k = self.step + 1
        before = self.clock.seconds()
        with self.clock.book("train" if self._warm else "warmup"):
            loss, grad_norm = self._optimizer_step(k)
        self.step = k
        if self._warm:
            self.timed_steps += 1
        spent = self.clock.seconds()
        step_seconds = sum(spent[b] - before[b] for b in ("train", "warmup"))
        self._record(loss, grad_norm, step_seconds, spent["train"])
        if self._warm and self.timed_steps == 1:
            try:
                self.budget.check_first_step(step_seconds)
            except BudgetTooSmall:
                self.save()
                raise
        self._warm = True

    def _record(self, loss: float, grad_norm: float, step_seconds: float, train_seconds: float) -> None:
        assert self.metrics is not None
        self.metrics.add_loss(loss)
        tokens = self.step * self.budget.tokens_per_step
        line: dict[str, Any] = {
            "step": self.step,
            "tokens": tokens,
            "flops": self.step * self.step_flops,
            "seconds": train_seconds,
            "loss": loss,
            "objective": loss,
            "bpb": bits_per_byte(loss),
            "last100": self.metrics.last100,
            "grad_norm": grad_norm,
            "lr": current_lr(self.optimizer),
            "tokens_per_s": self.budget.tokens_per_step / step_seconds,
            "flops_per_s": self.step_flops / step_seconds,
            "mfu": None if self.peak is None else self.step_flops / step_seconds / self.peak,
            "memory_bytes": peak_memory_bytes(self.device),
        }
        every = self.cfg.eval.every
        if every is not None and self.step % every == 0:
            line |= self.validate()
        self.metrics.write(line)
        for tracker in self.trackers:
            tracker.log(self.step, line)
        self.last_line = line
        self.observer.step(line, self.budget.fraction(self.step, train_seconds))

    def _optimizer_step(self, k: int) -> tuple[float, float]:
        """Loss in nats and gradient norm of step k, applied only if both are finite."""
        train = self.cfg.train
        batch = self.sampler.batch(k)
        self.chain.update(k, batch.starts_B)
        bytes_BT1 = torch.from_numpy(batch.bytes_BT1).to(self.device)
        reset_BT = None if batch.reset_BT is None else torch.from_numpy(batch.reset_BT).to(self.device)
        self.model.prepare()
        micro = train.batch_size // train.grad_accum
        total = torch.zeros((), device=self.device)
        carried: list[list[State]] = []
        for first in range(0, train.batch_size, micro):
            rows = slice(first, first + micro)
            with autocast(self.device, self.dtype):
                loss, states = self.model.loss(bytes_BT1[rows], *self._context(rows, reset_BT))
            (loss / train.grad_accum).backward()  # type: ignore[no-untyped-call]
            total += loss.detach() / train.grad_accum
            if train.carry_state:
                carried.append([{name: t.detach() for name, t in state.items()} for state in states])
        norm = self._clip()
        value, grad_norm = total.item(), norm.item()
        if not (abs(value) < float("inf") and abs(grad_norm) < float("inf")):
            self._diverged(k, value, grad_norm, bytes_BT1, batch.starts_B, reset_BT)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        if carried:
            self.carry = [
                {name: torch.cat([part[i][name] for part in carried]) for name in carried[0][i]}
                for i in range(len(carried[0]))
            ]
        return value, grad_norm

    def _context(self, rows: slice, reset_BT: Tensor | None) -> tuple[list[State] | None, Tensor | None]:
        """Carried states and resets of some rows of the batch."""
        states = self.carry and [{name: t[rows] for name, t in state.items()} for state in self.carry]
        return states, None if reset_BT is None else reset_BT[rows]

    def _clip(self) -> Tensor:
        """Global gradient norm before clipping to train.clip."""
        grads = [p.grad for p in self.model.parameters() if p.grad is not None]
        norm = torch.nn.utils.get_total_norm(grads)
        if self.cfg.train.clip > 0:
            torch.nn.utils.clip_grads_with_norm_(list(self.model.parameters()), self.cfg.train.clip, norm)
        return norm

    def _diverged(
        self, k: int, loss: float, norm: float, bytes_BT1: Tensor, starts_B: Any, reset_BT: Tensor | None
    ) -> None:
        micro = self.cfg.train.batch_size // self.cfg.train.grad_accum

        def forward() -> None:
            for first in range(0, self.cfg.train.batch_size, micro):
                rows = slice(first, first + micro)
                with autocast(self.device, self.dtype):
                    self.model.loss(bytes_BT1[rows], *self._context(rows, reset_BT))

        where = first_offender(self.model, forward)
        raise Diverged(
            f"step {k}: loss {loss}, gradient norm {norm}; first not finite: {where}. The step was not applied. "
            f"Batch {k} of seed {self.cfg.train.seed} starts at bytes {', '.join(map(str, starts_B[:4]))}, ... "
            + advice(self.spec.layer_cls, self.spec.layer_cfg)
        )

    def validate(self) -> dict[str, float | None]:
        """Validation loss and bits per byte with the averaged weights."""
        with self.clock.book("eval"), averaged_weights(self.model, self.optimizer):
            loss = evaluate(
                self.model, self.split.val, seq_len=self.cfg.train.seq_len, dtype=self.dtype,
                # Without gradients four micro-batches fit where one trains.
                batch_size=4 * self.cfg.train.batch_size // self.cfg.train.grad_accum,
                tokens=self.cfg.eval.tokens,
            )  # fmt: skip
        return {"val_loss": loss, "val_bpb": bits_per_byte(loss)}

    def _checkpoint_due(self, last_save: dict[str, float]) -> bool:
        every = self.cfg.checkpoint.every
        if every is not None:
            return self.step % every == 0
        now = self.clock.seconds()
        return sum(now.values()) - sum(last_save.values()) >= AUTO_CHECKPOINT_SECONDS

    def save(self) -> None:
        """Write a checkpoint of the current step."""
        assert self.metrics is not None
        with self.clock.book("checkpoint"):
            self.metrics.sync()
            tensors, values = ckpt.optimizer_tensors(self.optimizer)
            saved = ckpt.Checkpoint(
                self.step,
                {
                    "model": dict(self.model.state_dict()),
                    "optimizer": tensors,
                    "random": ckpt.random_state(),
                    "carry": _flatten_states(self.carry),
                },
                {
                    "optimizer": values,
                    "timed_steps": self.timed_steps,
                    "identity": self.identity,
                    "data_chain": self.chain.hexdigest,
                    "data_fingerprint": self.data_fingerprint,
                    "clock": self.clock.seconds(),
                },
            )
            ckpt.save_checkpoint(self.run.checkpoints, saved, self.cfg.checkpoint.keep)
        self._saved_step = self.step

    @contextmanager
    def _signals(self) -> Iterator[None]:
        """SIGINT and SIGTERM finish the current step, then stop; a second one ends at once."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return

        def stop(number: int, frame: FrameType | None) -> None:
            if self.stop_signal is not None:
                raise KeyboardInterrupt
            self.stop_signal = number
            self.observer.note("stopping after this step; once more to stop at once")

        before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def _flatten_states(states: list[State] | None) -> dict[str, Tensor]:
    return {f"{i}.{name}": t for i, state in enumerate(states or []) for name, t in state.items()}


def _unflatten_states(flat: dict[str, Tensor], device: torch.device) -> list[State]:
    depth = 1 + max(int(key.split(".")[0]) for key in flat)
    states: list[State] = [{} for _ in range(depth)]
    for key, tensor in flat.items():
        index, _, name = key.partition(".")
        states[int(index)][name] = tensor.to(device)
    return states
