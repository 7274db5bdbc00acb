"""What a run's `[objective]`, `[schedule]` and `[loader]` ask for, made ready: pieces that most runs do without."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from rnn_lab.config import Resolved, RunConfig
from rnn_lab.data.ahead import ReadAhead
from rnn_lab.data.batches import ContiguousStreams, RandomWindows, Sampler
from rnn_lab.data.corpus import Region
from rnn_lab.errors import ConfigError
from rnn_lab.lm import LM
from rnn_lab.modelspec import ModelSpec
from rnn_lab.parallel.sharing import Sharing
from rnn_lab.parallel.world import World
from rnn_lab.sections import ObjectiveSection
from rnn_lab.sizing import certify
from rnn_lab.train.filter_check import backward_seconds
from rnn_lab.train.objective import Objective
from rnn_lab.train.schedule import Schedule, check_schedule, filter_start
from rnn_lab.train.step import TrainStep

MUCH_ENTROPY = 0.05
"""Weight of the entropy above which a person is told."""


def check(cfg: RunConfig) -> None:
    """Refuse what these sections and the rest of a configuration cannot be together.

    Raises:
        ConfigError: they contradict each other.

    """
    check_schedule(cfg)
    if cfg.objective.use_collider:
        filter_start(cfg)
    if cfg.optimizer.galore_layerwise:
        _check_layerwise(cfg)
    if cfg.train.checkpoint_chunk is not None and cfg.train.checkpoint_every is None:
        raise ConfigError("train.checkpoint_chunk needs train.checkpoint_every: how many blocks are computed again")
    if cfg.train.chunks > 1:
        _check_wavefront(cfg)


def _check_wavefront(cfg: RunConfig) -> None:
    """Refuse what has its own way through the layers, and chunks without a byte."""
    train = cfg.train
    if train.checkpoint_every is not None:
        raise ConfigError(
            "train.wavefront and train.checkpoint_every exclude each other: one lets chunks of all layers be there at "
            "once, the other one group of layers at a time. Leave one of them out"
        )
    if train.graph == "off":
        raise ConfigError(
            "train.wavefront needs the step as one CUDA graph, because launches from Python leave nothing to overlap: "
            "leave out train.graph = off, or train.wavefront"
        )
    if train.chunks > train.seq_len:
        raise ConfigError(
            f"train.wavefront = {train.wavefront} chunks of train.seq_len = {train.seq_len} bytes would leave some "
            "without any: take fewer"
        )


def check_ranks(cfg: RunConfig, ranks: int) -> None:
    """Refuse what so many processes cannot do together.

    Raises:
        ConfigError: they cannot share the batch evenly, or an option knows one process only.

    """
    train = cfg.train
    if ranks > 1 and cfg.optimizer.galore_layerwise:
        raise ConfigError(
            "optimizer.galore_layerwise updates a parameter before its gradient is averaged over the ranks: leave it "
            "out (parallel.mode = fsdp saves that memory and more), or train on one GPU"
        )
    if ranks > 1 and cfg.parallel.mode == "fsdp" and train.graph == "on":
        raise ConfigError(
            "train.graph = on and parallel.mode = fsdp exclude each other: FSDP2 allocates and frees parameters around "
            "every block, which a graph cannot hold. Use parallel.mode = ddp, or train.graph = auto"
        )
    if ranks > 1 and cfg.parallel.mode == "fsdp" and train.chunks > 1:
        raise ConfigError(
            "train.wavefront and parallel.mode = fsdp exclude each other: FSDP2 gathers a block's parameters for one "
            "pass, and chunks of time pass through every block again and again. Use parallel.mode = ddp"
        )
    if train.batch_size % (ranks * train.grad_accum):
        raise ConfigError(
            f"train.batch_size = {train.batch_size} is the batch of one step over all GPUs: {ranks} of them with "
            f"train.grad_accum = {train.grad_accum} need a multiple of {ranks * train.grad_accum}"
        )


def _check_layerwise(cfg: RunConfig) -> None:
    """Refuse what needs all gradients at once."""
    train = cfg.train
    if train.clip or train.grad_accum > 1:
        raise ConfigError(
            "optimizer.galore_layerwise updates each parameter as soon as its gradient is there, so that neither a "
            "clip by the norm of all gradients nor accumulation is possible: set train.clip = 0 and "
            f"train.grad_accum = 1 (they are {train.clip:g} and {train.grad_accum})"
        )
    if train.on_nonfinite == "rollback":
        raise ConfigError(
            "optimizer.galore_layerwise cannot leave out a step whose gradient turns out not to be finite after a part "
            "of it was applied: set train.on_nonfinite = stop"
        )


def matched(resolved: Resolved, spec: ModelSpec) -> tuple[Resolved, ModelSpec]:
    """The model with the trunk that leaves room for the heads' blocks, where `mtp_match_params` asks for that.

    The configuration then says what the trunk is and asks no more, so that it builds the same model again.

    Raises:
        ConfigError: the trunk has no layer to spare.

    """
    objective = resolved.config.objective
    if not (objective.use_mtp and objective.mtp_match_params):
        return resolved, spec
    depth = spec.lm_cfg.depth - (objective.horizons - 1)
    if depth < 1:
        raise ConfigError(
            f"objective.mtp_match_params: a trunk of {spec.lm_cfg.depth} layers has none to spare for "
            f"{objective.horizons - 1} heads: lower mtp_n_tokens, or raise model.depth"
        )
    lm_cfg = spec.lm_cfg.model_copy(update={"depth": depth})
    certificate = certify(spec.layer_cls, spec.layer_cfg, lm_cfg, None)
    config = resolved.config.model_copy(
        update={
            "model": resolved.config.model.model_copy(update={"depth": depth, "target": None}),
            "objective": objective.model_copy(update={"mtp_match_params": False}),
        }
    )
    origins = {**resolved.origins, "model.depth": "objective.mtp_match_params"}
    return Resolved(config, origins), replace(spec, lm_cfg=lm_cfg, certificate=certificate)


def effective(cfg: RunConfig, dim: int, note: Callable[[str], None]) -> ObjectiveSection:
    """`[objective]` for a model of width `dim`: without Collider where that is narrower than it gains by."""
    objective = cfg.objective
    if objective.use_collider and dim < objective.collider_min_dim:
        note(
            f"Collider is off: dim {dim} is below objective.collider_min_dim = {objective.collider_min_dim}, where "
            "gathering rows costs more than it saves. `-o objective.collider_min_dim=0` filters all the same"
        )
        return objective.model_copy(update={"use_collider": False})
    return objective


def make_step(
    cfg: RunConfig, model: LM, optimizer: torch.optim.Optimizer, dtype: torch.dtype, reference: LM | None,
    note: Callable[[str], None], sharing: Sharing | None = None,
) -> TrainStep:  # fmt: skip
    """The step of a run.

    Raises:
        ConfigError: see TrainStep and Schedule.

    """
    section = effective(cfg, int(model.layer_cfg.dim), note)
    if section.entropy_weight > MUCH_ENTROPY:
        note(f"objective.entropy_weight = {section.entropy_weight:g} costs loss; {MUCH_ENTROPY:g} is much already")
    objective = None if section.plain else Objective(section, cfg.train.seed, reference)
    schedule = None if cfg.schedule.type == "none" else Schedule(cfg.schedule, cfg.train)
    start = filter_start(cfg) if section.use_collider else 0
    step = TrainStep(model, optimizer, cfg.train, dtype, objective, schedule, start, sharing)
    if objective is not None and objective.filters and section.collider_mode == "topk":
        dim, device = int(model.layer_cfg.dim), model.embedding.weight.device
        shape = (step.rows // cfg.train.grad_accum, cfg.train.seq_len)
        dense, filtered = backward_seconds(dim, shape, section.collider_sparsity, dtype, device)
        step.backward_seconds = dense, filtered
        note(
            f"Collider: backward of one {dim} x {dim} product over {shape[0]} x {shape[1]} positions takes "
            f"{filtered * 1e3:.3g} ms filtered, {dense * 1e3:.3g} ms dense"
        )
    return step


def make_sampler(cfg: RunConfig, region: Region, world: World | None = None) -> Sampler:
    """The batches of a run, or a rank's rows of them; `close` it where it has that."""
    train = cfg.train
    kind = ContiguousStreams if train.carry_state else RandomWindows
    rows = slice(None) if world is None else world.rows(train.batch_size)
    sampler = kind(region, train.seed, train.batch_size, train.seq_len, cfg.objective.horizons, rows)
    if not cfg.loader.workers:
        return sampler
    return ReadAhead(sampler, cfg.loader.workers, cfg.loader.prefetch)


def load_reference(cfg: RunConfig, found: Any, note: Callable[[str], None]) -> LM | None:
    """The model that the scorer `excess` compares with, frozen, or None.

    Raises:
        ConfigError: it is no run, or has no checkpoint yet.

    """
    from rnn_lab.train.run import load_trained  # which imports the loop that imports this

    path = cfg.objective.collider_reference
    if not cfg.objective.use_collider or path is None:
        return None
    with torch.random.fork_rng():
        model, _, _ = load_trained(Path(path), found, cfg.train.device, note)
    model.requires_grad_(False)
    return model
