"""Validation: the same windows for every model, with the weights that the optimizer would hand over."""

import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from rnn_lab.data.batches import eval_windows, gather
from rnn_lab.data.corpus import Region
from rnn_lab.lm import LM
from rnn_lab.train.device import autocast
from rnn_lab.train.optimizers import set_mode


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


@torch.no_grad()
def evaluate(model: LM, region: Region, *, seq_len: int, batch_size: int, tokens: int, dtype: torch.dtype) -> float:
    """Mean next-byte loss in nats over evenly spaced windows of `region`, every window from a zero state."""
    device = model.embedding.weight.device
    starts = eval_windows(region, seq_len, tokens)
    model.eval()
    losses: list[Tensor] = []
    weights: list[int] = []
    for first in range(0, len(starts), batch_size):
        some = starts[first : first + batch_size]
        bytes_BT1 = torch.from_numpy(gather(region, some, seq_len + 1)).to(device)
        with autocast(device, dtype):
            losses.append(model.loss(bytes_BT1)[0])
        weights.append(len(some))
    model.train()
    return math.fsum(loss.item() * n for loss, n in zip(losses, weights, strict=True)) / sum(weights)
