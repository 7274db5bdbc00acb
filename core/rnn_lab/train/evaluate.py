"""Validation: the same windows for every model, with the weights that the optimizer would hand over."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from rnn_lab.data.batches import eval_windows, gather
from rnn_lab.data.corpus import Region
from rnn_lab.kernels.cross_entropy import CROSS_ENTROPY
from rnn_lab.lm import LM
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
    model: LM, region: Region, *, seq_len: int, batch_size: int, tokens: int, dtype: torch.dtype
) -> Evaluation:
    """Next-byte predictions over evenly spaced windows of `region`, every window from a zero state."""
    device = model.embedding.weight.device
    starts = eval_windows(region, seq_len, tokens)
    model.eval()
    found: list[Tensor] = []
    weights: list[int] = []
    for first in range(0, len(starts), batch_size):
        some = starts[first : first + batch_size]
        bytes_BT1 = torch.from_numpy(gather(region, some, seq_len + 1)).to(device)
        targets_BT = bytes_BT1[:, 1:].long()
        with autocast(device, dtype):
            logits_BTV, _ = model(bytes_BT1[:, :-1])
            loss = CROSS_ENTROPY(model.backends, logits_BTV, targets_BT)
        found.append(torch.stack([loss.double(), *_beside(logits_BTV, targets_BT)]))
        weights.append(len(some))
    model.train()
    rows = torch.stack(found).tolist()
    return Evaluation(*(
        math.fsum(row[i] * n for row, n in zip(rows, weights, strict=True)) / sum(weights) for i in range(3)
    ))  # fmt: skip


def _beside(logits_BTV: Tensor, targets_BT: Tensor) -> tuple[Tensor, Tensor]:
    """Accuracy and entropy, a few sequences at a time: in fp32 all logits at once would be the largest tensor."""
    right, entropy = [], []
    for logits, targets in zip(torch.split(logits_BTV, ROWS), torch.split(targets_BT, ROWS), strict=True):
        right.append((logits.argmax(-1) == targets).double().sum())
        log_p = logits.float().log_softmax(-1)
        entropy.append(-(log_p.exp() * log_p).sum(-1).double().sum())
    positions = targets_BT.numel()
    return torch.stack(right).sum() / positions, torch.stack(entropy).sum() / positions
