"""One optimizer step of `rnn-lab bench train`, launched from Python or replayed as a CUDA graph."""

from collections.abc import Callable

import torch
from torch import Tensor

from rnn_lab.bench.timing import captured
from rnn_lab.lm import LM
from rnn_lab.train.device import autocast

CLIP = 1.0
Step = Callable[[Tensor], Tensor]


def make_step(model: LM, optimizer: torch.optim.Optimizer, dtype: torch.dtype, like_BT1: Tensor, graph: bool) -> Step:
    """A function that trains on a batch of windows `[B, T + 1]` and gives the loss, without waiting for it.

    With `graph`, forward, backward and clipping are one CUDA graph; the optimizer is launched after it.

    Args:
        model: on its device.
        optimizer: over the model's parameters.
        dtype: of the autocast.
        like_BT1: a batch of the shape and dtype of all others.
        graph: whether to capture.

    """
    parameters = [p for p in model.parameters() if p.requires_grad]
    batch_BT1 = like_BT1.clone()
    loss = torch.zeros((), device=batch_BT1.device)

    def gradients() -> None:
        for p in parameters:
            p.grad = None
        model.prepare()
        with autocast(batch_BT1.device, dtype):
            value, _ = model.loss(batch_BT1)
        value.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(parameters, CLIP, foreach=True)
        loss.copy_(value.detach())

    run = captured([gradients]).replay if graph else gradients

    def step(bytes_BT1: Tensor) -> Tensor:
        batch_BT1.copy_(bytes_BT1)
        run()
        optimizer.step()
        return loss

    return step
