"""What sharing a run costs by its shapes: bytes that every GPU sends in a step, bytes that it holds, seconds exposed.

N values of 4 bytes on W GPUs, A micro-batches a step, in rings, so that a collective sends (W - 1) / W of its bytes:

    ddp    one all-reduce of the gradients:                        2 * 4 N (W - 1) / W
    fsdp   A times two all-gathers and a reduce-scatter:         3 A * 4 N (W - 1) / W
           where matrices need owners, a gather and a scatter:     2 * 4 N (W - 1) / W^2
           where a layer has power iterations, its all-gather:       4 N_p (W - 1) / W

These depend on the size alone, whatever the family; what differs between families is how long a step computes
meanwhile (docs/scale.md).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from rnn_lab.config import OptimizerSection
from rnn_lab.lm import LM, preparable
from rnn_lab.optim.state_bytes import predicted
from rnn_lab.spectral import PowerIteration

BUCKET = 25 * 2**20
"""Bytes of gradients that DistributedDataParallel sends at once."""
BACKWARD = 2 / 3
"""Share of a step's computation that is backward, by FLOPs."""
GATHERED = 5
"""Whole blocks that FSDP2 has at a time: weights at work, weights fetched ahead, gradients, and a buffer of either."""
ELEMENTWISE = ("schedulefree", "adamw")
"""Optimizers of the core that work on cuts: see train.optimizers.elementwise."""


@dataclass(frozen=True)
class Costs:
    """Of one GPU.

    Attributes:
        mode: `ddp` or `fsdp`.
        ranks: GPUs of the run.
        sent: bytes that it sends in a step, by collective.
        held: bytes that it holds besides activations, by purpose; None for state of an optimizer of a plugin.
        params: values of the model.

    """

    mode: str
    ranks: int
    sent: Mapping[str, int]
    held: Mapping[str, int | None]
    params: int

    def as_dict(self) -> dict[str, Any]:
        """JSON form."""
        known = [n for n in self.held.values() if n is not None]
        return {
            "mode": self.mode, "ranks": self.ranks, "sent": dict(self.sent), "sent_bytes": sum(self.sent.values()),
            "held": dict(self.held), "held_bytes": sum(known) if len(known) == len(self.held) else None,
        }  # fmt: skip

    def exposed(self, seconds: float, bytes_per_s: float) -> float:
        """Seconds of a step in which a GPU waits for others.

        Args:
            seconds: that the step computes, alone on its GPU with its share of the batch.
            bytes_per_s: that a GPU sends to its neighbours.

        """
        if self.ranks == 1:
            return 0.0
        wire = {name: n / bytes_per_s for name, n in self.sent.items()}
        if self.mode == "ddp":
            # Buckets leave while backward runs; the last one is full when it has ended.
            last = min(2.0 * BUCKET * (self.ranks - 1) / self.ranks / bytes_per_s, wire["all-reduce"])
            return max(last, wire["all-reduce"] - BACKWARD * seconds)
        forward = max(0.0, wire["all-gather, forward"] - (1 - BACKWARD) * seconds)
        back = wire["all-gather, backward"] + wire["reduce-scatter"]
        rest = sum(t for name, t in wire.items() if name in ("owners", "power iterations"))
        return forward + max(0.0, back - BACKWARD * seconds) + rest

    def speedup(self, seconds: float, bytes_per_s: float) -> float:
        """Tokens per second of all GPUs over those of one with its share of the batch."""
        return self.ranks * seconds / (seconds + self.exposed(seconds, bytes_per_s))


def costs(model: LM, optimizer: OptimizerSection, mode: str, ranks: int, grad_accum: int = 1) -> Costs:
    """What a model costs on so many GPUs.

    Args:
        model: whole, on any device, meta included.
        optimizer: how it is trained.
        mode: `ddp` or `fsdp`.
        ranks: GPUs.
        grad_accum: micro-batches a step.

    """
    parameters = list(model.parameters())
    n = sum(p.numel() for p in parameters)
    ring = (ranks - 1) / ranks
    state = _state(model, optimizer)
    if mode == "ddp":
        sent = {"all-reduce": round(2 * 4 * n * ring)}
        return Costs(mode, ranks, sent, {"weights": 4 * n, "gradients": 4 * n, "optimizer state": state}, n)
    each = round(grad_accum * 4 * n * ring)
    sent = {"all-gather, forward": each, "all-gather, backward": each, "reduce-scatter": each}
    if optimizer.name not in ELEMENTWISE:
        sent["owners"] = round(2 * 4 * n * ring / ranks)
    prepared = sum(_values(layer) for layer in model.layers if _iterates(layer))
    if prepared:
        sent["power iterations"] = round(4 * prepared * ring)
    cut = sum(4 * _cut(p.shape, ranks) for p in parameters)
    held: dict[str, int | None] = {
        "weights": cut, "gradients": cut, "optimizer state": None if state is None else -(-state // ranks),
        "gathered blocks": GATHERED * 4 * max(_values(layer) for layer in model.layers),
    }  # fmt: skip
    if optimizer.name not in ELEMENTWISE:
        # An owner has its parameters and their gradients whole, besides the cuts.
        held["owned"] = 2 * -(-4 * n // ranks)
    return Costs(mode, ranks, sent, held, n)


def _state(model: LM, optimizer: OptimizerSection) -> int | None:
    try:
        return sum(predicted(model, optimizer.name, optimizer).values())
    except KeyError:
        return None


def _cut(shape: torch.Size, ranks: int) -> int:
    """Values of the largest cut along the first axis."""
    whole = shape.numel()
    return whole if not shape else -(-shape[0] // ranks) * (whole // max(1, shape[0]))


def _values(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def _iterates(layer: nn.Module) -> bool:
    return any(isinstance(part, PowerIteration) for module in preparable(layer) for part in module.modules())
