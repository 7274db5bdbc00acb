"""What training a model takes in memory besides activations: per optimizer, predicted from shapes."""

from typing import Any

from torch import nn

from rnn_lab.config import OptimizerSection
from rnn_lab.optim.newton_schulz import flops
from rnn_lab.optim.plan import KINDS, Decision, decisions, settled
from rnn_lab.optim.routing import routing_table
from rnn_lab.optim.state_bytes import predicted

VARIANTS: tuple[tuple[str, str, dict[str, Any]], ...] = (
    ("AdamW", "adamw", {}),
    ("schedule-free AdamW", "schedulefree", {}),
    ("Muon", "muon", {}),
    ("8-bit Muon", "muon8bit", {}),
    ("8-bit Muon, 8-bit AdamW", "muon8bit", {"aux_8bit": True}),
    ("GaLore-AdamW", "galore_adamw", {}),
    ("GaLore-Muon", "galore_muon", {}),
    ("8-bit GaLore-Muon", "galore_muon", {"bits": 8}),
    ("8-bit GaLore-Muon, 8-bit AdamW", "galore_muon", {"bits": 8, "aux_8bit": True}),
)
"""Label, optimizer and what it sets on top of the section given."""


def memory_table(model: nn.Module, section: OptimizerSection) -> dict[str, Any]:
    """Bytes of weights, gradients and state of every variant, and of the optimizer that `section` names.

    Args:
        model: on any device, meta included.
        section: block size, rank and the like, which all variants share.

    Returns:
        `newton_schulz_flops` are those of one Muon step; `vs_muon` and `vs_adamw` are
        1 - bytes / bytes of Muon and of AdamW, both with fp32 state throughout;
        `whole_share` is the share of the matrices' values that GaLore does not project. State of an optimizer of a
        plugin is null.

    """
    plain = section.model_copy(
        update={"bits": None, "aux_8bit": False, "galore_proj_dtype": None, "galore_debias": "none"}
    )
    baseline = {name: _total(model, name, plain) for name in ("muon", "adamw")}
    rows = []
    for label, name, changes in VARIANTS:
        cfg = plain.model_copy(update=changes)
        by_category = predicted(model, name, cfg)
        rows.append({"label": label, "optimizer": name, **_row(by_category, baseline)})
        if name.startswith("galore"):
            rows[-1]["whole_share"] = _whole_share(model, name, cfg)
    trained = [p for p in model.parameters() if p.requires_grad]
    decided = _decided(model, section)
    matrices = sum(
        each.route.numel for each in _decided(model, plain.model_copy(update={"name": "muon"})) if each.ranks
    )
    total = sum(p.numel() for p in model.parameters())
    try:
        own = _row(predicted(model, section.name, section), baseline)
    except KeyError:
        own = None
    return {
        "params": total,
        "matrix_params": matrices,
        "aux_params": total - matrices,
        "newton_schulz_flops": sum(
            piece.shape[0] * flops(*piece.shape[1:], plain.ns_steps)
            for each in _decided(model, plain.model_copy(update={"name": "muon"}))
            if each.ranks
            for piece in each.route.pieces
        ),
        "weight_bytes": sum(p.numel() * p.element_size() for p in model.parameters()),
        "gradient_bytes": sum(p.numel() * p.element_size() for p in trained),
        "configured": {"optimizer": section.name, "state": own},
        "variants": rows,
        "routing": [
            dict(zip(("name", "shape", "params", "rule", "reason"), row, strict=True))
            for row in routing_table((each.route, each.rule, each.reason) for each in decided)
        ],
    }


def _decided(model: nn.Module, section: OptimizerSection) -> list[Decision]:
    """Decisions of the optimizers that have any."""
    kind = next((each for each in KINDS if each == section.name), None)
    return [] if kind is None else list(decisions(model, kind, settled(kind, section)).values())


def _total(model: nn.Module, name: str, section: OptimizerSection) -> int:
    return sum(predicted(model, name, section).values())


def _row(by_category: dict[str, int], baseline: dict[str, int]) -> dict[str, Any]:
    total = sum(by_category.values())
    return {
        "bytes": total,
        "by_category": by_category,
        "vs_muon": 1 - total / baseline["muon"],
        "vs_adamw": 1 - total / baseline["adamw"],
    }


def _whole_share(model: nn.Module, name: str, section: OptimizerSection) -> float:
    muon = _decided(model, section.model_copy(update={"name": "muon", "bits": None}))
    every = sum(each.route.numel for each in muon if each.ranks)
    projected = sum(
        piece.count * piece.rows * piece.columns
        for each in _decided(model, section.model_copy(update={"name": name}))
        for piece, rank in zip(each.route.pieces, each.ranks, strict=False)
        if rank is not None
    )
    return 1 - projected / every if every else 1.0
