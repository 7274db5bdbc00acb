"""Going on with a run from its newest intact checkpoint."""

from pathlib import Path
from typing import Any

from rnn_lab.config import Layer, Resolved, resolve
from rnn_lab.data.corpus import open_split
from rnn_lab.errors import CheckpointError, ConfigError
from rnn_lab.modelspec import model_spec
from rnn_lab.parallel.agreement import check_same_run
from rnn_lab.parallel.storage import latest
from rnn_lab.parallel.world import World
from rnn_lab.registry import Registry
from rnn_lab.train.budget import Budget
from rnn_lab.train.clock import Clock
from rnn_lab.train.loop import Observer
from rnn_lab.train.run import Plan, execute, folder_of
from rnn_lab.train.rundir import RunDir
from rnn_lab.train.setup import check_ranks


def resume_run(
    path: Path, extend: dict[str, Any], found: Registry, observer: Observer, world: World | None = None
) -> dict[str, Any]:
    """Go on with a run from its newest intact checkpoint, or from its first step if it has none yet.

    It may go on with any number of ranks, whatever number it had before.

    Args:
        path: the run's folder.
        extend: new limits for `train.steps`, `train.tokens` or `train.minutes`.
        found: the registry.
        observer: who watches.
        world: the ranks that go on, each of which calls this; None: this process alone.

    Raises:
        ConfigError: not a run, or it is finished and nothing extends it.
        CheckpointError: no checkpoint is intact, or the data changed.
    """
    world = world or World()
    RunDir.open(path)
    run = folder_of(path, world)
    world.together(run.lock)
    try:
        resolved = run.read_config()
        saved = latest(world, run.checkpoints, observer.note)
        if saved is None:
            _no_checkpoint(run, observer)
        clock = Clock(saved.state["clock"] if saved else None)
        if extend:
            resolved = _extended(resolved, extend)
        plan = Plan(resolved, model_spec(resolved.config.model, found, must_reach=False))
        done, seconds = (saved.step, saved.state["clock"]["train"]) if saved else (0, 0.0)
        finished = (run.read_result() or {}).get("status") == "ok"
        if finished and not Budget.of(resolved.config.train).allows(done, seconds):
            raise ConfigError(
                f"{path} has spent its budget at step {done}: extend it with `rnn-lab resume {path} --steps N`, "
                "--tokens N or --minutes M"
            )
        cfg = resolved.config
        check_ranks(cfg, world.size)
        split = open_split(str(cfg.data.path), cfg.data.val_path, seq_len=cfg.train.seq_len)
        check_same_run(world, plan.tables(), split, found)

        def begin() -> None:
            """Only once everything is in place does the old end of the run give way."""
            run.write_config(plan.tables(), plan.origins())
            if world.main:
                run.result.unlink(missing_ok=True)

        return execute(plan, run, split, found, observer, clock, saved, begin, world)
    finally:
        run.unlock()


def _no_checkpoint(run: RunDir, observer: Observer) -> None:
    """Begin again only if the run never had a checkpoint.

    Raises:
        CheckpointError: it ended once, so it had one.
    """
    if run.checkpoints.exists() and not run.checkpoints.is_dir():
        raise CheckpointError(f"{run.checkpoints} is not a folder")
    steps = (run.read_result() or {}).get("steps")
    if steps:
        raise CheckpointError(
            f"{run.checkpoints} is missing, though this run ended after {steps} steps: restore it from a copy, or "
            f"remove {run.result} to train again from the first step"
        )
    observer.note("this run has no checkpoint yet: it starts from its first step")


def _extended(resolved: Resolved, extend: dict[str, Any]) -> Resolved:
    """The same configuration under new limits; limits that are not named anew no longer hold."""
    cfg = resolved.config
    limits = {"steps": None, "tokens": None, "minutes": None, **extend}
    tables = cfg.model_dump(mode="json", exclude_none=True)
    tables["model"] |= tables["model"].pop("fields")
    tables["train"] = {k: v for k, v in {**tables["train"], **limits}.items() if v is not None}
    changed = resolve([Layer("config.toml", tables)])
    origins = {**resolved.origins, **{f"train.{key}": "resume" for key in extend}}
    return Resolved(changed.config, origins)
