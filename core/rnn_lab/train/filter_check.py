"""How far Collider's gradient is from those that it stands for, on one batch: cosines between flattened gradients.

masked   the loss of the kept positions, with nothing approximated: backward through every position
dense    the loss of all positions
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from rnn_lab.layer import State
from rnn_lab.lm import LM
from rnn_lab.token_filter import TokenFilter, linear
from rnn_lab.train.objective import Objective, over_kept, per_position


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
    held = TokenFilter((window.shape[0], T))

    def gradient(filtering: bool, masked: bool) -> Tensor:
        with held.during() if filtering else torch.enable_grad():
            _, x_BTD, _ = model.trunk(window[:, :T], states, reset_BT)
            nll_BT = per_position(linear(x_BTD, model.embedding.weight), targets_BT)
        if filtering:
            objective.choose(held, nll_BT.detach(), window[:, : T + 1], reset_BT, step, 0)
        mean = over_kept(nll_BT, held) if masked else nll_BT.mean()
        found = torch.autograd.grad(mean, parameters, allow_unused=True)
        return torch.cat([
            (torch.zeros_like(p) if g is None else g).flatten().double() for p, g in zip(parameters, found, strict=True)
        ])  # fmt: skip

    filtered = gradient(True, True)
    masked, dense = gradient(False, True), gradient(False, False)
    return Cosines(_cosine(filtered, masked), _cosine(masked, dense))


def _cosine(one: Tensor, other: Tensor) -> float:
    return torch.nn.functional.cosine_similarity(one, other, 0).item()
