"""Bytes of optimizer state: measured tensor by tensor, and predicted from shapes; the two are equal."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from rnn_lab.config import OptimizerSection
from rnn_lab.optim.adamw import FIRST, SECOND
from rnn_lab.optim.gum import is_full
from rnn_lab.optim.plan import KINDS, Decision, codec_of, decisions, settled
from rnn_lab.optim.quantise import MIN_NUMEL, Blockwise

AUX = "auxiliary"
"""Category of AdamW's state for what is no matrix."""


def measured(optimizer: torch.optim.Optimizer) -> dict[str, int]:
    """Bytes of every tensor that `optimizer.state` reaches, by category; what two names share counts once."""
    found: dict[str, int] = {}
    seen: set[tuple[int, int, torch.dtype]] = set()
    for entries in optimizer.state.values():
        for name, tensor in _tensors("", entries):
            place = (tensor.data_ptr(), tensor.numel(), tensor.dtype)
            if tensor.numel() and place not in seen:
                seen.add(place)
                category = category_of(name)
                found[category] = found.get(category, 0) + tensor.numel() * tensor.element_size()
    return found


def _tensors(name: str, value: object) -> list[tuple[str, Tensor]]:
    """Tensors within a value: containers, projectors and tensor subclasses included."""
    if isinstance(value, Tensor):
        parts = getattr(value, "__tensor_flatten__", None)
        if parts is None:
            return [(name, value)]
        return [pair for inner in parts()[0] for pair in _tensors(f"{name}.{inner}", getattr(value, inner))]
    if isinstance(value, Mapping):
        return [pair for key, inner in value.items() for pair in _tensors(f"{name}.{key}".strip("."), inner)]
    if isinstance(value, list | tuple):
        return [pair for i, inner in enumerate(value) for pair in _tensors(f"{name}.{i}", inner)]
    fields = getattr(value, "__dict__", None)
    return [] if fields is None else _tensors(name, dict(fields))


def category_of(name: str) -> str:
    """What a tensor of an optimizer's state is, by its name."""
    slot, dot, kind = name.partition(".")
    if not (dot and slot.isdigit()):
        return AUX
    return {
        "momentum": "momentum", "codes": "momentum", "scales": "scales", "U": "subspaces", "second": "second moments",
    }[kind]  # fmt: skip


def predicted(model: nn.Module, name: str, cfg: OptimizerSection, taken: int = 0) -> dict[str, int]:
    """Bytes of state by category, from shapes alone.

    Args:
        model: on any device, meta included.
        name: `muon`, `muon8bit`, `galore_muon`, `galore_adamw`, `adamw` or `schedulefree`.
        cfg: settings.
        taken: steps done; only `gum` has periods of different sizes.

    Raises:
        KeyError: another optimizer, whose state is not known before its first step.

    """
    trained = [p for p in model.parameters() if p.requires_grad]
    if name in ("adamw", "schedulefree"):
        # Two moments, or one and the sequence z; AdamW counts its steps per tensor, in fp32.
        counters = 4 * len(trained) if name == "adamw" else 0
        return {AUX: sum(2 * p.numel() * p.element_size() for p in trained) + counters}
    kind = next((each for each in KINDS if each == name), None)
    if kind is None:
        raise KeyError(name)
    cfg = settled(kind, cfg)
    found: dict[str, int] = {}
    sizes = {each: parameter.element_size() for each, parameter in model.named_parameters()}
    for index, (each, decision) in enumerate(decisions(model, kind, cfg).items()):
        own = _aux_bytes(decision, cfg, sizes[each]) if decision.is_aux else {}
        for piece, rank in zip(decision.route.pieces, decision.ranks, strict=False):
            wide = max(4, sizes[each])
            _add(own, _piece_bytes(piece.shape, rank, name, cfg, wide, _full(cfg, index, taken)))
        _add(found, own)
    if cfg.aux_8bit and cfg.aux_library == "bitsandbytes":
        _add(found, {AUX: _shared_maps(model, kind, cfg)})
    return {category: n for category, n in found.items() if n}


def _full(cfg: OptimizerSection, index: int, taken: int) -> bool:
    return cfg.galore_debias == "gum" and is_full(index, taken, cfg.galore_update_freq, cfg.galore_gum_share)


def _piece_bytes(
    shape: tuple[int, int, int], rank: int | None, name: str, cfg: OptimizerSection, wide: int, full: bool
) -> dict[str, int]:
    K, m, n = shape
    codec = codec_of(cfg)
    if rank is None:
        return _momentum_bytes(K, m * n, codec, wide)
    found = _momentum_bytes(K, (m if full else rank) * n, codec, wide)
    found["subspaces"] = K * m * rank * (2 if cfg.galore_proj_dtype == "bf16" else wide)
    if name == "galore_adamw":
        found["second moments"] = K * rank * n * wide
    return found


def _momentum_bytes(K: int, numel: int, codec: Blockwise | None, wide: int) -> dict[str, int]:
    if codec is None or numel < MIN_NUMEL:
        return {"momentum": K * numel * wide}
    blocks = codec.blocks(numel)
    return {"momentum": K * blocks * codec.block, "scales": K * blocks * 4}


def _aux_bytes(decision: Decision, cfg: OptimizerSection, size: int) -> dict[str, int]:
    numel = decision.route.numel
    if not cfg.aux_8bit or numel < MIN_NUMEL:
        # bitsandbytes keeps its moments in fp32 whatever the parameter is.
        library = cfg.aux_8bit and cfg.aux_library == "bitsandbytes"
        return {AUX: 2 * numel * (4 if library else size)}
    if cfg.aux_library == "bitsandbytes":
        return {AUX: 2 * (numel + 4 * FIRST.blocks(numel))}
    return {AUX: FIRST.nbytes(numel) + SECOND.nbytes(numel)}


def _shared_maps(model: nn.Module, kind: Any, cfg: OptimizerSection) -> int:
    """The two maps of 256 codes that bitsandbytes shares among the tensors of a group."""
    coded = {
        decision.route.name: len(decision.route.shape) >= 2
        for decision in decisions(model, kind, cfg).values()
        if decision.is_aux and decision.route.numel >= MIN_NUMEL
    }
    groups = len(set(coded.values())) if cfg.decay == "matrices" and cfg.weight_decay else min(1, len(coded))
    return groups * 2 * 256 * 4


def _add(into: dict[str, int], more: Mapping[str, int]) -> None:
    for category, n in more.items():
        into[category] = into.get(category, 0) + n
