"""Validation: the same windows for every model, with the weights that the optimizer would hand over."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from rnn_lab.data.batches import eval_windows, gather
from rnn_lab.data.corpus import Region
from rnn_lab.kernels.fused.cross_entropy import CROSS_ENTROPY
from rnn_lab.lm import LM
from rnn_lab.parallel.sharing import Sharing
from rnn_lab.train.device import autocast
from rnn_lab.train.optimizers import set_mode

ROWS = 16
"""Sequences whose entropy is computed at once."""


@contextmanager
def averaged_weights(model: LM, optimizer: torch.optim.Optimizer) -> Iterator[None]:
    """The optimizer's evaluation weights inside the block; the training weights after it, to the last bit.

    An averaging optimizer maps one to the other by interpolation, which does not round-trip exactly, so the
    training weights are kept aside: validating more often must not change a run.
    """
    if not hasattr(optimizer, "eval"):
        yield
        return
    kept = [p.detach().clone() for p in model.parameters()]
    set_mode(optimizer, "eval")
    try:
        yield
    finally:
        set_mode(optimizer, "train")
        with torch.no_grad():
            for parameter, value in zip(model.parameters(), kept, strict=True):
                parameter.copy_(value)


@dataclass(frozen=True)
class Evaluation:
    """Means over all positions: loss in nats, share of bytes that are the likeliest, entropy of the predictions."""

    loss: float
    accuracy: float
    entropy: float


@torch.no_grad()
def evaluate(
    model: LM, region: Region, *, seq_len: int, batch_size: int, tokens: int, dtype: torch.dtype,
    sharing: Sharing | None = None,
) -> Evaluation:  # fmt: skip
    """Next-byte predictions over evenly spaced windows of `region`, every window from a zero state.

    Several ranks take batches in turn; all of them get the means.
    """
    sharing = sharing or Sharing(model)
    device = model.embedding.weight.device
    starts = eval_windows(region, seq_len, tokens)
    model.eval()
    found: list[Tensor] = []
    firsts = range(0, len(starts), batch_size)
    world = sharing.world
    for turn in range(0, len(firsts), world.size):
        # All ranks make equally many passes, which gather shares of the model: the last of them may be for nothing.
        some = starts[firsts[min(turn + world.rank, len(firsts) - 1)] :][:batch_size]
        bytes_BT1 = torch.from_numpy(gather(region, some, seq_len + 1)).to(device)
        found.append(sharing.forward(lambda: _scored(model, bytes_BT1, dtype)))  # noqa: B023  # it runs at once
        world.tick()
    model.train()
    every = world.everyone(torch.stack(found).tolist())
    rows = [every[i % world.size][i // world.size] for i in range(len(firsts))]
    weights = [min(batch_size, len(starts) - first) for first in firsts]
    return Evaluation(*(
        math.fsum(row[i] * n for row, n in zip(rows, weights, strict=True)) / sum(weights) for i in range(3)
    ))  # fmt: skip


def _scored(model: LM, bytes_BT1: Tensor, dtype: torch.dtype) -> Tensor:
    """Loss, accuracy and entropy of a batch, fp64 `[3]`."""
    targets_BT = bytes_BT1[:, 1:].long()
    with autocast(bytes_BT1.device, dtype):
        logits_BTV, _ = model(bytes_BT1[:, :-1])
        loss = CROSS_ENTROPY(model.backends, logits_BTV, targets_BT)
    return torch.stack([loss.double(), *_beside(logits_BTV, targets_BT)])


def _beside(logits_BTV: Tensor, targets_BT: Tensor) -> tuple[Tensor, Tensor]:
    """Accuracy and entropy, a few sequences at a time: in fp32 all logits at once would be the largest tensor."""
    right, entropy = [], []
    for logits, targets in zip(torch.split(logits_BTV, ROWS), torch.split(targets_BT, ROWS), strict=True):
        right.append((logits.argmax(-1) == targets).double().sum())
        log_p = logits.float().log_softmax(-1)
        entropy.append(-(log_p.exp() * log_p).sum(-1).double().sum())
    positions = targets_BT.numel()
    return torch.stack(right).sum() / positions, torch.stack(entropy).sum() / positions
