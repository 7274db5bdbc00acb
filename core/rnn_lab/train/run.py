"""Runs as a whole: plan one from its configuration layers, start it, resume it, load what it trained."""

import signal
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from rnn_lab.config import Layer, ModelSection, OptimizerSection, Resolved, RunConfig, resolve
from rnn_lab.data.corpus import open_split
from rnn_lab.data.default import default_corpus
from rnn_lab.diagnostics.features import needed
from rnn_lab.diagnostics.watch import rules_of
from rnn_lab.errors import ConfigError, Diverged, OutOfMemory, RnnLabError
from rnn_lab.lm import LM
from rnn_lab.modelspec import ModelSpec, model_spec
from rnn_lab.optim.routed import RoutedOptimizer
from rnn_lab.parallel.agreement import check_same_run
from rnn_lab.parallel.sharing import Replicated, Sharing
from rnn_lab.parallel.world import World
from rnn_lab.registry import Registry
from rnn_lab.tensors import is_out_of_memory
from rnn_lab.train import checkpoint as ckpt
from rnn_lab.train.budget import Budget
from rnn_lab.train.clock import Clock
from rnn_lab.train.device import pick_device, pick_dtype
from rnn_lab.train.heads import attach_heads, detach_heads
from rnn_lab.train.loop import Observer, Trainer
from rnn_lab.train.optimizers import set_mode
from rnn_lab.train.progress import Progress, restore
from rnn_lab.train.result import result_of
from rnn_lab.train.rundir import FollowedDir, RunDir, default_command
from rnn_lab.train.schedule import check_follows
from rnn_lab.train.setup import check, check_ranks, load_reference, matched

CPU_DEFAULTS = Layer("default on cpu", {"train": {"batch_size": 8, "seq_len": 128}, "eval": {"tokens": 16384}})
"""A step of 32 x 512 bytes takes a laptop many seconds; these let a first run learn something in a minute."""


@dataclass(frozen=True)
class Plan:
    """A run whose every value is decided, before anything is written."""

    resolved: Resolved
    spec: ModelSpec

    @property
    def preset(self) -> str | None:
        """Preset that the model came from."""
        origins = (origin for key, origin in self.resolved.origins.items() if key.startswith("model."))
        return next((origin.removeprefix("preset ") for origin in origins if origin.startswith("preset ")), None)

    def tables(self) -> dict[str, dict[str, Any]]:
        """Every section with every value decided; config.toml holds the same."""
        return self.resolved.config.model_dump(mode="json") | {"model": self.spec.table()}

    def origins(self) -> dict[str, str]:
        """The layer that set each `section.key`; the solver and aliases count as layers of the model."""
        return {
            f"{section}.{key}": self.resolved.origins.get(f"{section}.{key}")
            or (self.spec.origins.get(key, "default") if section == "model" else "default")
            for section, table in self.tables().items()
            for key in table
        }

    def as_dict(self) -> dict[str, Any]:
        """JSON form: every section's values, each with the layer that set it."""
        origins = self.origins()
        return {
            "config": {
                section: {key: {"value": v, "origin": origins[f"{section}.{key}"]} for key, v in table.items()}
                for section, table in self.tables().items()
            },
            "certificate": self.spec.certificate.as_dict(),
            "flops_per_token": 3 * self.spec.flops_per_token(self.resolved.config.train.seq_len),
        }


def plan_run(layers: list[Layer], found: Registry) -> Plan:
    """Resolve configuration layers (weakest first), device-dependent defaults and the model's size.

    Raises:
        ConfigError: anything in the layers that cannot be used.
        BudgetTooSmall: the token budget does not hold one step.
    """
    asked = resolve(layers).config
    defaults = [CPU_DEFAULTS] if pick_device(asked.train.device).type == "cpu" else []
    if asked.data.path is None:
        corpus = str(default_corpus())
        defaults.append(Layer("default (embedded corpus)", {"data": {"path": corpus}}))
    defaults += optimizer_defaults(asked.optimizer, found)
    resolved = _with_absolute_paths(resolve([*defaults, *layers]))
    cfg = resolved.config
    if cfg.train.batch_size % cfg.train.grad_accum:
        raise ConfigError(
            f"train.grad_accum = {cfg.train.grad_accum} does not divide train.batch_size = {cfg.train.batch_size}"
        )
    if cfg.train.graph == "on" and pick_device(cfg.train.device).type != "cuda":
        raise ConfigError("train.graph = on needs a CUDA device: `-o train.graph=auto` uses a graph where it can")
    for name in cfg.log.trackers:
        found.load("trackers", name)
    rules_of(found, cfg.diagnostics.ignore)
    Budget.of(cfg.train)
    check(cfg)
    check_follows(cfg, found.load("optimizers", cfg.optimizer.name))
    return Plan(*matched(resolved, model_spec(cfg.model, found, resolved.origins)))


def optimizer_defaults(asked: OptimizerSection, found: Registry) -> list[Layer]:
    """The layer of values that an optimizer has where nothing sets them, such as its rate; none where it has no own."""
    own = getattr(found.load("optimizers", asked.name), "defaults", None)
    return [] if own is None else [Layer(f"default of {asked.name}", {"optimizer": own(asked)})]


def _with_absolute_paths(resolved: Resolved) -> Resolved:
    """A run must find its data again from any folder."""
    data = resolved.config.data
    try:
        paths = {key: str(Path(value).resolve()) for key, value in data.model_dump().items() if value is not None}
    except (OSError, RuntimeError, ValueError) as error:
        raise ConfigError(f"data.path: not a usable path: {error}") from error
    objective = resolved.config.objective
    if objective.collider_reference is not None:
        reference = str(Path(objective.collider_reference).resolve())
        objective = objective.model_copy(update={"collider_reference": reference})
    update = {"data": data.model_copy(update=paths), "objective": objective}
    return Resolved(resolved.config.model_copy(update=update), resolved.origins)


def start_run(plan: Plan, out: Path, found: Registry, observer: Observer, world: World | None = None) -> dict[str, Any]:
    """Train a planned run in the new folder `out`.

    Args:
        plan: from `plan_run`.
        out: the same on every rank; rank 0 writes it.
        found: the registry.
        observer: who watches.
        world: the ranks of the run, each of which calls this; None: this process alone.

    Returns:
        What result.json holds.

    Raises:
        RnnLabError: see `execute`; the folder then says how far it came.
    """
    clock, world = Clock(), world or World()
    cfg = plan.resolved.config
    check_ranks(cfg, world.size)
    split = open_split(str(cfg.data.path), cfg.data.val_path, seq_len=cfg.train.seq_len)
    check_same_run(world, plan.tables(), split, found)

    def create() -> None:
        RunDir.create(out)

    world.together(create)
    run = folder_of(out, world)
    world.together(run.lock)
    try:
        run.write_env(default_command())
        run.write_config(plan.tables(), plan.origins())
        return execute(plan, run, split, found, observer, clock, None, world=world)
    finally:
        run.unlock()


def folder_of(path: Path, world: World) -> RunDir:
    """An existing run's folder, which rank 0 writes."""
    return RunDir(path) if world.main else FollowedDir(path)


def build(plan: Plan, found: Registry) -> tuple[LM, torch.optim.Optimizer]:
    """Model and optimizer of a plan, initialised from its seed, on its device.

    The model is made on the CPU first, so that a seed gives the same weights on every device.
    """
    cfg = plan.resolved.config
    torch.manual_seed(cfg.train.seed)
    model = attach_heads(plan.spec.build().to(pick_device(cfg.train.device)), cfg.objective)
    return model, found.load("optimizers", cfg.optimizer.name)(model, cfg.optimizer)


def share(plan: Plan, found: Registry, world: World) -> tuple[Sharing, torch.optim.Optimizer]:
    """As `build`, of which each rank of `world` keeps what `[parallel] mode` gives it.

    Raises:
        ConfigError: the optimizer cannot work this way.
    """
    if world.size == 1:
        model, optimizer = build(plan, found)
        return Sharing(model, world), optimizer
    cfg = plan.resolved.config
    device = pick_device(cfg.train.device)
    torch.manual_seed(cfg.train.seed)
    sharing: Sharing
    if cfg.parallel.mode == "fsdp":
        from rnn_lab.parallel.sharded import Sharded  # DTensor takes seconds to import

        sharing = Sharded(attach_heads(plan.spec.build(), cfg.objective), world, device)
    else:
        sharing = Replicated(attach_heads(plan.spec.build().to(device), cfg.objective), world)
    return sharing, sharing.optimizer(found.load("optimizers", cfg.optimizer.name), cfg.optimizer)


def load_trained(path: Path, found: Registry, device: str, note: Any) -> tuple[LM, Plan, int]:
    """Model of a run at its newest intact checkpoint, with the weights meant for evaluation.

    Returns:
        The model in eval mode, the plan, and the checkpoint's step.

    Raises:
        ConfigError: the folder is no run or has no checkpoint yet.
    """
    run = RunDir.open(path)
    resolved = run.read_config()
    cfg = resolved.config.model_copy(update={"train": resolved.config.train.model_copy(update={"device": device})})
    plan = Plan(Resolved(cfg, resolved.origins), model_spec(cfg.model, found, must_reach=False))
    saved = ckpt.load_latest(run.checkpoints, note)
    if saved is None:
        raise ConfigError(f"{path} has no checkpoint yet: `rnn-lab resume {path}` trains it")
    model, optimizer = build(plan, found)
    model.load_state_dict(saved.tensors["model"])
    ckpt.restore_optimizer(optimizer, saved.tensors["optimizer"], saved.state["optimizer"])
    set_mode(optimizer, "eval")
    return detach_heads(model).eval(), plan, saved.step


def execute(
    plan: Plan, run: RunDir, split: Any, found: Registry, observer: Observer, clock: Clock,
    saved: ckpt.Checkpoint | None, begin: Callable[[], None] = lambda: None, world: World | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Train, validate, and write result.json whatever happens once `begin` was called."""
    world = world or World()
    cfg = plan.resolved.config
    trainer: Trainer | None = None
    trackers: list[Any] = []
    status, error_text, begun = "failed", None, saved is None
    final: dict[str, Any] = {}
    previous = _terminate_as_interrupt()
    try:
        sharing, optimizer = share(plan, found, world)
        if saved is None and isinstance(optimizer, RoutedOptimizer):
            for row in optimizer.routing():
                observer.note("routing: {} [{}], {:,} parameters: {} ({})".format(*row))
        dtype = pick_dtype(cfg.train.dtype, pick_device(cfg.train.device))
        progress = Progress()
        if saved is not None:
            progress = restore(
                saved, cfg=cfg, spec=plan.spec, run=run, split=split, sharing=sharing, optimizer=optimizer
            )  # fmt: skip
        for name in cfg.log.trackers if world.main else ():
            trackers.append(found.load("trackers", name)(run.path, _shown(plan), progress.step + 1))
        trainer = Trainer(
            cfg=cfg, spec=plan.spec, run=run, split=split, model=sharing.model, optimizer=optimizer, dtype=dtype,
            progress=progress, trackers=trackers, observer=observer, clock=clock,
            reference=load_reference(cfg, found, observer.note), sharing=sharing,
            rules=rules_of(found, cfg.diagnostics.ignore) if world.main else (),
        )  # fmt: skip
        begin()
        begun = True
        clock.switch("other")
        trainer.train()
        status = "ok" if trainer.stop_signal is None else "interrupted"
        if status == "ok":
            # Rank 0's: another knows no line of before this session, which may have had nothing to do but this.
            last = world.together(lambda: trainer.last_line)
            figures = trainer.validate() if last.get("val_loss") is None else last
            final = {key: figures[key] for key in ("val_loss", "val_bpb", "val_accuracy")}
    except KeyboardInterrupt:
        status = "interrupted"
    except Diverged as error:
        status, error_text = "diverged", str(error)
        raise
    except (RnnLabError, OSError) as error:
        error_text = str(error)
        raise
    except Exception as error:
        named = world.named(error)
        if named is not error:
            error_text = str(named)
            raise named from error
        error_text = f"{type(error).__name__}: {error}"
        if is_out_of_memory(error):
            status = "oom"
            if trainer is not None:
                told = f"memory ran out; needed at least: {needed(trainer.watch.window)}"
                trainer.watch.event("D-OOM", trainer.step, told, "error")
            raise OutOfMemory(_advice(cfg)) from error
        raise
    finally:
        if previous is not None:
            # Whoever starts ranks ends all when the first has ended: the others come to their end by themselves.
            signal.signal(signal.SIGTERM, previous if world.size == 1 else signal.SIG_IGN)
        result = result_of(
            plan.spec, plan.preset, cfg.train.seed, trainer, clock, status=status, error=error_text, final=final
        )  # fmt: skip
        if begun:
            run.write_result(result)
        if trainer is not None:
            trainer.close()
            if trainer.metrics is not None:
                trainer.metrics.close()
        for tracker in trackers:
            tracker.close(result)
    return result


def _shown(plan: Plan) -> RunConfig:
    """The configuration with every field of the model decided, for those who show it."""
    table = plan.spec.table()
    own = {key: table.pop(key) for key in ("name", "target", "depth", "norm") if key in table}
    return plan.resolved.config.model_copy(update={"model": ModelSection(**own, fields=table)})


def _terminate_as_interrupt() -> Any:
    """Let SIGTERM end the phases around training as Ctrl-C does; the handler before, None off the main thread."""
    if threading.current_thread() is not threading.main_thread():
        return None

    def interrupt(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    return signal.signal(signal.SIGTERM, interrupt)


def _advice(cfg: Any) -> str:
    """What to change when memory ran out."""
    train = cfg.train
    micro = train.batch_size // train.grad_accum
    smaller = (
        f"use --grad-accum {train.grad_accum * 2} (same batch in smaller pieces), or lower" if micro > 1 else "lower"
    )
    return f"out of memory with {micro} x {train.seq_len} bytes at once: {smaller} --seq-len, --batch-size or --target"
