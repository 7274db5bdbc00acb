"""How far Collider's gradient is from those that it stands for, on one batch: cosines between flattened gradients.

masked   the loss of the kept positions, with nothing approximated: backward through every position
dense    the loss of all positions
"""

import time
from dataclasses import dataclass

import torch
from torch import Tensor

from rnn_lab.layer import State
from rnn_lab.lm import LM
from rnn_lab.token_filter import TokenFilter, linear
from rnn_lab.train.device import autocast
from rnn_lab.train.objective import Objective, over_kept, per_position
from rnn_lab.train.step import TrainStep


@dataclass(frozen=True)
class Cosines:
    """Cosine of the filtered gradient with the masked one, and of the masked one with the dense one."""

    filtered_masked: float
    masked_dense: float


def cosines(
    model: LM, objective: Objective, window: Tensor, states: list[State] | None = None,
    reset_BT: Tensor | None = None, step: Tensor | None = None,
) -> Cosines:  # fmt: skip
    """Cosines on one batch; gradients that the model holds stay as they are.

    Args:
        model: the language model.
        objective: whose filter is meant; the other terms are left out.
        window: bytes `[B, T + ahead]`.
        states: of the trunk's layers; zeros when None.
        reset_BT: see LM.forward.
        step: number of the optimizer step, for the random scorer.

    """
    T = window.shape[1] - objective.ahead
    targets_BT = window[:, 1 : T + 1].long()
    parameters = [p for p in model.parameters() if p.requires_grad]
    held = TokenFilter((window.shape[0], T), recurrent=objective.cfg.collider_recurrent)

    def gradient(filtering: bool, masked: bool) -> list[Tensor]:
        with held.during() if filtering else torch.enable_grad():
            _, x_BTD, _ = model.trunk(window[:, :T], states, reset_BT)
            nll_BT = per_position(linear(x_BTD, model.embedding.weight), targets_BT)
        if filtering:
            objective.choose(held, nll_BT.detach(), window[:, : T + 1], reset_BT, step, 0)
        mean = over_kept(nll_BT, held) if masked else nll_BT.mean()
        found = torch.autograd.grad(mean, parameters, allow_unused=True)
        return [torch.zeros_like(p) if g is None else g for p, g in zip(parameters, found, strict=True)]

    filtered = gradient(True, True)
    masked = gradient(False, True)
    first = _cosine(filtered, masked)
    del filtered
    return Cosines(first, _cosine(masked, gradient(False, False)))


def _cosine(one: list[Tensor], other: list[Tensor]) -> float:
    """Of the two as vectors; sums in fp64, tensor by tensor, so that nothing is copied whole."""
    dots = torch.stack([torch.stack([(a * b).sum(dtype=torch.float64), a.norm().double() ** 2, b.norm().double() ** 2])
                        for a, b in zip(one, other, strict=True)])  # fmt: skip
    both, a, b = dots.sum(0).tolist()
    return float(both / max((a * b) ** 0.5, 1e-300))


def of_run(step: TrainStep, window: Tensor, k: int, rows: int = 4) -> float:
    """Cosine of the filtered gradient with the masked one over the first rows of step k's batch, states at zero."""
    assert step.objective is not None
    with autocast(step.device, step.dtype):
        number = torch.tensor(float(k), dtype=torch.float64, device=step.device)
        return cosines(step.model, step.objective, window[:rows], step=number).filtered_masked


def backward_seconds(
    dim: int, shape: tuple[int, int], sparsity: float, dtype: torch.dtype, device: torch.device, repeats: int = 5
) -> tuple[float, float]:
    """Seconds of backward through one product `[dim, dim]` over B x T positions: dense, and filtered.

    The fastest of `repeats` each, after one that compiles and certifies.
    """
    B, T = shape
    generator = torch.Generator(device).manual_seed(0)
    x_BTD = torch.randn(B, T, dim, device=device, generator=generator).requires_grad_()
    weight_DD = (torch.randn(dim, dim, device=device, generator=generator) * dim**-0.5).requires_grad_()
    kept = torch.rand(B, T, device=device, generator=generator).topk(max(1, round((1 - sparsity) * T)), 1)
    kept_BK = kept.indices.sort(1).values

    def once(filtered: bool) -> float:
        held = TokenFilter(shape)
        with autocast(device, dtype):
            if filtered:
                with held.during():
                    y_BTD = linear(x_BTD, weight_DD)
                held.keep(kept_BK)
            else:
                y_BTD = linear(x_BTD, weight_DD)
        dy_BTD = torch.ones_like(y_BTD)
        _wait(device)
        began = time.perf_counter()
        torch.autograd.grad(y_BTD, (x_BTD, weight_DD), dy_BTD)
        _wait(device)
        return time.perf_counter() - began

    torch.autograd.grad(x_BTD.square().sum(), x_BTD)  # cuBLAS warns where it is the first to use the GPU in a thread
    once(False), once(True)
    return min(once(False) for _ in range(repeats)), min(once(True) for _ in range(repeats))


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
