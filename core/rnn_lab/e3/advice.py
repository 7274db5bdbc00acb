"""What only a sized model shows to be unwise about a configuration."""

import os

from rnn_lab.config import RunConfig
from rnn_lab.modelspec import ModelSpec
from rnn_lab.train.device import pick_device, pick_dtype

SAVED_PER_BLOCK = 12
"""Tensors of the residual stream's size that a block keeps for backward: a rough figure for families of this lab."""


def advice(cfg: RunConfig, spec: ModelSpec) -> list[str]:
    """Sentences for a person; empty where nothing stands out."""
    found = []
    dim, rank = int(spec.layer_cfg.dim), cfg.optimizer.galore_rank
    if cfg.optimizer.name.startswith("galore") and rank is not None and 2 * rank >= dim:
        found.append(
            f"galore_rank = {rank} is half of the width {dim} or more: it saves little or nothing; auto is {dim // 4}"
        )
    least = cfg.objective.collider_min_dim
    if cfg.objective.use_collider and dim < least:
        found.append(
            f"use_collider: Collider will be off, because the width {dim} is below collider_min_dim = {least}: "
            "collider_min_dim = 0 filters at any width"
        )
    memory = _memory(cfg)
    if memory is not None and (needed := needed_bytes(cfg, spec)) > memory:
        found.append(
            f"{cfg.train.batch_size // cfg.train.grad_accum} x {cfg.train.seq_len} bytes at once may take about "
            f"{needed / 1e9:.0f} GB for activations, and the device has {memory / 1e9:.0f} GB: lower batch_size, raise "
            "grad_accum_steps, or set gradient_checkpointing = true"
        )
    return found


def needed_bytes(cfg: RunConfig, spec: ModelSpec) -> int:
    """Bytes that activations of one micro-batch take, roughly: L B T a d values, or L B T d with checkpointing."""
    micro = cfg.train.batch_size // cfg.train.grad_accum
    stream = micro * cfg.train.seq_len * int(spec.layer_cfg.dim)
    kept = SAVED_PER_BLOCK * spec.lm_cfg.depth
    if cfg.train.checkpoint_every is not None:
        kept = spec.lm_cfg.depth + SAVED_PER_BLOCK * cfg.train.checkpoint_every
    return stream * kept * pick_dtype(cfg.train.dtype, pick_device(cfg.train.device)).itemsize


def _memory(cfg: RunConfig) -> int | None:
    """Bytes of the device that the run would use."""
    import torch

    device = pick_device(cfg.train.device)
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError):
        return None
