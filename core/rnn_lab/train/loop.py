"""The training loop: one optimizer step after the other, under a budget, with every figure on record."""

from collections.abc import Sequence
from math import exp, isfinite
from typing import Any, Protocol

import torch

from rnn_lab.config import RunConfig
from rnn_lab.data.ahead import ReadAhead
from rnn_lab.data.batches import Sampler
from rnn_lab.data.chain import fingerprint
from rnn_lab.data.corpus import Split
from rnn_lab.diagnostics.rule import Rule
from rnn_lab.diagnostics.watch import Watch
from rnn_lab.errors import BudgetTooSmall, Diverged
from rnn_lab.lm import LM
from rnn_lab.modelspec import ModelSpec
from rnn_lab.parallel.sharing import Sharing
from rnn_lab.parallel.storage import latest
from rnn_lab.system.signals import asked_to_stop
from rnn_lab.train import checkpoint as ckpt
from rnn_lab.train.budget import Budget
from rnn_lab.train.clock import Clock
from rnn_lab.train.device import peak_flops, peak_memory_bytes
from rnn_lab.train.diagnose import advice, graver
from rnn_lab.train.evaluate import averaged_weights, evaluate
from rnn_lab.train.facts import facts_of
from rnn_lab.train.figures import Figures, finite
from rnn_lab.train.filter_check import of_run
from rnn_lab.train.gpu_load import GpuLoad
from rnn_lab.train.graph import executor
from rnn_lab.train.heads import Heads
from rnn_lab.train.metrics import MetricsLog, bits_per_byte
from rnn_lab.train.optimizers import set_mode
from rnn_lab.train.progress import Progress, flatten_states, identity, restore
from rnn_lab.train.recovery import Recovery
from rnn_lab.train.rundir import RunDir
from rnn_lab.train.setup import make_sampler, make_step
from rnn_lab.train.step import Executor, Outcome, backends, optimizer_backends

AUTO_CHECKPOINT_SECONDS = 120.0
COSINES_EVERY = 5
"""Times `diagnostics.every` between looks at how far Collider's gradient is from the exact one."""
ECHO = 5.0
"""Seconds: what signals every process of a job reaches a rank twice, by itself and through torchrun."""
SEEN = 2
"""Steps of a session, or of a phase of it, whose backends are recorded; a CUDA graph replays them afterwards."""


class Observer(Protocol):
    """Who watches a run; the command line shows it, tests record it."""

    def step(self, line: dict[str, Any], fraction: float) -> None:
        """After every optimizer step: its line of metrics.jsonl and the spent share of the budget."""

    def note(self, text: str) -> None:
        """Something a person should know."""


class Tracker(Protocol):
    """Receives every line of metrics.jsonl, and the result."""

    def log(self, step: int, line: dict[str, Any]) -> None:
        """A step's line."""

    def close(self, result: dict[str, Any]) -> None:
        """What result.json holds."""

    # `rewind(step)`, where a tracker has it: forget what came after that step, because the run goes back to it.


class Trainer:
    """One run from its current step to the end of its budget.

    Args:
        cfg: the resolved configuration.
        spec: the model.
        run: the run's folder.
        split: training and validation bytes.
        model, optimizer: on their device, as they were after `progress.step` steps.
        dtype: of matrix products.
        progress: where to begin.
        trackers: receivers of every metrics line.
        observer: who watches.
        clock: started when the run's session began.
        reference: what `objective.collider_scorer = "excess"` compares with.
        rules: what to look at the run for.
        sharing: how the ranks of the run share its model, this process one of them; None: it is alone.
    """

    def __init__(
        self, *, cfg: RunConfig, spec: ModelSpec, run: RunDir, split: Split, model: LM,
        optimizer: torch.optim.Optimizer, dtype: torch.dtype, progress: Progress, trackers: Sequence[Tracker],
        observer: Observer, clock: Clock, reference: LM | None = None, rules: Sequence[Rule] = (),
        sharing: Sharing | None = None,
    ) -> None:  # fmt: skip
        self.cfg, self.spec, self.run, self.split = cfg, spec, run, split
        self.model, self.optimizer, self.dtype = model, optimizer, dtype
        self.device = model.embedding.weight.device
        self.trackers, self.observer, self.clock = trackers, observer, clock
        self.sharing = sharing or Sharing(model)
        self.world = self.sharing.world
        self.budget = Budget.of(cfg.train)
        train = cfg.train
        self.sampler: Sampler = make_sampler(cfg, split.train, self.world)
        self.chain = progress.chain or self.sampler.chain()
        self.data_fingerprint = fingerprint(split.train)
        ahead = model.heads.flops_per_token(model, train.seq_len) if isinstance(model.heads, Heads) else 0
        self.step_flops = 3 * (spec.flops_per_token(train.seq_len) + ahead) * self.budget.tokens_per_step
        peak = peak_flops(self.device)
        self.peak = None if peak is None else peak * self.world.size
        self.step, self.timed_steps = progress.step, progress.timed_steps
        self.last_line: dict[str, Any] = {}
        self.stop_signal: int | None = None  # as all ranks agreed
        self._asked: int | None = None  # as this one heard, at any moment
        self.metrics: MetricsLog | None = None
        self.train_step = make_step(cfg, model, optimizer, dtype, reference, observer.note, self.sharing)
        self.executor: Executor = executor(self.train_step, self.sampler, clock, progress.carry, observer.note)
        self._submitted = self._saved_step = self.step
        self._step_seconds = 0.0
        self.figures = Figures(cfg, model, optimizer, self.sharing)
        self.load = GpuLoad(self.device, cfg.diagnostics.gpu_seconds if self.world.main else 0, observer.note)
        facts = facts_of(cfg, model, optimizer, self.train_step)
        self.watch = Watch(rules, facts, observer.note, strict=cfg.diagnostics.strict, saved=progress.found)
        self.recovery = Recovery(cfg.train.on_nonfinite == "rollback", progress.rollbacks)
        self.train_step.slow_until = self.recovery.slow_until
        self.trained_by: list[dict[str, Any]] | None = None
        self.memory_of_ranks: list[int] | None = None
        set_mode(optimizer, "train")

    def train(self) -> None:
        """Run until the budget is spent or a signal asks to stop; both end with a checkpoint.

        Raises:
            Diverged: a loss or gradient was not finite, and nothing is to be done about it.
            Diagnosed: a diagnostic found an error, and the run is strict.
            BudgetTooSmall: the first timed step overran the whole time budget.
        """
        self.metrics = self.run.metrics_log(self.step)
        self._look_back(self.metrics)
        self.world.together(lambda: self.watch.look("start"))
        last_save, new = self.clock.seconds(), self.step
        with asked_to_stop(self._stop, ECHO if self.world.size > 1 else 0.0):
            if (self.recovery.active or self.world.size > 1) and self.step == 0:
                self.save()  # what a roll-back, or a run that lost a rank, goes to before the first checkpoint
            while self._may_submit():
                if self._diagnoses(self._submitted + 1):
                    self._collect(0)
                    self.figures.before()
                self._submitted += 1
                self.executor.submit(self._submitted)
                if self._submitted <= new + SEEN:  # before a validation, whose calls may run by others
                    self.trained_by = [*backends(self.model), *optimizer_backends(self.optimizer)]
                due = bool(self.world.first(self._checkpoint_due(last_save)))
                # Weights are read behind this very step: nothing may be queued after it.
                read = self._validates(self._submitted) or self._diagnoses(self._submitted)
                alone = due or read or self.timed_steps == 0
                if self._phase_ends():
                    alone, new = True, self._submitted
                self._collect(0 if alone else self.executor.depth)
                if due and not self.recovery.missed:
                    self.save()
                    last_save = self.clock.seconds()
            self._collect(0)
            if self.step > self._saved_step:
                self.save()
        _, self.stop_signal = self.world.agree(True, self._asked)  # also behind the last step
        if self.stop_signal is None:
            self.world.together(lambda: self.watch.look("end"))
        self.memory_of_ranks = self.world.everyone(peak_memory_bytes(self.device))

    def _phase_ends(self) -> bool:
        """Whether the next step is computed in another way, which a captured one has to be let go of for."""
        return self.train_step.phase(self._submitted) != self.train_step.phase(self._submitted + 1)

    def _may_submit(self) -> bool:
        """Whether one more step may start, if those in flight take as long as the last one did."""
        while True:
            flying = len(self.executor)
            allowed = self.budget.allows(self._submitted, self.clock.train + flying * self._step_seconds)
            allowed, self.stop_signal = self.world.agree(allowed, self._asked)
            if self.stop_signal is not None or not (allowed or flying):
                return False
            if allowed:
                return True
            self._collect(flying - 1)

    def _collect(self, limit: int) -> None:
        """Record what is done, and wait until at most `limit` steps are in flight.

        Several ranks take a step when all have to, so that whatever follows from it, all do at the same point.
        """
        while len(self.executor) > limit or self.world.size == 1:
            outcome = self.executor.collect(wait=len(self.executor) > limit)
            if outcome is None:
                return
            self._take(outcome)
            self.world.tick()

    def _take(self, outcome: Outcome) -> None:
        """Count a step, record it and show it.

        Raises:
            Diverged: it was not finite, and therefore not applied.
            BudgetTooSmall: it is the first timed one and overran the whole time budget.
        """
        self.chain.update(outcome.k, outcome.starts_B)
        self.recovery.count(outcome.finite)
        if self.recovery.spent:
            self._go_back(outcome)
            return
        self.step = outcome.k
        self.timed_steps += outcome.timed
        self._step_seconds = outcome.seconds
        self._record(outcome)
        if outcome.timed and self.timed_steps == 1:
            try:
                self.world.together(lambda: self.budget.check_first_step(outcome.seconds))
            except BudgetTooSmall:
                self.save()
                raise

    def _record(self, outcome: Outcome) -> None:
        assert self.metrics is not None
        self.metrics.add_loss(outcome.loss if isfinite(outcome.loss) else None)
        seconds = self.clock.seconds()
        line: dict[str, Any] = {
            "step": self.step,
            "tokens": self.step * self.budget.tokens_per_step,
            "flops": self.step * self.step_flops,
            "seconds": seconds["train"],
            "loss": outcome.loss,
            "objective": outcome.figures.get("objective", outcome.loss),
            "bpb": bits_per_byte(outcome.loss),
            "last100": self.metrics.last100,
            "grad_norm": outcome.grad_norm,
            "lr": outcome.lr,
            "tokens_per_s": self.budget.tokens_per_step / outcome.seconds,
            "flops_per_s": self.step_flops / outcome.seconds,
            "mfu": None if self.peak is None else self.step_flops / outcome.seconds / self.peak,
            "memory_bytes": peak_memory_bytes(self.device),
            "data_wait_frac": outcome.waited / outcome.seconds,
        }
        line |= self.figures.of_step(outcome, sum(seconds.values()))
        line |= outcome.figures | self.load.step(self.step)
        if isinstance(self.sampler, ReadAhead):
            line |= {"queue_depth": self.sampler.depth, "starved_steps": self.sampler.starved}
        if not outcome.finite:
            line |= {"skipped": 1} | self.watch.event("D-NAN", self.step, "the step was skipped: " + _norms(outcome))
        if self._validates(self.step):
            line |= self.validate()
        if self._diagnoses(self.step):
            line |= self.figures.now() | self._cosine()
        line = finite(line)
        self.watch.step(line)
        self.metrics.write(line)
        for tracker in self.trackers:
            tracker.log(self.step, line)
        self.last_line = line
        self.observer.step(line, self.budget.fraction(self.step, seconds["train"]))
        self._enforce()

    def _enforce(self) -> None:
        """End a strict run at what its diagnostics found, on every rank."""
        if self.cfg.diagnostics.strict:
            self.world.together(self.watch.enforce)

    def _go_back(self, outcome: Outcome) -> None:
        """Take the run up again from its last checkpoint, more slowly.

        Raises:
            Diverged: that is not to be done, was done already, or is not possible.
        """
        where = graver(self.world.everyone(self.executor.offender(outcome.k)))
        self.watch.event("D-NAN", outcome.k, f"{_norms(outcome)}; first not finite: {where}")
        may = self.recovery.may_go_back
        saved = latest(self.world, self.run.checkpoints, self.observer.note) if may else None
        if saved is None:
            after = f" after {len(self.recovery.rows)} roll-back" if self.recovery.rows else ""
            raise Diverged(
                f"step {outcome.k}{after}: {_norms(outcome)}; first not finite: {where}. "
                f"The step was not applied. Batch {outcome.k} of seed {self.cfg.train.seed} starts at bytes "
                f"{', '.join(map(str, outcome.starts_B[:4]))}, ... " + advice(self.spec.layer_cls, self.spec.layer_cfg)
            )
        self.recovery.went_back(outcome.k, saved.step, where)
        progress = restore(
            saved, cfg=self.cfg, spec=self.spec, run=self.run, split=self.split, sharing=self.sharing,
            optimizer=self.optimizer,
        )  # fmt: skip
        set_mode(self.optimizer, "train")
        self.train_step.zero_grad()
        self.train_step.update.reset()
        self.train_step.slow_until = self.recovery.slow_until
        self.close_sampler()
        self.sampler = make_sampler(self.cfg, self.split.train, self.world)
        self.chain = progress.chain or self.sampler.chain()
        self.executor = executor(self.train_step, self.sampler, self.clock, progress.carry, self.observer.note)
        self.step = self._submitted = self._saved_step = progress.step
        self.timed_steps = progress.timed_steps
        assert self.metrics is not None
        self.metrics.close()
        self.metrics = self.run.metrics_log(self.step)
        self._look_back(self.metrics)
        self.save()  # a session that begins here has to know of the roll-back
        for tracker in self.trackers:
            if hasattr(tracker, "rewind"):
                tracker.rewind(self.step)
        self.observer.note(self.recovery.told)
        self._enforce()

    def _look_back(self, metrics: MetricsLog) -> None:
        """Go on from the lines that there are."""
        self.last_line = metrics.last_line
        self.watch.rewind(metrics.recent)
        self.figures.seen(metrics.recent)

    def _validates(self, step: int) -> bool:
        every = self.cfg.eval.every
        return every is not None and step % every == 0

    def _diagnoses(self, step: int) -> bool:
        return step % self.cfg.diagnostics.every == 0

    def _cosine(self) -> dict[str, float]:
        """How far the filtered gradient is from the exact one, now and then."""
        step, k = self.train_step, self.step
        if (
            not self.sharing.whole
            or step.objective is None
            or not step.objective.filters
            or k % (COSINES_EVERY * self.cfg.diagnostics.every)
        ):
            return {}
        window = torch.from_numpy(self.sampler.batch(k).bytes_BT1).to(self.device)
        return {"collider_grad_cos": of_run(step, window, k)}

    def validate(self) -> dict[str, float | None]:
        """Validation loss and what goes with it, with the averaged weights."""
        with self.clock.book("eval"), averaged_weights(self.model, self.optimizer):
            found = evaluate(
                self.model, self.split.val, seq_len=self.cfg.train.seq_len, dtype=self.dtype,
                # Without gradients four micro-batches fit where one trains.
                batch_size=4 * self.train_step.rows // self.cfg.train.grad_accum,
                tokens=self.cfg.eval.tokens, sharing=self.sharing,
            )  # fmt: skip
        return {
            "val_loss": found.loss, "val_bpb": bits_per_byte(found.loss), "val_perplexity": exp(min(found.loss, 700.0)),
            "val_accuracy": found.accuracy, "val_entropy": found.entropy,
        }  # fmt: skip

    def _checkpoint_due(self, last_save: dict[str, float]) -> bool:
        every = self.cfg.checkpoint.every
        if every is not None:
            return self._submitted % every == 0
        now = self.clock.seconds()
        return sum(now.values()) - sum(last_save.values()) >= AUTO_CHECKPOINT_SECONDS

    def save(self) -> None:
        """Write a checkpoint of the current step."""
        assert self.metrics is not None and self._submitted == self.step
        with self.clock.book("checkpoint"):
            self.metrics.sync()
            tensors, values = self.sharing.tensors(self.optimizer, flatten_states(self.executor.carry))
            saved = ckpt.Checkpoint(
                self.step,
                tensors,
                {
                    "optimizer": values,
                    "timed_steps": self.timed_steps,
                    "identity": identity(self.cfg, self.spec),
                    "data_chain": self.chain.hexdigest,
                    "data_fingerprint": self.data_fingerprint,
                    "clock": self.clock.seconds(),
                    "diagnostics": self.watch.state(),
                    "rollbacks": list(self.recovery.rows),
                },
            )
            self.sharing.save(self.run.checkpoints, saved, self.cfg.checkpoint.keep)
        self._saved_step = self.step
        self.world.tick()

    def close(self) -> None:
        """End what runs beside training."""
        self.close_sampler()
        self.load.close()

    def close_sampler(self) -> None:
        """End what reads batches ahead."""
        if isinstance(self.sampler, ReadAhead):
            self.sampler.close()

    def _stop(self, number: int) -> None:
        """At the first signal: finish the current step, then stop."""
        self._asked = number
        self.observer.note("stopping after this step; once more to stop at once")


def _norms(outcome: Outcome) -> str:
    return f"loss {outcome.loss}, gradient norm {outcome.grad_norm}"
