"""How far a run has come: what a checkpoint holds besides weights, and taking a run up again from there."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from rnn_lab.config import OptimizerSection, RunConfig, TrainSection
from rnn_lab.data.chain import OffsetChain, fingerprint
from rnn_lab.data.corpus import Split
from rnn_lab.errors import CheckpointError
from rnn_lab.layer import State
from rnn_lab.modelspec import ModelSpec
from rnn_lab.parallel.sharing import Sharing
from rnn_lab.train import checkpoint as ckpt
from rnn_lab.train.rundir import RunDir

_FREE = {"train.steps", "train.tokens", "train.minutes", "train.device", "train.graph", "model.target"}


@dataclass(frozen=True)
class Progress:
    """Where a session begins; the defaults are a new run's.

    Attributes:
        step: optimizer steps done.
        timed_steps: those of them that the training clock counts.
        chain: data consumed; None before the first step.
        carry: states to carry on.
        found: what diagnostics had found; see diagnostics.watch.
        rollbacks: rows of the roll-backs that there were.

    """

    step: int = 0
    timed_steps: int = 0
    chain: OffsetChain | None = None
    carry: list[State] | None = None
    found: dict[str, Any] | None = None
    rollbacks: tuple[dict[str, Any], ...] = ()


def identity(cfg: RunConfig, spec: ModelSpec) -> dict[str, Any]:
    """What must not change within a run: the model, the batches, the update rule.

    Of sections younger than the first runs only what is not at its default, so that those runs go on.
    """
    tables = cfg.model_dump(mode="json") | {"model": spec.table()}
    free = _FREE
    if cfg.schedule.type in ("cosine", "wsd"):  # whose rate follows from where the run ends
        free = _FREE - {"train.steps", "train.tokens", "train.minutes"}
    old = {
        f"{section}.{key}": value
        for section in ("model", "train", "optimizer")
        for key, value in tables[section].items()
        if f"{section}.{key}" not in free and value is not None
    }
    younger = cfg.model_dump(mode="json", exclude_defaults=True, include={"objective", "schedule"})
    return old | {f"{section}.{key}": value for section, table in younger.items() for key, value in table.items()}


def _defaults() -> dict[str, Any]:
    """Identity of a configuration in which nothing but the model is set."""
    tables = {"train": TrainSection().model_dump(mode="json"), "optimizer": OptimizerSection().model_dump(mode="json")}
    return {
        f"{section}.{key}": value
        for section, table in tables.items()
        for key, value in table.items()
        if f"{section}.{key}" not in _FREE and value is not None
    }


def restore(
    saved: ckpt.Checkpoint, *, cfg: RunConfig, spec: ModelSpec, run: RunDir, split: Split, sharing: Sharing,
    optimizer: torch.optim.Optimizer,
) -> Progress:  # fmt: skip
    """Load a checkpoint into a fresh model and optimizer, or a rank's part of it, and torch's random state.

    Raises:
        CheckpointError: it belongs to another model or other data.

    """
    # A run that was begun before a key existed was trained as that key's default has it.
    before, now = {**_defaults(), **saved.state["identity"]}, identity(cfg, spec)
    changed = sorted(key for key in before.keys() | now.keys() if before.get(key) != now.get(key))
    if changed:
        raise CheckpointError(
            f"{run.config} says {changed[0]} = {now.get(changed[0])}, the run was trained with "
            f"{before.get(changed[0])}: set it back, or start a new run (changed: {', '.join(changed)})"
        )
    if saved.state["data_fingerprint"] != fingerprint(split.train):
        raise CheckpointError(
            f"{split.train.file.path} is not the data this run began with (fingerprint differs): "
            "restore the file, or start a new run"
        )
    try:
        states = sharing.restore(saved, optimizer)
    except (RuntimeError, KeyError, ValueError) as error:
        raise CheckpointError(f"the checkpoint does not fit this model: {error}") from error
    carry = _unflatten_states(states, sharing.model.embedding.weight.device)
    chain, rollbacks = OffsetChain(saved.state["data_chain"]), tuple(saved.state.get("rollbacks", ()))
    return Progress(saved.step, saved.state["timed_steps"], chain, carry, saved.state.get("diagnostics"), rollbacks)


def flatten_states(states: list[State] | None) -> dict[str, Tensor]:
    """States of all layers under names that a file can hold."""
    return {f"{i}.{name}": t for i, state in enumerate(states or []) for name, t in state.items()}


def _unflatten_states(flat: dict[str, Tensor], device: torch.device) -> list[State] | None:
    if not flat:
        return None
    depth = 1 + max(int(key.split(".")[0]) for key in flat)
    states: list[State] = [{} for _ in range(depth)]
    for key, tensor in flat.items():
        index, _, name = key.partition(".")
        states[int(index)][name] = tensor.to(device)
    return states
