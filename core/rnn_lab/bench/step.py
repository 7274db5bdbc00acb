"""The training step of train.step as `rnn-lab bench train` times it: launched from Python, or as one CUDA graph."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from rnn_lab.bench.timing import captured
from rnn_lab.config import TrainSection
from rnn_lab.errors import GraphUnavailable
from rnn_lab.lm import LM
from rnn_lab.optim.layerwise import LayerwiseRouted
from rnn_lab.train.graph import uncapturable
from rnn_lab.train.optimizers import GatedOptimizer
from rnn_lab.train.step import TrainStep
from rnn_lab.wavefront import leave_room, overlap, undo_overlap


@dataclass(frozen=True)
class Step:
    """Trains on a batch of windows `[B, T + 1]` and gives the step's record without waiting for it.

    `update` is clip and optimizer alone, on the gradients that the last step left; None where it is part of backward.
    """

    batch_BT1: Tensor
    record: Tensor
    run: Callable[[], None]
    update: Callable[[], object] | None

    def __call__(self, bytes_BT1: Tensor) -> Tensor:
        """The loss, on the device."""
        self.batch_BT1.copy_(bytes_BT1)
        self.run()
        return self.record[0]


def make_step(
    model: LM, optimizer: torch.optim.Optimizer, dtype: torch.dtype, like_BT1: Tensor, graph: bool,
    wavefront: int | None = None,
) -> Step:  # fmt: skip
    """The step of a model, ready to be timed.

    Args:
        model: on its device.
        optimizer: over the model's parameters.
        dtype: of the autocast.
        like_BT1: a batch of the shape and dtype of all others.
        graph: whether forward, backward, clip and update are one CUDA graph.
        wavefront: chunks of time that layers work on at once; default: in a graph as many as a run takes.

    Raises:
        GraphUnavailable: a layer of the model cannot be captured.

    """
    B, T = like_BT1.shape[0], like_BT1.shape[1] - 1
    compute = TrainStep(model, optimizer, TrainSection(batch_size=B, seq_len=T, steps=1, wavefront=wavefront), dtype)
    batch_BT1 = like_BT1.clone()
    record = torch.zeros(4, dtype=torch.float64, device=batch_BT1.device)

    def body() -> None:
        optimizer.zero_grad(set_to_none=True)
        record.copy_(compute(batch_BT1, None, None)[0])

    run: Callable[[], None] = body
    body()  # the first pass compiles and tunes, and tells the backends
    if graph:
        if reason := next(uncapturable(model), None):
            raise GraphUnavailable(reason)
        waves = wavefront is None and leave_room(model) and overlap(model, T)
        try:
            run = captured([body]).replay
        except Exception:
            if not waves:
                raise
            undo_overlap(model)  # as a run does: what all chunks keep may be too much
            run = captured([body]).replay
        if isinstance(optimizer, GatedOptimizer):
            optimizer.bind()
    else:
        body()  # as often as before a graph, so that losses after as many steps can be compared

    one = torch.ones((), device=batch_BT1.device)
    update = None if isinstance(optimizer, LayerwiseRouted) else lambda: compute.update(one, one)
    return Step(batch_BT1, record, run, update)
